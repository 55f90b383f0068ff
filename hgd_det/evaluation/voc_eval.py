"""PASCAL VOC average precision on flat arrays, whole data sets at once.

Boxes of all images stand in one array each, with their image and label beside them:

    det_image (D,) int   det_label (D,) int   det_box (D, 4) float   det_score (D,) float
    gt_image  (G,) int   gt_label  (G,) int   gt_box  (G, 4) float   gt_difficult (G,) bool

The rule of the VOC development kit: a detection looks only at the ground-truth box of its class
that it overlaps most. Below the threshold it is a false positive. Above, it is ignored if that box
is difficult, a true positive if it is the first to claim the box, and a false positive otherwise.
Nobody is given the second-best box, so the outcome for a detection depends on the order of scores
only through `first to claim`, and no loop over detections is needed.

The figures equal mmdet's `eval_map` digit for digit, including its float32 overlaps and its order
among equal scores, but are not rounded to three digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MODES = ('11points', 'area')


@dataclass(frozen=True)
class ClassResult:
    """The outcome for one class at one overlap threshold; `ap` holds one value per mode."""

    ap: dict[str, float]
    recall: np.ndarray
    precision: np.ndarray
    num_gts: int
    num_dets: int


def evaluate(det_image, det_label, det_box, det_score, gt_image, gt_label, gt_box, gt_difficult, *,
             num_classes: int, iou_thrs: Sequence[float] = (0.5,), modes: Sequence[str] = MODES,
             legacy: bool = True) -> list[list[ClassResult]]:
    """One list of `ClassResult` per threshold.

    `legacy` counts a box from pixel 1 to pixel 2 as 2 wide, as VOC does.
    """
    # stable: detections of an image stay as the detector gave them
    order = np.lexsort((det_image, det_label))
    det_image, det_label = det_image[order], det_label[order]
    det_box, det_score = det_box[order], det_score[order]
    det_group = _group(det_label, det_image)
    # difficult boxes last: where a detection overlaps two boxes equally, the ordinary one takes it
    order = np.lexsort((gt_difficult, gt_image, gt_label))
    gt_image, gt_label = gt_image[order], gt_label[order]
    gt_box, gt_difficult = gt_box[order], gt_difficult[order]

    best_iou, best_gt = best_overlap(det_group, det_box, _group(gt_label, gt_image), gt_box,
                                     legacy=legacy)
    bounds = np.searchsorted(det_label, np.arange(num_classes + 1))
    orders, rank = [], np.empty(len(det_score), np.int64)
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        orders.append(np.argsort(-det_score[start:stop]))
        rank[start:stop][orders[-1]] = np.arange(stop - start)
    _rank_ties(rank, det_group, det_score)
    num_gts = np.bincount(gt_label[~gt_difficult], minlength=num_classes)

    results = []
    for iou_thr in iou_thrs:
        tp, fp = claim(best_iou, best_gt, rank, gt_difficult, iou_thr)
        of_classes = []
        for label in range(num_classes):
            chosen = bounds[label] + orders[label]
            tps, fps = (np.cumsum(hits[chosen], dtype=np.float64) for hits in (tp, fp))
            recall = tps / max(num_gts[label], np.finfo(np.float32).eps)
            precision = tps / np.maximum(tps + fps, np.finfo(np.float32).eps)
            ap = {mode: average_precision(recall, precision, mode) for mode in modes}
            of_classes.append(ClassResult(ap, recall, precision, int(num_gts[label]), len(chosen)))
        results.append(of_classes)
    return results


def mean_ap(results: Sequence[ClassResult], mode: str) -> float:
    """The mean over the classes that have a box that counts (not difficult); 0 if none has."""
    values = [result.ap[mode] for result in results if result.num_gts]
    return float(np.mean(values)) if values else 0.0


def average_precision(recall: np.ndarray, precision: np.ndarray, mode: str) -> float:
    """`11points`: mean over t = 0, 0.1, .. 1 of the best precision at recall >= t (VOC 2007).
    `area`: area under the precision made monotonically decreasing (VOC 2010 and later)."""
    # best[i]: highest precision at recall[i] or further right, and 0 past the end
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if mode == '11points':
        return float(best[np.searchsorted(recall, np.arange(0, 1 + 1e-3, 0.1))].sum() / 11)
    if mode == 'area':
        return float((np.diff(recall, prepend=0.0) * best[:-1]).sum())
    raise ValueError(f'VOC mAP has the modes {" and ".join(MODES)}, not {mode!r}')


def best_overlap(det_group, det_box, gt_group, gt_box, *, legacy: bool):
    """For each detection, which box of its group it overlaps most, and how much.

    Groups are (class, image) pairs as ascending integers. Without a box in the group: overlap -1,
    index -1.
    """
    best_iou = np.full(len(det_group), -1, np.float32)
    best_gt = np.full(len(det_group), -1, np.int64)
    first = np.searchsorted(gt_group, det_group)
    count = np.searchsorted(gt_group, det_group, side='right') - first
    dets = np.flatnonzero(count)
    if not len(dets):
        return best_iou, best_gt
    count = count[dets]
    starts = np.cumsum(count) - count  # where each detection's boxes start in the list of pairs
    pair_det = np.repeat(dets, count)
    pair_gt = np.arange(count.sum()) + np.repeat(first[dets] - starts, count)
    iou = _iou(det_box[pair_det], gt_box[pair_gt], legacy)
    best_iou[dets] = np.maximum.reduceat(iou, starts)
    is_best = iou == best_iou[pair_det]
    best_gt[dets] = np.minimum.reduceat(np.where(is_best, pair_gt, len(gt_group)), starts)
    return best_iou, best_gt


def claim(best_iou, best_gt, rank, gt_difficult, iou_thr: float):
    """True and false positives (bool arrays): of a box's detections the best-ranked is true."""
    hit = best_iou >= iou_thr
    dets = np.flatnonzero(hit)
    dets = dets[~gt_difficult[best_gt[dets]]]
    dets = dets[np.lexsort((rank[dets], best_gt[dets]))]
    first = np.ones(len(dets), bool)
    first[1:] = best_gt[dets[1:]] != best_gt[dets[:-1]]
    tp, fp = np.zeros(len(hit), bool), ~hit
    tp[dets[first]] = True
    fp[dets[~first]] = True
    return tp, fp


