"""VOC and COCO average precision as mmdet metrics, unrounded, with one entry per class."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from hgd_det.errors import UserError
from hgd_det.evaluation import voc_eval


@METRICS.register_module()
class VOCmAP(BaseMetric):
    """Mean average precision as PASCAL VOC defines it; difficult boxes count neither way.

    Results (with the prefix `voc/`): `mAP`, the mean over classes and thresholds; `AP50` per
    threshold; `AP50/<class>` for every class with a box that counts. With several modes the first
    has these names, the others end in `_<mode>`.

    Args:
        iou_thrs: one overlap threshold, or several.
        mode: `11points` (VOC 2007), `area` (VOC 2010 and later), or both as a sequence.
        legacy: VOC's own box width, x2 - x1 + 1.
    """

    default_prefix = 'voc'

    def __init__(self, iou_thrs: float | Sequence[float] = 0.5,
                 mode: str | Sequence[str] = '11points', *,
                 legacy: bool = True, collect_device: str = 'cpu', prefix: str | None = None):
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.iou_thrs = [iou_thrs] if isinstance(iou_thrs, (int, float)) else list(iou_thrs)
        self.modes = [mode] if isinstance(mode, str) else list(mode)
        self.legacy = legacy
        if unknown := [mode for mode in self.modes if mode not in voc_eval.MODES]:
            raise UserError(f'VOCmAP: mode {unknown[0]!r} is not known; choose from '
                            f'{", ".join(voc_eval.MODES)}')
        if wrong := [thr for thr in self.iou_thrs if not 0 < thr <= 1]:
            raise UserError(f'VOCmAP: overlap threshold {wrong[0]} is not in (0, 1]')
        if not self.iou_thrs or not self.modes:
            raise UserError('VOCmAP needs at least one threshold and one mode')

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            if 'gt_instances' not in sample:
                raise UserError('VOCmAP found no ground truth in the samples: the test pipeline '
                                "needs dict(type='LoadAnnotations', with_bbox=True) before "
                                'PackDetInputs')
            pred, gt = sample['pred_instances'], sample['gt_instances']
            difficult = sample.get('ignored_instances',
                                   {'bboxes': np.zeros((0, 4)), 'labels': np.zeros(0)})
            self.results.append({
                'det_box': _array(pred['bboxes'], np.float32).reshape(-1, 4),
                'det_score': _array(pred['scores'], np.float32),
                'det_label': _array(pred['labels'], np.int64),
                'gt_box': np.concatenate([_array(part['bboxes'], np.float32).reshape(-1, 4)
                                          for part in (gt, difficult)]),
                'gt_label': np.concatenate([_array(part['labels'], np.int64)
                                            for part in (gt, difficult)]),
                'gt_difficult': np.repeat([False, True],
                                          [len(gt['labels']), len(difficult['labels'])]),
            })

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        classes = self.dataset_meta['classes']
        flat = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
        images = np.arange(len(results))
        of_thrs = voc_eval.evaluate(
            **flat, num_classes=len(classes), iou_thrs=self.iou_thrs, modes=self.modes,
            legacy=self.legacy,
            det_image=np.repeat(images, [len(result['det_label']) for result in results]),
            gt_image=np.repeat(images, [len(result['gt_label']) for result in results]))

        metrics = {}
        for mode in self.modes:
            suffix = '' if mode == self.modes[0] else f'_{mode}'
            means = [voc_eval.mean_ap(of_classes, mode) for of_classes in of_thrs]
            metrics[f'mAP{suffix}'] = float(np.mean(means))
            for thr, mean, of_classes in zip(self.iou_thrs, means, of_thrs, strict=True):
                name = f'AP{round(thr * 100):02d}{suffix}'
                metrics[name] = mean
                metrics |= {f'{name}/{label}': result.ap[mode]
                            for label, result in zip(classes, of_classes, strict=True)
                            if result.num_gts}
        return metrics


@METRICS.register_module()
class COCOmAP(CocoMetric):
    """COCO box AP: mmdet's metric computed by faster-coco-eval (the same figures in a fraction of
    the time) where it is installed, unrounded, with `AP/<class>` for every class that has a box.

    Only boxes are evaluated; for masks or proposals use mmdet's `CocoMetric`. At most 100
    detections of an image count, as on the COCO server (mmdet lets up to 1000 count for `mAP_50`
    and the rest). Only the images that were tested count, so a part of a set can be evaluated.
    Without an annotation file the ground truth is taken from the data set, whatever its format;
    difficult boxes then count as crowds, that is, not at all.
    """

    def __init__(self, ann_file: str | None = None, *, proposal_nums: Sequence[int] = (1, 10, 100),
                 **kwargs):
        super().__init__(ann_file, proposal_nums=proposal_nums, **kwargs)
        if self.metrics != ['bbox']:
            raise UserError(f"COCOmAP evaluates metric='bbox' only, not {self.metrics}; use "
                            "mmdet's CocoMetric")
        if self.format_only:
            raise UserError("COCOmAP does not write submission files; use mmdet's CocoMetric with "
                            "format_only=True")

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        if self._coco_api is None:
            for sample in data_samples:
                parts = [(0, sample['gt_instances']),
                         (1, sample.get('ignored_instances', {'bboxes': [], 'labels': []}))]
                sample['instances'] = [
                    {'bbox': box.tolist(), 'bbox_label': int(label), 'ignore_flag': ignored}
                    for ignored, part in parts
                    for box, label in zip(_array(part['bboxes'], np.float64),
                                          _array(part['labels'], np.int64), strict=True)]
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        gts, preds = zip(*results, strict=True)
        truth = self._coco_api.dataset if self._coco_api is not None else self._truth_of(gts)
        names = {category['name']: category['id'] for category in truth['categories']}
        if unknown := [name for name in self.dataset_meta['classes'] if name not in names]:
            raise UserError(f'the annotation file has no category {unknown[0]!r}; it has '
                            f'{", ".join(names)}')
        cat_ids = [names[name] for name in self.dataset_meta['classes']]
        detections = [
            {'image_id': pred['img_id'], 'category_id': cat_ids[label], 'score': float(score),
             'bbox': self.xyxy2xywh(box)}
            for pred in preds
            for box, score, label in zip(pred['bboxes'], pred['scores'], pred['labels'],
                                         strict=True)]
        items = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
        if not detections:
            MMLogger.get_current_instance().warning('nothing was found in any image: every AP is 0')
            return {f'bbox_{item}': 0.0 for item in items}

        with contextlib.redirect_stdout(io.StringIO()):  # progress chatter of the evaluators
            stats, precision = coco_stats(truth, detections, cat_ids=cat_ids,
                                          max_dets=self.proposal_nums, iou_thrs=self.iou_thrs,
                                          img_ids=[pred['img_id'] for pred in preds])
        metrics = dict(zip([f'bbox_{item}' for item in items], map(float, stats[:6]), strict=True))
        for name, of_class in zip(self.dataset_meta['classes'],
                                  np.moveaxis(precision[..., 0, -1], 2, 0), strict=True):
            if (of_class > -1).any():
                metrics[f'AP/{name}'] = float(of_class[of_class > -1].mean())
        return metrics

    def _truth_of(self, gts: Sequence[dict]) -> dict:
        images, annotations = [], []
        for gt in gts:
            images.append({'id': gt['img_id'], 'width': gt['width'], 'height': gt['height']})
            for instance in gt['anns']:
                left, top, right, bottom = instance['bbox']
                annotations.append({
                    'id': len(annotations) + 1, 'image_id': gt['img_id'],
                    'category_id': instance['bbox_label'],
                    'bbox': [left, top, right - left, bottom - top],
                    'area': (right - left) * (bottom - top),
                    'iscrowd': int(instance.get('ignore_flag', 0))})
        categories = [{'id': i, 'name': name}
                      for i, name in enumerate(self.dataset_meta['classes'])]
        return {'images': images, 'annotations': annotations, 'categories': categories}


def coco_tools(faster: bool = True) -> tuple[type, type]:
    """`COCO` and `COCOeval`: those of faster-coco-eval, or pycocotools' own where it is not installed."""
    if faster:
        with contextlib.suppress(ImportError):
            from faster_coco_eval import COCO, COCOeval_faster
            return COCO, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    return COCO, COCOeval


def coco_stats(truth: dict, detections: list[dict], *, cat_ids, max_dets, iou_thrs, img_ids):
    """pycocotools' twelve figures and its precision: (threshold, recall, class, area, max_dets)."""
    COCO, COCOeval = coco_tools()
    coco = COCO()
    coco.dataset = truth
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(detections), iouType='bbox')
    evaluation.params.catIds = list(cat_ids)
    evaluation.params.imgIds = sorted(set(img_ids))
    evaluation.params.maxDets = list(max_dets)
    evaluation.params.iouThrs = np.atleast_1d(iou_thrs)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return np.asarray(evaluation.stats, np.float64), np.asarray(evaluation.eval['precision'])


def _array(value, dtype) -> np.ndarray:
    """An array from what carries boxes, scores or labels: a tensor, mmdet's boxes, an array."""
    value = getattr(value, 'tensor', value)
    if hasattr(value, 'cpu'):
        value = value.cpu().numpy()
    return np.asarray(value, dtype)
