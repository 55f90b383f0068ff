"""From one box and its scores per anchor to detections: threshold, NMS, the best few. NumPy only."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from hgd_det.compat.suppression import survivors
from hgd_det.errors import UserError


class Detections(NamedTuple):
    """What was found in one image, best first."""
    boxes: np.ndarray     # (n, 4) float32: x1 y1 x2 y2
    scores: np.ndarray    # (n,) float32
    labels: np.ndarray    # (n,) int64

    def scaled(self, width: float, height: float) -> Detections:
        """Boxes that were fractions of the image, in pixels."""
        return self._replace(boxes=self.boxes * np.float32([width, height, width, height]))

    def above(self, threshold: float) -> Detections:
        keep = self.scores >= threshold
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep])


@dataclass(frozen=True)
class Settings:
    """How detections are chosen; mmdet's `test_cfg`.

    Per level the `before` best pairs of anchor and class go on (0: all); of these, those above
    `score`; then NMS within each class; then the `keep` best.
    """
    score: float = 0.02
    iou: float = 0.45
    keep: int = 200
    before: int = 1000
    levels: tuple[int, ...] = ()    # anchors on each level

    @classmethod
    def of(cls, test_cfg: Mapping, levels: Sequence[int]) -> Settings:
        nms = dict(test_cfg.get('nms') or {})
        kind = nms.pop('type', 'nms')
        unknown = {k: v for k, v in nms.items() if k not in ('iou_threshold', 'split_thr', 'class_agnostic')}
        if kind != 'nms' or unknown or nms.get('class_agnostic'):
            raise UserError(f'the detector suppresses boxes with nms={dict(test_cfg["nms"])}; only plain '
                            'NMS within each class can be exported')
        if test_cfg.get('min_bbox_size', 0) > 0:
            raise UserError(f'min_bbox_size={test_cfg["min_bbox_size"]} drops boxes by their size in the '
                            'original image, which the exported graph does not know; set it to 0')
        return cls(float(test_cfg.get('score_thr', 0)), float(nms['iou_threshold']),
                   int(test_cfg['max_per_img']), max(0, int(test_cfg.get('nms_pre', 0))), tuple(levels))

    def cut(self, classes: int) -> list[tuple[slice, int]]:
        """The levels on which `before` takes something away: their anchors, and how many pairs stay."""
        found, start = [], 0
        for count in self.levels:
            if 0 < self.before < count * classes:
                found.append((slice(start, start + count), self.before))
            start += count
        return found

    def as_dict(self) -> dict:
        return asdict(self)


def detections(boxes: np.ndarray, scores: np.ndarray, settings: Settings) -> Detections:
    """(M, 4) boxes and (M, C) scores of one image to detections."""
    for anchors, count in settings.cut(scores.shape[1]):
        level = scores[anchors]
        least = np.partition(level, level.size - count, axis=None)[level.size - count]
        scores = scores.copy()
        scores[anchors][level < least] = 0
    real = (boxes[:, 2:] > boxes[:, :2]).all(1)
    anchor, label = np.nonzero((scores > settings.score) & real[:, None])
    score = scores[anchor, label]
    order = np.argsort(-score, kind='stable')
    anchor, label, score = anchor[order], label[order], score[order]
    place = np.argsort(label, kind='stable')
    keep = np.empty(len(label), bool)
    keep[place] = survivors(boxes[anchor[place]], np.bincount(label), settings.iou)
    kept = np.flatnonzero(keep)[:settings.keep]    # positions are in order of score
    return Detections(boxes[anchor[kept]].astype(np.float32), score[kept].astype(np.float32), label[kept])


def nms(boxes: np.ndarray, iou: float) -> np.ndarray:
    """Positions that stay of boxes sorted by score, best first."""
    return np.flatnonzero(survivors(boxes, [len(boxes)], iou))
