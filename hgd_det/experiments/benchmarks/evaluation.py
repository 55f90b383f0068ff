"""From a head's maps to mAP: detections out of a batch of maps, NMS, VOC mAP, COCO AP."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import starmap
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from hgd_det.experiments.benchmarks.data import voc_boxes
from hgd_det.experiments.benchmarks.loss import SHAPES, SSD300, Scale, heads, metas, objects, outputs
from hgd_det.experiments.benchmarks.measure import Row, compare

CLASSES = 20


def run(options: argparse.Namespace) -> Iterator[Row]:
    for scale in (SSD300, SHAPES):
        for batch in (32, 8, 1):
            yield _postprocessing(scale, batch, options.rounds)
    yield _suppression(options.rounds)
    yield from _voc(5000, options.rounds)
    yield _coco(500, options.rounds)


# ------------------------------------------------------------------------------------ detections
def _postprocessing(scale: Scale, batch: int, rounds: int) -> Row:
    theirs, ours = heads(scale)
    maps = outputs(theirs, objects(batch, scale, theirs.num_classes), scale)

    def side(head) -> Callable[[], list]:
        return lambda: head.predict_by_feat(*maps, batch_img_metas=metas(batch, scale), rescale=True)

    sides = side(ours), side(theirs)
    assert_same_detections(*(one() for one in sides))
    return compare(f'BatchedSSDHead / SSDHead, maps to detections, {scale.name}, batch {batch}', 'images/s',
                   *sides, work=batch, rounds=rounds)


def assert_same_detections(ours: list, theirs: list) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine) and all(torch.equal(mine[key], other[key]) for key in ('bboxes', 'scores', 'labels'))


def _suppression(rounds: int) -> Row:
    """One SSD300 image: its candidates of all classes, shifted apart as mmcv's `batched_nms` does."""
    from hgd_det.compat.nms import nms
    head = heads(SSD300)[0]
    maps = outputs(head, objects(1, SSD300, head.num_classes), SSD300)
    found, = head.predict_by_feat(*maps, batch_img_metas=metas(1, SSD300), with_nms=False)
    boxes, scores = found.bboxes + found.labels[:, None] * (found.bboxes.max() + 1), found.scores
    with torch.no_grad():
        assert torch.equal(nms(boxes, scores, 0.45), plain_nms(boxes, scores, 0.45))
        return compare(f'stand-in for mmcv.ops.nms / a loop over the survivors, {len(scores)} boxes',
                       'images/s', lambda: nms(boxes, scores, 0.45), lambda: plain_nms(boxes, scores, 0.45),
                       work=1, rounds=rounds)


def plain_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    from mmdet.structures.bbox import bbox_overlaps
    order, kept = scores.sort(descending=True, stable=True)[1], []
    while len(order):
        kept.append(order[0])
        order = order[1:]
        order = order[bbox_overlaps(boxes[kept[-1]][None], boxes[order])[0] <= threshold]
    return torch.stack(kept)


# ------------------------------------------------------------------------------------------- mAP
def samples(images: int, classes: int, most: int, seed: int = 0) -> list[dict]:
    """What a detector found in as many images, as mmengine's evaluator hands it on.

    Boxes as VOC has them, one in eight difficult; of 20 to ``most`` detections two thirds lie near an object,
    and scores have four digits, so that some tie.
    """
    rng = np.random.default_rng(seed)
    found = []
    for number in range(images):
        truth = voc_boxes(rng, 500, 500)
        label = rng.integers(0, classes, len(truth))
        hard = rng.random(len(truth)) < 1 / 8
        count = rng.integers(20, most + 1)
        of = rng.integers(0, len(truth), count)
        near = rng.random(count) < 2 / 3
        size = (truth[:, 2:] - truth[:, :2])[of]
        box = truth[of] + rng.normal(0, 0.12, (count, 4)) * np.c_[size, size]
        box[~near] = rng.permutation(box[~near] * rng.uniform(0.3, 1, ((~near).sum(), 1)))
        name = np.where(near & (rng.random(count) < 0.8), label[of], rng.integers(0, classes, count))
        order = np.argsort(-(score := np.round(rng.beta(0.5, 3, count), 4)), kind='stable')
        found.append(dict(
            img_id=number, ori_shape=(500, 500),
            pred_instances=_instances(box[order], name[order], score[order]),
            gt_instances=_instances(truth[~hard], label[~hard]),
            ignored_instances=_instances(truth[hard], label[hard])))
    return found


