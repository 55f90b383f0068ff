"""A whole distillation through the tools: train, the checkpoint in plain hands, resume, refusals."""
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hgd_det.checkpoint import load
from hgd_det.testing import tiny_ssd

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]
DISTILL = '''
_base_ = {student!r}
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}},
             teacher=dict(model={teacher!r}, checkpoint={checkpoint!r}),
             input_size=96, terms=dict(hgd=dict(type='HGD', weight='auto', average=3, warmup=1)))
custom_hooks = [dict(type='DistillHook')]
log_processor = dict(type='DistillLogProcessor', by_epoch=False, window_size=1)
default_hooks = dict(checkpoint=dict(interval=3), logger=dict(type='LoggerHook', interval=1))
train_cfg = dict(max_iters=6, val_interval=6)
'''


@pytest.fixture(scope='module')
def lesson(config, hgd, tmp_path_factory):
    """A distillation config under a teacher of the same classes, and its uninterrupted run."""
    folder = tmp_path_factory.mktemp('lesson')
    teacher = folder / 'teacher.py'
    teacher.write_text(config.read_text().replace(repr(tiny_ssd()), repr(tiny_ssd(1 / 8))))
    assert hgd('train', '--work-dir', folder / 'teacher', '--no-validate', config=teacher,
               options=['train_cfg.max_iters=2']) == 0
    path = folder / 'distill.py'
    path.write_text(DISTILL.format(student=str(config), teacher=str(teacher),
                                   checkpoint=str(folder / 'teacher')))
    assert hgd('train', '--work-dir', folder / 'run', config=path) == 0
    return path


def scalars(folder, key):
    """{iteration: value} over all runs in a work directory, later ones last."""
    lines = [json.loads(line) for run in sorted(folder.glob('*/vis_data/scalars.json'))
             for line in run.open()]
    return {line['iter']: line[key] for line in lines if key in line}


def test_the_log_shows_what_the_imitation_does(lesson):
    run = lesson.parent / 'run'
    assert scalars(run, 'loss_hgd')[1] == 0 and scalars(run, 'loss_hgd')[2] > 0  # warm-up of one step
    for key in ('hgd_raw', 'hgd_weight', 'hgd_d_s96', 'hgd_u_s96', 'teacher_share'):
        assert all(v > 0 for step, v in scalars(run, key).items() if step > 1), key
    text = next(run.glob('*/*.log')).read_text()
    assert 'hgd  s96 ' in text and 'hgd: 96x96  student backbone.features.5' in text


@pytest.mark.slow
def test_a_checkpoint_from_the_middle_is_the_plain_students(lesson, config, hgd, tmp_path, capsys):
    middle = lesson.parent / 'run' / 'iter_3.pth'
    assert hgd('test', middle, '--json', tmp_path / 'result.json') == 0  # with the student's config
    assert 'voc/mAP' in (tmp_path / 'result.json').read_text()
    capsys.readouterr()
    # and in mmdet's hands, strictly, in a process that knows nothing of distillation
    script = f'''
import hgd_det.models, mmdet.models, torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
import sys
register_all_modules(init_default_scope=True)
model = MODELS.build(ConfigDict({tiny_ssd()!r}))
print(model.load_state_dict(torch.load({str(middle)!r}, weights_only=False)['state_dict'], strict=True))
assert not any('distill' in name for name in sys.modules)
'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd=ROOT)
    assert 'All keys matched' in done.stdout, done.stderr[-2000:]


def test_resuming_gives_the_next_losses_and_the_last_weights_bit_for_bit(lesson, hgd, tmp_path):
    run = lesson.parent / 'run'
    (tmp_path / 'iter_3.pth').write_bytes((run / 'iter_3.pth').read_bytes())
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_3.pth'))
    assert hgd('train', '--work-dir', tmp_path, '--resume', config=lesson) == 0
    for key in ('loss', 'loss_cls', 'loss_bbox', 'loss_hgd', 'hgd_weight'):
        whole, resumed = scalars(run, key), scalars(tmp_path, key)
        assert resumed == {i: v for i, v in whole.items() if i > 3}, key
    ours, theirs = load(tmp_path / 'iter_6.pth'), load(run / 'iter_6.pth')
    for part in ('state_dict', 'distill'):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(v, ours[part][k]) for k, v in theirs[part].items())


def test_resuming_under_another_teacher_is_refused(lesson, hgd, tmp_path, capsys):
    (tmp_path / 'iter_3.pth').write_bytes((lesson.parent / 'run' / 'iter_3.pth').read_bytes())
    other = tmp_path / 'other.pth'
    content = load(lesson.parent / 'teacher' / 'iter_2.pth')
    content['state_dict']['backbone.features.0.bias'] += 1
    torch.save(content, other)
    options = [f'model.teacher.checkpoint={other}']
    assert hgd('train', '--work-dir', tmp_path, '--resume', config=lesson, options=options) == 2
    assert 'this run began under the teacher' in capsys.readouterr().err


@pytest.mark.parametrize('options, text', [
    (['model.teacher.checkpoint=nowhere.pth'], 'teacher checkpoint nowhere.pth does not exist'),
    (['model.terms.hgd.warmup=6'], "warmup=6 is 6 iterations, but training has only 6"),
    (['model.terms.hgd.weight=-1'], 'cannot have a negative weight'),
    (['model.terms.hgd.type=HDG'], "there is no 'HDG'; did you mean 'HGD'"),
    (['model.terms.hgd.micro=variance2'], 'micro'),
    (['model.student.bbox_head.num_classes=4'], '(?s)num_classes|classes'),
])
def test_a_wrong_set_up_ends_with_one_message_and_status_2(lesson, hgd, tmp_path, capsys, options, text):
    import re
    assert hgd('train', '--work-dir', tmp_path, config=lesson, options=options) == 2
    err = capsys.readouterr().err
    assert re.search(text, err), err
    assert 'Traceback' not in err


def test_tensorboard_is_one_line_of_config_and_gets_every_value(lesson, hgd, tmp_path):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    config = tmp_path / 'with_tensorboard.py'
    config.write_text(f"_base_ = {str(lesson)!r}\nvisualizer = dict(type='DetLocalVisualizer', vis_backends="
                      "[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')])\n")
    assert hgd('train', '--work-dir', tmp_path / 'run', '--no-validate', config=config,
               options=['train_cfg.max_iters=3']) == 0
    folder = next((tmp_path / 'run').glob('*/vis_data/events*')).parent
    found = events.EventAccumulator(str(folder))
    found.Reload()
    assert {'loss_hgd', 'hgd_raw', 'hgd_weight', 'hgd_d_s96', 'hgd_u_s1', 'teacher_share'} <= set(
        found.Tags()['scalars'])
