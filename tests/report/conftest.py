"""Runs to report on: hand-made folders, and a family of tiny detectors that were really trained."""
import json
from pathlib import Path

import pytest

from hgd_det.testing import tiny_ssd

STUDENT = '''
model = dict(type='SSD', width=1)
train_cfg = dict(max_iters={total}, val_interval=50)
randomness = dict(seed=0)
'''
TEACHER = STUDENT.replace('width=1', 'width=2')
DISTILLED = STUDENT.replace(
    "dict(type='SSD', width=1)",
    "dict(type='Distiller', student=dict(type='SSD', width=1), "
    "teacher=dict(model='configs/big.py', checkpoint='x'), terms=dict(hgd=dict(type='HGD', weight=1.0)))")

REAL = '''
_base_ = {student!r}
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}}, input_size=96,
             teacher=dict(model={teacher!r}, checkpoint={checkpoint!r}),
             terms=dict(hgd=dict(type='HGD', weight=1.0, warmup=1)))
custom_hooks = [dict(type='DistillHook')]
log_processor = dict(type='DistillLogProcessor', by_epoch=False, window_size=1)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
train_cfg = dict(val_interval=2)
'''


@pytest.fixture
def make_run(tmp_path):
    """Write what a run leaves behind: `make_run('alone', [({'iter': 20, 'loss': 1.0}, ...)])`, a list of rows
    for each time it was started."""
    def make(name, logs, config=STUDENT, file='student.py', last='', total=100) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        text = config.format(total=total)
        (folder / file).write_text(text)
        for number, rows in enumerate(logs):
            data = folder / f'20260101_00000{number}' / 'vis_data'
            data.mkdir(parents=True)
            (data / 'config.py').write_text(text)
            (data / 'scalars.json').write_text(''.join(
                row if isinstance(row, str) else json.dumps(row) + '\n' for row in rows))
        if last:
            (folder / 'last_checkpoint').write_text(str(folder / last))
        return folder

    return make


def evaluation(mAP, **classes):
    return {'voc/mAP': mAP, 'voc/AP50': mAP, **{f'voc/AP50/{name}': value for name, value in classes.items()},
            'voc/mAP_11points': 0.5, 'voc/AP50_11points/disc': 0.5, 'step': 0}


@pytest.fixture
def trio(make_run):
    """Folders of a teacher, a student alone and a distilled one, as logs alone would leave them."""
    def losses(factor, **more):
        return [{'iter': i, 'loss': 9.0, 'loss_cls': factor * 100 / i, 'loss_bbox': 0.5, **more}
                for i in (20, 40, 60, 80, 100)]

    stages = {'loss_hgd': 3.0, 'hgd_d_s12': 0.2, 'hgd_d_s6': 0.1, 'hgd_u_s12': 0.9, 'hgd_u_s6': 0.8}
    return [
        make_run('big', [[*losses(1), evaluation(0.8, disc=0.9, star=0.7)]], TEACHER, 'big.py',
                 'iter_100.pth'),
        make_run('alone', [[*losses(3), evaluation(0.4, disc=0.5, star=0.3)]], last='iter_100.pth'),
        make_run('taught', [[*losses(2, **stages), evaluation(0.5, disc=0.65, star=0.35)]], DISTILLED,
                 'hgd.py', 'iter_100.pth')]


@pytest.fixture(scope='session')
def family(config, hgd, trained, tmp_path_factory) -> list[Path]:
    """Work directories of a teacher, a student alone and a distilled student, trained for four steps."""
    folder = tmp_path_factory.mktemp('family')
    teacher = folder / 'big.py'
    teacher.write_text(config.read_text().replace(repr(tiny_ssd()), repr(tiny_ssd(1 / 8))))
    assert hgd('train', '--work-dir', folder / 'big', config=teacher) == 0
    distilled = folder / 'hgd.py'
    distilled.write_text(REAL.format(student=str(config), teacher=str(teacher),
                                     checkpoint=str(folder / 'big')))
    assert hgd('train', '--work-dir', folder / 'taught', config=distilled) == 0
    return [folder / 'big', trained, folder / 'taught']