def _instances(boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray | None = None) -> dict[str, Tensor]:
    made = dict(bboxes=torch.from_numpy(boxes).float(), labels=torch.from_numpy(labels))
    return made if scores is None else made | dict(scores=torch.from_numpy(scores).float())


def _voc(images: int, rounds: int) -> Iterator[Row]:
    from mmdet.evaluation.functional import eval_map
    from mmdet.evaluation.metrics import VOCMetric
    from mmengine.logging import MMLogger

    from hgd_det.engine.metrics import VOCmAP
    data, meta = samples(images, CLASSES, 200), dict(classes=tuple(f'class {k}' for k in range(CLASSES)))

    def processed(metric):
        metric.dataset_meta = meta
        metric.process({}, data)
        return metric
    ours, theirs = processed(VOCmAP()), processed(VOCMetric(eval_mode='11points'))
    truths, found = zip(*theirs.results, strict=True)

    def mmdet() -> float:
        with in_this_process():
            return eval_map(found, truths, iou_thr=0.5, logger='silent', use_legacy_coordinate=True,
                            eval_mode='11points')[0]

    def whole(kind: type, **options) -> None:
        with in_this_process(), mock.patch.object(MMLogger.get_current_instance(), 'disabled', True):
            metric = processed(kind(**options))
            metric.compute_metrics(metric.results)

    assert abs(ours.compute_metrics(ours.results)['mAP'] - mmdet()) < 1e-6
    detections = sum(len(sample['pred_instances']['labels']) for sample in data)
    kind = f'{images} images, {detections} detections'
    yield compare(f'VOC mAP / eval_map, {kind}', 'images/s', lambda: ours.compute_metrics(ours.results),
                  mmdet, work=images, rounds=rounds, goal='>=5')
    yield compare(f'VOCmAP / VOCMetric, samples to mAP, {kind}', 'images/s', lambda: whole(VOCmAP),
                  lambda: whole(VOCMetric, eval_mode='11points'), work=images, rounds=rounds)


class _Pool:
    """In place of mmdet's pool of processes: it is spared sending, and its time is that of this process."""

    def __init__(self, count: int):
        self.starmap = lambda function, arguments: list(starmap(function, arguments))

    def close(self) -> None:
        pass


def in_this_process():
    return mock.patch('mmdet.evaluation.functional.mean_ap.Pool', _Pool)


def _coco(images: int, rounds: int) -> Row:
    from hgd_det.engine import metrics
    metric, data = metrics.COCOmAP(), samples(images, 80, 100)
    metric.dataset_meta = dict(classes=tuple(f'class {k}' for k in range(80)))
    metric.process({}, data)
    plain = metrics.coco_tools(faster=False)

    def ours() -> dict[str, float]:
        return metric.compute_metrics(metric.results)

    def pycocotools() -> dict[str, float]:
        with mock.patch.object(metrics, 'coco_tools', lambda: plain):
            return ours()

    mine, other = ours(), pycocotools()
    assert mine.keys() == other.keys() and all(abs(mine[key] - other[key]) < 1e-9 for key in other)
    detections = sum(len(sample['pred_instances']['labels']) for sample in data)
    return compare(f'COCOmAP by faster-coco-eval / by pycocotools, {images} images, {detections} detections',
                   'images/s', ours, pycocotools, work=images, rounds=rounds)
