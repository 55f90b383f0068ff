"""The verb around hgd_det.deploy.export, on a run of the command line itself."""
import json

import pytest
import torch

from hgd_det.cli.main import main


def test_a_checkpoint_of_the_middle_of_a_run_is_exported_and_verified(trained, config, tmp_path, capsys):
    pytest.importorskip('onnxruntime')
    out = tmp_path / 'out'
    assert main(['export', str(config), str(trained / 'iter_2.pth'), str(out), '--format', 'pth', 'onnx',
                 '--verify', 'test']) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line.startswith(('checkpoint', 'model.'))]
    assert [row[0] for row in rows] == ['checkpoint', 'model.pth', 'model.onnx']
    assert rows[1][-1] == rows[2][-1] == 'yes'
    assert rows[0][-2:] == rows[1][-3:-1] == rows[2][-3:-1]    # both mAPs
    facts = json.loads((out / 'model.json').read_text())
    assert facts['iterations'] == 2 and 'voc/mAP' in facts['metrics'] and 'model.onnx' in facts['verified']


def test_the_config_inside_does_as_well(trained, tmp_path):
    assert main(['export', 'auto', str(trained / 'iter_4.pth'), str(tmp_path / 'a.pth')]) == 0
    assert main(['export', 'auto', str(tmp_path / 'a.pth'), str(tmp_path / 'b.safetensors')]) == 0
    assert main(['export', 'auto', str(tmp_path / 'b.safetensors'), str(tmp_path / 'c.pth')]) == 0
    first, last = (torch.load(tmp_path / name, weights_only=True)['state_dict']
                   for name in ('a.pth', 'c.pth'))
    assert list(first) == list(last) and all(torch.equal(v, last[k]) for k, v in first.items())


@pytest.mark.slow
def test_the_exported_config_and_weights_evaluate_to_the_same(trained, config, tmp_path, hgd):
    assert main(['export', str(config), str(trained / 'iter_4.pth'), str(tmp_path / 'x.pth')]) == 0
    assert hgd('test', trained / 'iter_4.pth', '--json', tmp_path / 'a.json') == 0
    assert hgd('test', tmp_path / 'x.pth', '--json', tmp_path / 'b.json', config=tmp_path / 'x.py') == 0
    a, b = (json.loads((tmp_path / name).read_text())['metrics'] for name in ('a.json', 'b.json'))
    assert a == b


MUTUAL = '''
_base_ = {student!r}
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}}, input_size=96,
             terms=dict(dml=dict(type='DML')))
custom_hooks = [dict(type='DistillHook')]
log_processor = dict(type='DistillLogProcessor', by_epoch=False, window_size=1)
default_hooks = dict(checkpoint=dict(interval=2))
train_cfg = dict(max_iters=2)
'''


@pytest.mark.slow
def test_both_of_two_that_teach_each_other_come_out_plain(config, hgd, tmp_path, capsys):
    run = tmp_path / 'mutual.py'
    run.write_text(MUTUAL.format(student=str(config)))
    assert hgd('train', '--work-dir', tmp_path / 'run', '--no-validate', config=run) == 0
    saved = tmp_path / 'run/iter_2.pth'
    assert main(['export', str(run), str(saved), str(tmp_path / 'one.pth')]) == 0
    assert main(['export', 'auto', str(saved), str(tmp_path / 'other.pth'), '--peer', 'dml', '--verify',
                 'test']) == 0
    one, other = (torch.load(tmp_path / f'{name}.pth', weights_only=True)['state_dict']
                  for name in ('one', 'other'))
    content = torch.load(saved, weights_only=False)
    assert list(one) == list(other) == list(content['state_dict'])
    for key, value in other.items():
        assert torch.equal(value, content['distill'][f'distill.dml.peer.{key}'])
    assert not torch.equal(one['backbone.features.0.weight'], other['backbone.features.0.weight'])
    assert json.loads((tmp_path / 'other.json').read_text())['taught']['peer'] == 'dml'
    assert hgd('test', tmp_path / 'other.pth', config=tmp_path / 'other.py') == 0
    assert main(['export', str(run), str(saved), str(tmp_path / 'x.pth'), '--peer', 'dmll']) == 2
    assert "it holds that of 'dml'" in capsys.readouterr().err


def test_mistakes_are_named(trained, config, tmp_path, capsys):
    checkpoint = str(trained / 'iter_4.pth')
    for arguments, word in (
            ([str(config), checkpoint, str(tmp_path), '--cfg-options', 'model.backbone.depth=11'],
             'unexpected: backbone'),
            ([str(config), str(tmp_path / 'no.pth'), str(tmp_path)], 'does not exist'),
            ([str(config), checkpoint, str(tmp_path / 'a.onnx'), '--format', 'pth'], 'give a folder'),
            ([str(config), checkpoint, str(tmp_path), '--verify', 'nowhere'], 'does not exist'),
            (['configs/nope.py', checkpoint, str(tmp_path)], 'does not exist')):
        assert main(['export', *arguments]) == 2
        assert word in capsys.readouterr().err, word
