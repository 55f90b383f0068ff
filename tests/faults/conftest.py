"""What a bad input stands beside: a data set, a student, a teacher and a distillation, all of them sound."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hgd_det.testing import make_student, tiny_ssd

DISTILL = '''
_base_ = {student!r}
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}}, input_size=96,
             teacher=dict(model={teacher!r}, checkpoint={weights!r}),
             terms=dict(hgd=dict(type='HGD', weight=1.0), kd=dict(type='LogitKD')))
custom_hooks = [dict(type='DistillHook')]
'''

LASTING = '''
_base_ = {student!r}
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}}, input_size=96,
             teacher=dict(model={teacher!r}, checkpoint={weights!r}),
             terms=dict(hint=dict(type='FitNets', stop=0.3),
                        hgd=dict(type='HGD', weight='auto', warmup=0.3, ramp=4, average=8)))
custom_hooks = [dict(type='DistillHook'), dict(type='EMAHook', momentum=0.1, update_buffers=True)]
train_dataloader = dict(batch_size=2, num_workers=1, persistent_workers=True)
train_cfg = dict(max_iters=20, val_interval=10)
param_scheduler = [dict(type='OneCycleLR', eta_max=1e-3, total_steps=20, by_epoch=False)]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3), logger=dict(type='LoggerHook', interval=1))
'''


@pytest.fixture(scope='session')
def lasting(config, tmp_path_factory) -> Path:
    """A distillation of twenty steps with all that a resumed run must take up again: two phases, a balance,
    averaged weights, a data worker."""
    folder = tmp_path_factory.mktemp('lasting')
    teacher, weights, path = (folder / name for name in ('teacher.py', 'teacher.pth', 'lasting.py'))
    teacher.write_text(f'model = {tiny_ssd(1 / 8)!r}')
    torch.save(dict(state_dict=make_student(tiny_ssd(1 / 8)).detector.state_dict()), weights)
    path.write_text(LASTING.format(student=str(config), teacher=str(teacher), weights=str(weights)))
    return path


@pytest.fixture(scope='session')
def sound(config, trained, tmp_path_factory) -> SimpleNamespace:
    """Paths by name; nothing that a test does may change any of these files."""
    from hgd_det.cli.main import main
    folder = tmp_path_factory.mktemp('sound')
    teacher = folder / 'teacher.py'
    teacher.write_text(config.read_text().replace(repr(tiny_ssd()), repr(tiny_ssd(1 / 8))))
    weights = folder / 'teacher.pth'
    torch.save(dict(state_dict=build(teacher).state_dict(),
                    meta=dict(dataset_meta=dict(classes=('disc', 'square', 'star')))), weights)
    distill = folder / 'distill.py'
    distill.write_text(DISTILL.format(student=str(config), teacher=str(teacher), weights=str(weights)))
    student = trained / 'iter_4.pth'
    assert main(['export', str(config), str(student), str(folder / 'student.onnx')]) == 0
    data = config.parent / 'data'
    return SimpleNamespace(folder=folder, config=config, teacher=teacher, teacher_weights=weights,
                           distill=distill, student=student, run=trained, onnx=folder / 'student.onnx',
                           data=data, images=data / 'VOC2007/JPEGImages',
                           image=data / 'VOC2007/JPEGImages/000000.jpg')


def build(config: Path):
    from mmengine.config import Config

    from hgd_det.deploy.student import build
    return build(Config.fromfile(config))
