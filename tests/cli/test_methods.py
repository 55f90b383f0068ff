"""The list of methods is made from the code, so it cannot fall behind."""
import json

import pytest

from hgd_det.cli.main import main
from hgd_det.distill.registry import TERMS
from hgd_det.experiments.methods import describe
from hgd_det.paths import find_method


@pytest.fixture(scope='module')
def methods():
    # other tests register terms of their own
    return {each['name']: each for each in describe()
            if TERMS.module_dict[each['name']].__module__.startswith('hgd_det.')}


def test_every_term_has_a_sentence_a_formula_and_a_method(methods):
    assert {'HGD', 'SoftLoss', 'BoundedRegression', 'Hint', 'LD', 'FineGrained', 'MaskGuided',
            'Mimic'} <= set(methods)
    for name, method in methods.items():
        assert 10 < len(method['summary']) <= 100 and method['summary'].endswith('.'), name
        assert '::' in method['doc'] and method['needs'], name
        assert method['methods'] and all(find_method(each) for each in method['methods']), name


def test_the_first_method_is_the_one_with_least_beside_it(methods):
    assert methods['HGD']['methods'] == ['hgd', 'combined']
    assert methods['LogitKD']['methods'] == ['logit_kd', 'born_again', 'fitnets']    # its own first


def test_the_list_and_one_of_it(capsys):
    assert main(['methods']) == 0
    said = capsys.readouterr().out
    assert 'HGD' in said and 'reads boxes, maps' in said
    assert main(['methods', 'fine-grained']) == 0
    said = capsys.readouterr().out
    assert said.startswith('FineGrained\n') and 'psi' in said
    assert 'hgd-det train PAIR --method fine_grained' in said and '  psi       = 0.5: a number\n' in said
    assert main(['methods', '--json']) == 0
    assert {each['name'] for each in json.loads(capsys.readouterr().out)} >= {'HGD', 'LD'}


def test_a_misspelt_name_is_answered_with_the_near_one(capsys):
    assert main(['methods', 'minic']) == 2
    assert 'did you mean Mimic' in capsys.readouterr().err
