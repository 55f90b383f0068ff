"""What SSD finds in a batch, all images, levels and classes at once: mmdet's detections, to the last tie.

Shapes: B images, M anchors, C classes besides background, N candidates (pairs of anchor and class) of all
images together. Maps are mmdet's, of L levels. Equal scores are ordered as mmdet orders them on a CPU with
the stand-in for mmcv's operators; a GPU or compiled operators may order them otherwise.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmengine.structures import InstanceData
from torch import Tensor

from hgd_det.compat.suppression import survivors

SLACK = 1e-2    # of a logit: more than rounding moves it, whatever the precision


def covers(head, cfg, maps: Sequence[Tensor]) -> bool:
    """Whether :func:`detections` gives what mmdet's loop over the images would."""
    nms, coder, before = dict(cfg.get('nms') or {}), head.bbox_coder, cfg.get('nms_pre', -1)
    split = nms.pop('split_thr', 10000)
    return (type(coder) is DeltaXYWHBBoxCoder and coder.clip_border and not coder.use_box_type
            and not getattr(head.loss_cls, 'custom_cls_channels', False) and not head.use_sigmoid_cls
            and nms.pop('type', 'nms') == 'nms' and not nms.pop('class_agnostic', False)
            and nms.keys() == {'iou_threshold'} and nms['iou_threshold'] >= 0
            and 0 < before * len(head.num_base_priors) < split and cfg.get('max_per_img', -1) >= 0
            and 0 < cfg.get('score_thr', 0) < 1
            and all(level.dtype in (torch.float32, torch.float64) for level in maps))


@torch.no_grad()
def detections(head, cls_scores: Sequence[Tensor], bbox_preds: Sequence[Tensor], metas: Sequence[dict], cfg,
               rescale: bool, with_nms: bool) -> list[InstanceData]:
    """One `InstanceData` of boxes, scores and labels for each image, best first."""
    device, sizes = cls_scores[0].device, [level.shape[-2:] for level in cls_scores]
    priors = head.prior_generator.grid_priors(sizes, dtype=cls_scores[0].dtype, device=device)
    levels = [_candidates(*level, cfg['score_thr'])
              for level in zip(cls_scores, bbox_preds, priors, head.num_base_priors, strict=True)]
    image, anchors, deltas, row, label, score = zip(*levels, strict=True)
    first = np.cumsum([0, *map(len, image)])
    level = np.repeat(np.arange(len(levels)), [*map(len, row)])
    row = np.concatenate(row) + first[level]
    image, label, score = torch.cat(image), np.concatenate(label), np.concatenate(score)
    boxes = _decoded(head, image, torch.cat(anchors), torch.cat(deltas), metas, rescale).cpu().numpy()
    image = image.cpu().numpy()[row]

    order = _best_of_each_level(image * len(levels) + level, score, cfg['nms_pre'])
    image, label, score, boxes = image[order], label[order], score[order], boxes[row[order]]
    if cfg.get('min_bbox_size', -1) >= 0:
        large = (boxes[:, 2:] - boxes[:, :2] > cfg['min_bbox_size']).all(1)
        image, label, score, boxes = image[large], label[large], score[large], boxes[large]
    if with_nms:
        kept = _suppress(image, label, score, boxes, cfg['nms']['iou_threshold'], cfg['max_per_img'])
        image, label, score, boxes = image[kept], label[kept], score[kept], boxes[kept]
    ends = np.searchsorted(image, np.arange(1, len(metas)))
    found = ([torch.from_numpy(part).to(device) for part in np.split(values, ends)]
             for values in (boxes, score, label))
    return [InstanceData(bboxes=box, scores=each, labels=name)
            for box, each, name in zip(*found, strict=True)]