def _group(label: np.ndarray, image: np.ndarray) -> np.ndarray:
    return label.astype(np.int64) << 32 | image.astype(np.int64)


def _rank_ties(rank: np.ndarray, group: np.ndarray, score: np.ndarray) -> None:
    """Rank equal scores of one image and class among themselves, in place.

    numpy's default sort is not stable, and mmdet applies it to each image by itself before it does
    to the whole set: only the same call on the same numbers gives the same order. Without ties the
    order is the global one already.
    """
    order = np.lexsort((score, group))
    tied = (group[order[1:]] == group[order[:-1]]) & (score[order[1:]] == score[order[:-1]])
    groups = np.unique(group[order[1:][tied]])
    for start, stop in zip(np.searchsorted(group, groups),
                           np.searchsorted(group, groups, side='right'), strict=True):
        rank[start:stop][np.argsort(-score[start:stop])] = np.arange(stop - start)


def _iou(a: np.ndarray, b: np.ndarray, legacy: bool) -> np.ndarray:
    a, b, one = a.astype(np.float32), b.astype(np.float32), np.float32(legacy)
    size_a, size_b = a[:, 2:] - a[:, :2] + one, b[:, 2:] - b[:, :2] + one
    shared = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + one, 0)
    overlap = shared[:, 0] * shared[:, 1]
    union = size_a[:, 0] * size_a[:, 1] + size_b[:, 0] * size_b[:, 1] - overlap
    return overlap / np.maximum(union, np.float32(1e-6))
