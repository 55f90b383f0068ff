"""SSD's detection loss of any head's output, for terms that train or read more than the student's own."""
from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from hgd_det.distill.boxes import point_deltas
from hgd_det.distill.functional import only, precise, rows
from hgd_det.distill.lesson import HeadOutput, Targets, hard_negatives


def detection_loss(head: HeadOutput, targets: Targets, *, ratio: float = 3.0, region: Tensor | None = None,
                   bins: Tensor | None = None) -> Tensor:
    """``1/N+ (sum over hard of CE(z, y) + sum over pos of smoothL1(delta, t))``, as SSDHead has it.

    Args:
        ratio: Negatives per positive, mined by the cross-entropy of this output.
        region: (B, M) bool: these anchors instead, where another output has mined them.
        bins: Those of a distribution head; its expected distances are compared.
    """
    positive = targets.positive
    if region is None:
        region = positive | hard_negatives(head.cls, targets, ratio)
    dtype = precise(head.cls)
    scores = F.cross_entropy(rows(head.cls, region).to(dtype), rows(targets.labels, region), reduction='none')
    deltas = point_deltas(rows(head.reg, positive).to(dtype), None if bins is None else bins.to(dtype))
    boxes = F.smooth_l1_loss(deltas, rows(targets.boxes, positive).to(dtype), reduction='none')
    return (only(scores, region).sum() + only(boxes, positive).sum()) / targets.num_positive


def total_loss(losses: Mapping) -> Tensor:
    """A detector's losses as mmengine adds them up."""
    total = 0.0
    for key, value in losses.items():
        if 'loss' in key:
            total = total + (sum(map(mean_of, value)) if isinstance(value, (list, tuple)) else mean_of(value))
    return total


def mean_of(value: Tensor) -> Tensor:
    """The mean; of one number the number itself, for which nothing is launched."""
    return value.mean() if value.ndim else value