def _candidates(scores: Tensor, preds: Tensor, priors: Tensor, a: int, threshold: float) -> tuple:
    """Of a level the anchors that may say a class with more than ``threshold``, and what they say.

    ``e^x_c / sum_k e^x_k <= e^x_c / (e^x_c + e^x_background)``, so only where a class lies above the
    background by more than the logit of the threshold is a softmax due.

    Returns:
        of R anchors image (R,), prior and deltas (R, 4); of n candidates, which row they are of, label and
        score (n,).
    """
    scores, preds = (maps.unflatten(1, (a, -1)) for maps in (scores, preds))            # (B, A, K, H, W)
    bound = math.log(threshold / (1 - threshold)) - SLACK
    near = _largest(scores[:, :, :-1]) >= scores[:, :, -1] + bound                      # (B, A, H, W)
    near = near.permute(0, 2, 3, 1).cpu().numpy()
    place = np.flatnonzero(near)
    where = image, *_ = tuple(torch.from_numpy(index).to(scores.device)
                              for index in np.unravel_index(place, near.shape))
    likely = scores.permute(0, 3, 4, 1, 2)[where].softmax(-1)[:, :-1].cpu().numpy()
    said = np.flatnonzero(likely > threshold)
    prior = torch.from_numpy(place % near[0].size).to(priors.device)
    return (image, priors[prior], preds.permute(0, 3, 4, 1, 2)[where],
            *np.divmod(said, likely.shape[1]), likely.flatten()[said])


def _largest(maps: Tensor) -> Tensor:
    """``maps.amax(2)``, in half the time where the channels are the innermost axis."""
    while (count := maps.shape[2]) > 6:
        half = (count + 1) // 2
        maps = torch.maximum(maps[:, :, :half], maps[:, :, count - half:])
    return maps.amax(2)


def _decoded(head, image: Tensor, anchors: Tensor, deltas: Tensor, metas: Sequence[dict],
             rescale: bool) -> Tensor:
    """(R, 4) boxes, each within its image and, with ``rescale``, in the pixels of the original."""
    shapes = [tuple(meta['img_shape'][:2]) for meta in metas]
    boxes = torch.empty_like(deltas)
    for shape in dict.fromkeys(shapes):
        of_shape = torch.tensor([shape == each for each in shapes], device=image.device)[image]
        boxes[of_shape] = head.bbox_coder.decode(anchors[of_shape], deltas[of_shape], max_shape=shape)
    if rescale:
        boxes *= boxes.new_tensor([[1 / s for s in meta['scale_factor']] * 2 for meta in metas])[image]
    return boxes


def _best_of_each_level(level: np.ndarray, score: np.ndarray, most: int) -> np.ndarray:
    """Positions, level by level (N,), of at most the ``most`` best of each, best first.

    mmdet's sort is not stable: what ties in a level is put in order by the same call on the same numbers.
    """
    order = np.lexsort((-score, level))
    level, score = level[order], score[order]
    tied = np.unique(level[1:][(level[1:] == level[:-1]) & (score[1:] == score[:-1])])
    starts, ends = (np.searchsorted(level, tied, side=side) for side in ('left', 'right'))
    unsorted = np.empty_like(score)
    unsorted[order] = score
    for start, end in zip(starts, ends, strict=True):
        members = np.sort(order[start:end])
        order[start:end] = members[torch.from_numpy(unsorted[members]).sort(descending=True)[1].numpy()]
    return order[_rank(level) < most]


def _suppress(image: np.ndarray, label: np.ndarray, score: np.ndarray, boxes: np.ndarray, threshold: float,
              most: int) -> np.ndarray:
    """Positions of what NMS leaves, image by image, best first, at most ``most`` of each.

    Boxes are compared where mmcv's `batched_nms` shifts them to, and so with the same rounding.
    """
    if not len(image):
        return np.empty(0, np.int64)
    order = np.lexsort((-score, image))
    image, label, boxes = image[order], label[order], boxes[order]
    starts = np.flatnonzero(np.append(True, image[1:] != image[:-1]))
    far = np.maximum.reduceat(boxes.max(1), starts) + boxes.dtype.type(1)
    far = np.repeat(far, np.diff(np.append(starts, len(image))))
    boxes = boxes + (label.astype(boxes.dtype) * far)[:, None]
    group = image * (label.max() + 1) + label
    place = np.argsort(group, kind='stable')
    keep = np.empty(len(image), bool)
    keep[place] = survivors(boxes[place], np.bincount(group), boxes.dtype.type(threshold))
    order, image = order[keep], image[keep]
    return order[_rank(image) < most]


def _rank(group: np.ndarray) -> np.ndarray:
    """How many of the same group come before each; groups lie one after the other."""
    return np.arange(len(group)) - np.searchsorted(group, group)
