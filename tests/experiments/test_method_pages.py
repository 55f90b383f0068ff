"""The documentation's tables come from the registry, the configs and `results/`: the files hold them."""
import re
from pathlib import Path

import pytest

import hgd_det.registered  # noqa: F401
from hgd_det.cli.main import main
from hgd_det.distill.registry import TERMS
from hgd_det.errors import UserError
from hgd_det.experiments.method_pages import fill, gains, page_of, tables_of, write
from hgd_det.experiments.methods import describe, pick
from hgd_det.paths import names

DOCS = Path(__file__).resolve().parents[2] / 'docs'
PAGES = [DOCS / 'methods.md', *sorted((DOCS / 'methods').glob('*.md'))]


@pytest.fixture(scope='module')
def terms():
    # other tests register terms of their own
    return [each for each in describe() if TERMS.module_dict[each['name']].__module__.startswith('hgd_det.')]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_a_page_holds_the_tables_that_are_made_for_it(page, terms):
    text = page.read_text()
    assert fill(text, terms, page) == text, 'make docs'


def test_every_term_has_its_options_on_its_page(terms):
    for term in terms:
        page = DOCS / f'methods/{page_of(term)}.md'
        assert page.is_file(), f'{term["name"]}: {page} is missing'
        assert f'options of {term["name"]}' in tables_of(page.read_text()), page


def test_every_method_has_a_page_that_says_when_to_use_it():
    for method in names('methods'):
        assert '**When to use it.** ' in (DOCS / f'methods/{method}.md').read_text(), method


def test_the_table_has_the_measured_methods_and_their_gains():
    text = (DOCS / 'methods.md').read_text()
    told = {name: gain for name, gain in re.findall(r'\(methods/(\w+)\.md\).*\| ([+-]\d+\.\d) \|', text)}
    assert told == {method: f'{gain:+.1f}' for method, gain in gains().items()}
    assert told['hgd'] == '+18.6' and told['fine_grained'] == '+33.2' and told['ld'] == '+13.2'


def test_the_options_are_those_of_the_class_it_is_made_from_too(terms):
    options = {each['name']: each for each in pick(terms, 'nst')['options']}
    assert options['kernel'] == dict(name='kernel', default='poly', type='a string')
    assert options['select']['default'] == 'heads' and options['weight']['default'] == 50.0
    assert 'adapter' not in options     # it compares maps of any channels
    options = {each['name']: each for each in pick(terms, 'fsp')['options']}
    assert options['adapter'] == dict(name='adapter', default='mismatch', type='a string')


def test_a_table_is_filled_in_between_its_comments_and_the_rest_stays(tmp_path, capsys):
    page = tmp_path / 'my.md'
    page.write_text('before\n<!-- options of LogitL2 -->\nold\n<!-- end -->\nafter\n')
    assert main(['methods', '--write', str(page)]) == 0
    text = page.read_text()
    assert text.startswith('before\n<!-- options') and text.endswith('<!-- end -->\nafter\n')
    assert "| `space` | `logit` | a string |" in text and 'old' not in text
    assert str(page) in capsys.readouterr().out
    assert write([page]) == []
    page.write_text('<!-- options of LogitL3 -->\n<!-- end -->\n')
    with pytest.raises(UserError, match='did you mean LogitL2'):
        write([page])
