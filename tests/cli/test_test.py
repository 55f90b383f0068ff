import json
import os

import pytest
import torch

from hgd_det.checkpoint import load, sha256
from hgd_det.cli.test import evaluate, table

pytestmark = pytest.mark.thorough


@pytest.fixture
def checkpoint(trained):
    return trained / 'iter_4.pth'


def test_the_table_and_the_json_hold_every_class_and_the_means(checkpoint, hgd, tmp_path, capsys):
    out = tmp_path / 'deep' / 'result.json'
    assert hgd('test', checkpoint, '--work-dir', tmp_path, '--json', out, '--batch-size', 3) == 0
    said = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert {'voc/mAP', 'voc/mAP_area', 'voc/AP50', 'voc/AP50/disc', 'voc/AP50_area/star'} \
        <= result['metrics'].keys()
    assert result['checkpoint']['sha256'] == sha256(checkpoint)
    assert result['versions']['torch'] == torch.__version__
    assert 'disc' in said and f'{100 * result["metrics"]["voc/mAP"]:.2f}' in said


def test_the_figures_depend_neither_on_the_batch_size_nor_on_the_order_of_training_and_testing(
        checkpoint, config, tmp_path):
    from hgd_det.training.runner import load_config

    def score(batch):
        cfg = load_config(config, {'test_dataloader.batch_size': batch, 'work_dir': str(tmp_path),
                                   'experiment_name': f'batch{batch}'})
        return evaluate(cfg, checkpoint)
    assert score(1) == score(4)


def test_a_distillation_checkpoint_loads_strictly_into_the_plain_student(checkpoint, hgd, tmp_path):
    content = load(checkpoint)
    content['state_dict']['distill.hgd.adapter.weight'] = torch.zeros(3)
    torch.save(content, tmp_path / 'distilled.pth')
    assert hgd('test', tmp_path / 'distilled.pth', '--work-dir', tmp_path) == 0


def test_of_a_distillation_config_neither_teacher_nor_terms_are_built(
        checkpoint, config, hgd, tmp_path):
    distilling = tmp_path / 'distilling.py'
    distilling.write_text(f'''
_base_ = {str(config)!r}
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}},
             teacher=dict(model='no/such/config.py', checkpoint='no/such/weights.pth'),
             terms=dict(hgd=dict(type='NoSuchTerm')))
custom_hooks = [dict(type='DistillHook')]
''')
    assert hgd('test', checkpoint, '--work-dir', tmp_path, config=distilling) == 0


def test_weights_of_another_model_are_refused_with_the_keys_that_differ(
        checkpoint, hgd, tmp_path, capsys):
    weights = load(checkpoint)['state_dict']
    weights['neck.surplus'] = torch.zeros(1)
    del weights['backbone.features.0.weight']
    weights['bbox_head.cls_convs.0.0.bias'] = torch.zeros(5)
    torch.save(weights, tmp_path / 'odd.pth')
    assert hgd('test', tmp_path / 'odd.pth', '--work-dir', tmp_path) == 2
    error = capsys.readouterr().err
    for part in ('1 missing: backbone.features.0.weight', '1 unexpected: neck.surplus',
                 '1 misshaped: bbox_head.cls_convs.0.0.bias (5 given, 16 wanted)'):
        assert part in error


def test_a_program_in_place_of_a_checkpoint_is_refused_unless_trusted(
        checkpoint, hgd, tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'exploded'),)
    torch.save({**load(checkpoint), 'bomb': Bomb()}, tmp_path / 'bad.pth')
    assert hgd('test', tmp_path / 'bad.pth', '--work-dir', tmp_path) == 2
    assert 'posix.mkdir' in capsys.readouterr().err and not (tmp_path / 'exploded').exists()
    assert hgd('test', tmp_path / 'bad.pth', '--work-dir', tmp_path, '--trust-checkpoint') == 0
    assert (tmp_path / 'exploded').exists()


def test_other_classes_under_the_same_number_are_pointed_out(checkpoint, hgd, tmp_path, capsys):
    hgd('test', checkpoint, '--work-dir', tmp_path,
        options=["test_dataloader.dataset.metainfo.classes=('star','disc','square')"])
    assert 'was trained for the classes disc, square, star' in capsys.readouterr().err


def test_found_objects_are_drawn(checkpoint, hgd, tmp_path):
    shown = tmp_path / 'shown'
    assert hgd('test', checkpoint, '--work-dir', tmp_path, '--show-dir', shown) == 0
    assert len(list(shown.rglob('*.jpg'))) == 4


def test_safetensors_are_read(checkpoint, hgd, tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    safetensors.save_file(load(checkpoint)['state_dict'], tmp_path / 'plain.safetensors')
    assert hgd('test', tmp_path / 'plain.safetensors', '--work-dir', tmp_path) == 0


def test_the_table_lines_up_and_leaves_out_what_is_not_a_number():
    lines = table({'voc/mAP': 0.5, 'voc/AP50/cat': 0.25, 'voc/AP50/dog and cow': 1.0,
                   'note': 'x'}).splitlines()
    assert [line.split() for line in lines] == [
        ['class', 'AP50'], ['cat', '25.00'], ['dog', 'and', 'cow', '100.00'], ['voc/mAP', '50.00']]
    assert len({len(line) for line in lines}) == 1
