"""The examination of a config before a long run."""
import json

import pytest

from hgd_det.testing import tiny_ssd

pytestmark = pytest.mark.thorough

DISTILL = '''
_base_ = {student!r}
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}},
             teacher=dict(model={teacher!r}, checkpoint='untrained'),
             input_size=96, terms=dict(hgd=dict(type='HGD', weight='auto', average=3, warmup=1),
                                       kd=dict(type='LogitKD')))
'''


@pytest.fixture(scope='module')
def lesson(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp('doctor')
    teacher = folder / 'teacher.py'
    teacher.write_text(config.read_text().replace(repr(tiny_ssd()), repr(tiny_ssd(1 / 8))))
    path = folder / 'distill.py'
    path.write_text(DISTILL.format(student=str(config), teacher=str(teacher)))
    return path


def findings(hgd, capsys, *rest, **how):
    status = hgd('doctor', '--images', 6, '--json', *rest, **how)
    found = {}
    for finding in json.loads(capsys.readouterr().out):
        found.setdefault((finding['about'], finding['level']), []).append(finding['text'])
    return status, {key: '; '.join(texts) for key, texts in found.items()}


def test_a_plain_config_in_order(hgd, capsys, config):
    before = sorted(path for path in config.parent.rglob('*'))
    status, found = findings(hgd, capsys)
    assert status == 0 and not [f for f in found if f[1] == 'fail']
    assert '8 images of 3 classes' in found['training data', 'ok']
    assert 'trains a detector alone' in found['student', 'ok']
    assert 'loss_cls' in found['one step', 'ok'] and 'for 4 steps' in found['one step', 'ok']
    assert 'checkpoints of' in found['disk', 'ok']
    assert sorted(path for path in config.parent.rglob('*')) == before      # nothing is written


def test_an_untrained_teacher_fails_and_every_term_is_tried_when_it_begins(hgd, capsys, lesson):
    status, found = findings(hgd, capsys, config=lesson)
    assert status == 1
    assert 'has nothing to teach' in found['teacher', 'fail']
    assert 'of that of detection' in found['term hgd', 'ok']
    assert 'loss_kd' in found['step at iteration 0', 'ok']
    assert 'loss_hgd' in found['step at iteration 1', 'ok']
    assert {about for about, _ in found} >= {'training data', 'validation data', 'term kd', 'disk'}


def test_it_prints_a_line_each_and_a_sum(hgd, capsys):
    assert hgd('doctor', '--images', 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('ok    training data: 8 images') and lines[-1].endswith('0 would fail')


@pytest.mark.parametrize('options, about, text', [
    (['train_dataloader.dataset.ann_file=nowhere.txt'], 'set-up', 'nowhere.txt'),
    (['model.bbox_head.num_classes=5'], 'student', 'its head knows 5 classes, the data has 3'),
    (['optim_wrapper.optimizer.lr=1', 'model.data_preprocessor.std=[0,0,0]'], 'one step', 'not finite'),
    (['train_dataloader.dataset.metainfo.classes="[cat,dog,cow]"'], 'training data', 'nothing to learn from'),
])
def test_what_would_fail_is_named(hgd, capsys, options, about, text):
    status, found = findings(hgd, capsys, options=options)
    assert status == 1 and text in found[about, 'fail'], found


def test_a_disk_too_small_fails(hgd, capsys, monkeypatch):
    import shutil
    from types import SimpleNamespace
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=1000))
    status, found = findings(hgd, capsys)
    assert status == 1 and 'max_keep_ckpts' in found['disk', 'fail']


def test_mistakes_are_named(hgd, capsys):
    assert hgd('doctor', '--images', 0) == 2
    assert 'at least one' in capsys.readouterr().err
    assert hgd('doctor', options=['train_cfg=None']) == 2
    assert 'it has no train_cfg' in capsys.readouterr().err


@pytest.mark.parametrize('count, wanted, indices', [
    (3, 10, [0, 1, 2]), (10, 4, [0, 3, 6, 9]), (1, 1, [0]), (0, 5, [])])
def test_what_is_looked_at_is_spread_evenly_and_all_of_it_where_there_is_less(count, wanted, indices):
    from hgd_det.training.doctor import spread
    assert spread(count, wanted) == indices


def test_a_teacher_is_tested_and_shown_pictures_at_its_own_size(hgd, capsys, lesson, monkeypatch):
    from hgd_det.distill.teacher import Teacher
    shapes, inputs = set(), Teacher.inputs
    monkeypatch.setattr(Teacher, 'inputs', lambda self, batch, samples=(): shapes.add(
        tuple(samples[0].get(self.picture).shape)) or inputs(self, batch, samples))
    options = ['model.teacher.input_size=192', 'model.terms.kd=None']
    _, found = findings(hgd, capsys, config=lesson, options=options)
    assert 'mAP on 4 images' in found.get(('teacher', 'fail'), found.get(('teacher', 'ok')))
    assert 'loss_hgd' in found['step at iteration 1', 'ok'] and shapes == {(3, 192, 192)}
    _, found = findings(hgd, capsys, config=lesson, options=[
        *options, 'train_dataloader.dataset.pipeline.2.keep_ratio=True'])
    assert '192x192' in found['set-up', 'fail'] and 'keep_ratio=False' in found['set-up', 'fail']
