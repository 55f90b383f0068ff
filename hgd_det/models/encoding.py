"""Boxes as deltas of anchors, without a wait: mmdet's coder copies its means to the device anew each time."""
from __future__ import annotations

import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor

from hgd_det.device import sent


def encode(coder, anchors: Tensor, boxes: Tensor) -> Tensor:
    """``coder.encode`` of boxes (..., 4), to the last bit."""
    if type(coder) is not DeltaXYWHBBoxCoder or coder.use_box_type:
        return coder.encode(anchors.flatten(0, -2), boxes.flatten(0, -2)).view_as(boxes)
    return deltas_between(anchors, boxes, coder.means, coder.stds)


def deltas_between(anchors: Tensor, boxes: Tensor, means=(0., 0., 0., 0.), stds=(1., 1., 1., 1.)) -> Tensor:
    """mmdet's `bbox2delta`, in half as many operations; shapes may broadcast."""
    (start, end), (low, high) = (x.float().split(2, -1) for x in (anchors, boxes))
    centre, extent = (start + end) * 0.5, end - start
    deltas = torch.cat([((low + high) * 0.5 - centre) / extent, ((high - low) / extent).log()], -1)
    if any(means):
        deltas = deltas - sent(tuple(means), deltas, deltas.dtype)
    return deltas / sent(tuple(stds), deltas, deltas.dtype)
