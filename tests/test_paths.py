"""How a config is found, named, and put together from a pair of detectors and a method."""
from pathlib import Path

import pytest

from hgd_det.engine.runner import default_work_dir, load_config
from hgd_det.errors import UserError
from hgd_det.paths import ROOT, config_name, find_config, method_name, read_config

PAIR = '''
model = dict(type='Distiller', student=dict(type='Small'), teacher=dict(model='big.py', checkpoint='big'),
             terms=dict())
optim_wrapper = dict(optimizer=dict(type='SGD', lr=1.0))
values = dict(mine=dict(terms=dict(a=dict(weight=7.0)), optim_wrapper=dict(optimizer=dict(lr=2.0))))
'''
MINE = '''
terms = dict(a=dict(type='A', weight=1.0, warmup=5))
optim_wrapper = dict(clip_grad=dict(max_norm=3))
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of a user's own with a pair and two methods."""
    monkeypatch.chdir(tmp_path)
    Path('pair.py').write_text(PAIR)
    Path('mine.py').write_text(MINE)
    Path('alone.py').write_text("teacher = None\nterms = dict(b=dict(type='B'))\n")
    Path('twins.py').write_text("teacher = 'student'\nterms = dict(c=dict(type='C'))\n")
    return tmp_path


@pytest.mark.parametrize('given', ['configs/shapes/teacher.py', 'shapes/teacher.py', 'shapes/teacher'])
def test_a_config_of_the_project_is_found_from_anywhere_however_it_is_called(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(given) == ROOT / 'configs/shapes/teacher.py'


def test_a_pair_goes_by_its_name_and_a_file_of_the_working_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'shapes').mkdir()    # a folder of data, say
    assert find_config('shapes') == ROOT / 'configs/pairs/shapes.py'
    (tmp_path / 'configs/shapes').mkdir(parents=True)
    mine = Path('configs/shapes/teacher.py')
    mine.write_text('a = 1\n')
    assert find_config(mine).samefile(tmp_path / mine)


def test_a_run_is_named_by_pair_and_method_wherever_the_files_lie():
    assert config_name(ROOT / 'configs/pairs/shapes.py') == config_name('shapes') == 'shapes'
    assert config_name('configs/ssd/ssd300_half_voc.py') == 'ssd/ssd300_half_voc'
    assert config_name('/home/me/pair.py') == 'pair'
    both = default_work_dir('configs/pairs/shapes.py', 'hgd+logit_kd')
    assert both == Path('work_dirs/shapes/hgd+logit_kd')
    assert default_work_dir('configs/hgd/ssd_half_voc.py') == Path('work_dirs/hgd/ssd_half_voc')
    assert method_name('hgd+my/mine.py') == 'hgd+mine'


def test_a_pair_and_a_method_of_ones_own_are_put_together_with_the_pairs_values(own):
    cfg = read_config('pair.py', 'mine.py')
    assert cfg.model.terms == dict(a=dict(type='A', weight=7.0, warmup=5))
    assert cfg.optim_wrapper == dict(optimizer=dict(type='SGD', lr=2.0), clip_grad=dict(max_norm=3))
    assert cfg.model.teacher.model == 'big.py' and 'values' not in cfg and 'terms' not in cfg
    assert load_config('pair.py', ['model.terms.a.weight=9'], 'mine.py').model.terms.a.weight == 9
    assert load_config('pair.py', method='mine.py').work_dir == 'work_dirs/pair/mine'


def test_the_teacher_stays_while_one_of_the_methods_needs_it(own):
    assert 'teacher' not in read_config('pair.py', 'alone.py').model
    both = read_config('pair.py', 'alone.py+mine.py').model
    assert both.teacher.model == 'big.py' and list(both.terms) == ['b', 'a']
    assert read_config('pair.py', 'twins.py').model.teacher == dict(model=dict(model=dict(type='Small')))


def test_a_method_joins_the_terms_that_a_config_has(own):
    Path('more.py').write_text("_base_ = './pair.py'\nmodel = dict(terms=dict(z=dict(type='Z')))\n")
    assert list(read_config('more.py', 'mine.py').model.terms) == ['z', 'a']


@pytest.mark.parametrize('config, method, message', [
    ('pair.py', 'hgdd', "no method 'hgdd'.*near names: hgd"), ('pair.py', '../methods/hgd', 'no method'),
    ('pair.py', 'hgd+', "no method ''"), ('pair.py', 'pair.py', 'is no method'),
    ('mine.py', 'hgd', 'no pair of detectors'), ('pair.py', 'mine.py+mine.py', "have a term 'a'"),
    ('pair.py', 'mine.py+odd.py', 'does not fit'), ('shapse', None, 'near names: .*shapes')])
def test_what_cannot_be_put_together_is_said(config, method, message, own):
    Path('odd.py').write_text("terms = dict(d=dict(type='D'))\nmodel = dict(teacher=dict(model=dict(x=1)))\n")
    with pytest.raises(UserError, match=message):
        read_config(config, method)
