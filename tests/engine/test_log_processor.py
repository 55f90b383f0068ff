import itertools
from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub
from mmengine.runner import LogProcessor

from hgd_det.cli.test import table
from hgd_det.engine.log_processor import DistillLogProcessor, is_precision


def test_stages_of_every_name_stand_on_a_line_of_their_own(monkeypatch):
    tag = {'loss': 3.0, **{f'hgd_{what}_{stage}': value for stage, value in (
        ('s75', .3), ('s19x25', .2), ('s19x10', .1), ('s5_0', .05)) for what in 'du'}}
    monkeypatch.setattr(LogProcessor, 'get_log_after_iter', lambda *_: (
        dict(tag), '  '.join(f'{key}: {value:.4f}' for key, value in tag.items())))
    _, line = DistillLogProcessor(by_epoch=False).get_log_after_iter(SimpleNamespace(), 0, 'train')
    assert line.split('\n') == [
        'loss: 3.0000',
        '    hgd  s75 0.300 u.30 | s19x25 0.200 u.20 | s19x10 0.100 u.10 | s5_0 0.050 u.05']


_names = itertools.count()


def logged(steps, window=3):
    """The row and the line of the log after these iterations' scalars."""
    hub = MessageHub.get_instance(f'log{next(_names)}')
    for step in steps:
        hub.update_scalars({f'train/{key}': value for key, value in step.items()})
    runner = SimpleNamespace(message_hub=hub, _train_loop=None, max_iters=10, iter=len(steps) - 1)
    return DistillLogProcessor(window_size=window, by_epoch=False).get_log_after_iter(
        runner, len(steps) - 1, 'train')


RAMP = [dict(loss=0., loss_kd=w * raw, kd_raw=raw, kd_weight=w)
        for w, raw in ((.1, 9.), (.5, 4.), (1., 2.), (2., 1.))]
SEVERAL = [dict(loss=0., loss_kd_maps=w * a, loss_kd_head=w * b, loss_kd_aside=7., loss_kd_late=5 * raw,
                kd_raw=a + b, kd_weight=w, kd_late_raw=raw, kd_late_weight=5.)
           for w, a, b, raw in ((.1, 9., 1., 1.), (.5, 4., 2., 3.), (1., 2., 0., 8.))]
LATE = [dict(loss=0., loss_kd=0.), dict(loss=0., loss_kd=0.),
        dict(loss=0., loss_kd=6., kd_raw=3., kd_weight=2.)]


@pytest.mark.parametrize('steps, window', [
    (RAMP, 3), (RAMP, 1), (RAMP, 10), (SEVERAL, 3), (SEVERAL, 2), (LATE, 3)])
def test_raw_and_weight_multiply_to_the_loss_that_they_explain(steps, window):
    row, line = logged(steps, window)
    for term in [key.removesuffix('_raw') for key in row if key.endswith('_raw')]:
        mine = sum(row.get(f'loss_{term}{part}', 0) for part in ('', '_maps', '_head'))
        assert row[f'{term}_raw'] * row[f'{term}_weight'] == pytest.approx(mine, rel=1e-9)
        assert f'{term}_weight: {row[f"{term}_weight"]:.4f}' in line
    last = [step['kd_raw'] for step in steps if 'kd_raw' in step][-window:]
    assert row['kd_raw'] == pytest.approx(sum(last) / len(last))


METRICS = {'voc/mAP': .4667, 'voc/AP50': .4667, 'voc/AP50/dog and cow': 1., 'voc/mAP_area': .5,
           'coco/bbox_mAP': .25, 'coco/bbox_mAP_75': .125, 'coco/AP/cat': .0625,
           'coco/bbox_mAP_s': -1., 'speed': .5}


def test_training_shows_average_precision_in_percent_as_testing_does(monkeypatch):
    line = 'Iter(val) [1/1]    ' + '  '.join(f'{key}: {value:.4f}' for key, value in METRICS.items())
    monkeypatch.setattr(LogProcessor, 'get_log_after_epoch', lambda *_: (dict(METRICS), line))
    tag, told = DistillLogProcessor(by_epoch=False).get_log_after_epoch(SimpleNamespace(), 0, 'val')
    assert tag == METRICS    # what is stored stays from 0 to 1
    shown = table({key: value for key, value in METRICS.items() if key != 'speed'})
    for key, value in METRICS.items():
        if value >= 0 and is_precision(key):
            assert f'  {key}: {100 * value:.2f}%' in told and f'{100 * value:.2f}' in shown
    assert 'bbox_mAP_s: -1.0000' in told and 'speed: 0.5000' in told
