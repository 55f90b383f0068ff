import json

import pytest

from hgd_det.cli.inspect import describe, input_size
from hgd_det.engine.runner import load_config


def test_the_json_on_stdout_is_nothing_but_json(hgd, capsys):
    capsys.readouterr()
    assert hgd('inspect', '--json') == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts['input_size'] == [96, 96] and facts['teacher'] is None
    assert facts['student']['params'] > 0 and facts['student']['macs'] > 0
    assert [each['size'] for each in facts['student']['maps']] == [[12, 12], [6, 6], [3, 3], [1, 1]]


def test_the_json_file_and_the_text_tell_the_same(hgd, tmp_path, capsys):
    assert hgd('inspect', '--json', tmp_path / 'facts.json') == 0
    facts = json.loads((tmp_path / 'facts.json').read_text())
    assert f'{facts["student"]["params"]:,} parameters' in capsys.readouterr().out


def test_options_change_what_is_counted(config):
    full = describe(load_config(config))['student']['params']
    assert describe(load_config(config,
                                ['model.bbox_head.num_classes=7']))['student']['params'] > full


def test_the_input_size_comes_from_the_config_or_from_its_test_pipeline(config):
    cfg = load_config(config, {'input_size': [64, 80]})
    assert input_size(cfg) == (64, 80)
    cfg.pop('input_size')
    assert input_size(cfg) == (96, 96)
    cfg.pop('test_dataloader')
    with pytest.raises(ValueError, match='input_size=300'):
        input_size(cfg)


def test_a_distillation_shows_both_detectors_and_their_pairs(config, tmp_path, hgd, capsys):
    distilling = tmp_path / 'distilling.py'
    distilling.write_text(f'''
_base_ = {str(config)!r}
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}}, input_size=96,
             teacher=dict(model={str(config)!r}, checkpoint='not/read/here.pth'),
             terms=dict(hint=dict(type='Hint', weight=1.0)))
''')
    assert hgd('inspect', '--json', config=distilling) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts['teacher']['params'] == facts['student']['params']
    assert facts['pairs'] and all(pair['size'] for pair in facts['pairs'])


def test_several_teachers_are_shown_with_their_pupils(config, tmp_path, hgd, capsys):
    distilling = tmp_path / 'distilling.py'
    distilling.write_text(f'''
_base_ = {str(config)!r}
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}}, input_size=96,
             teachers=dict(a=dict(model={str(config)!r}), b=dict(model={str(config)!r}, input_size=192)),
             terms=dict(x=dict(type='HGD', teacher='a'), y=dict(type='Hint', weight=1.0, teacher='b')))
''')
    assert hgd('inspect', '--json', config=distilling) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts['teacher'] is None and facts['teachers']['b']['macs'] > 3 * facts['teachers']['a']['macs']
    assert {name: term['teacher'] for name, term in facts['terms'].items()} == dict(x='a', y='b')
    assert hgd('inspect', config=distilling) == 0
    shown = capsys.readouterr().out
    assert 'teacher b: ' in shown and 'learns from a' in shown
