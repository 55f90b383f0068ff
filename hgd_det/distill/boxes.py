"""Pure tensor functions on boxes and on what lies inside them, shared by terms.

Boxes are x1 y1 x2 y2 in pixels of the input; G boxes, M anchors, K crops.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.ops import roi_align
from torch import Tensor

from hgd_det.models.distribution_head import integral


def point_deltas(reg: Tensor, project: Tensor | None) -> Tensor:
    """A head's regression output as (..., 4) deltas; the expectation where it puts out bins."""
    return reg if project is None else integral(reg.unflatten(-1, (4, len(project))), project)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """(P, Q): intersection over union of boxes (P, 4) with boxes (Q, 4); 0 where neither has area.

    Faster with the many along Q: the last dimension lies together in memory.
    """
    left, top, right, bottom = a.T[..., None]                                   # (P, 1) each
    x1, y1, x2, y2 = b.T.contiguous()                                           # (Q,) each
    width = (torch.minimum(right, x2) - torch.maximum(left, x1)).clamp_(min=0)
    inter = (torch.minimum(bottom, y2) - torch.maximum(top, y1)).clamp_(min=0).mul_(width)
    union = (right - left) * (bottom - top) + (x2 - x1) * (y2 - y1) - inter
    return inter / union.clamp_(min=1e-6)


def overlaps(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """``(IoU, DIoU)``, each (M, G), of anchors (M, 4) with boxes (G, 4).

    ``DIoU = IoU - d^2 / c^2``: d is the distance of the centres, c the diagonal of the smallest box
    around both.
    """
    a, b, iou = anchors[:, None], boxes[None], box_iou(anchors, boxes)
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    return iou, iou - apart.square().sum(-1) / around.square().sum(-1).clamp(min=1e-6)


def crops(x: Tensor, boxes: Sequence[Tensor], input_shape: tuple[int, int],
          size: int = 7) -> Tensor:
    """RoIAlign: (B, C, H, W) and per image (n, 4) boxes to (K, C, size, size), images in order.

    A box is carried over by the ratio of map to input, ``W / W_in``: a nominal stride would drift
    where sizes were rounded up (38 cells of stride 8 are more than 300 pixels). Linear in ``x``.
    """
    height, width = x.shape[-2:]
    scale = x.new_tensor([width, height, width, height]) / x.new_tensor([*input_shape[::-1]] * 2)
    rois = torch.cat([torch.cat([b.new_full((len(b), 1), i), b], 1)
                      for i, b in enumerate(boxes)]).to(x)
    rois[:, 1:] *= scale
    return roi_align(x, rois, (size, size), 1.0, 0, 'avg', True)


def all_crops(x: Tensor, boxes: Tensor, input_shape: tuple[int, int], size: int = 7) -> Tensor:
    """(B, n, C, size, size): :func:`crops` of padded boxes (B, n, 4) within the input, without a wait.

    Along each axis a bin is a weighted sum of cells, so that a crop is two matrix products.
    """
    (height, width), (count, number) = x.shape[-2:], boxes.shape[:2]
    low, high = boxes.to(x.dtype).split(2, -1)
    if (height, input_shape[0]) == (width, input_shape[1]):     # both axes at once
        across, down = _bins(low, high, width, input_shape[1], size).unbind(2)              # (B, n, size, W)
    else:
        across, down = (_bins(low[..., axis], high[..., axis], cells, pixels, size)
                        for axis, cells, pixels in ((0, width, input_shape[1]), (1, height, input_shape[0])))
    bands = down.flatten(1, 2) @ x.transpose(1, 2).flatten(2)                               # (B, n size, C W)
    bands = bands.view(count, number, size, -1, width).transpose(2, 3).flatten(2, 3)    # (B, n, C size, W)
    return (bands @ across.transpose(2, 3)).unflatten(2, (-1, size))


def _bins(low: Tensor, high: Tensor, cells: int, pixels: int, size: int) -> Tensor:
    """(..., size, cells): what each cell along an axis counts in the mean of each bin's samples."""
    start, step = low * (cells / pixels) - 0.5, (high - low) * (cells / pixels) / size
    samples = step.ceil().clamp(min=0)[..., None, None]                                     # (..., 1, 1)
    most = torch.arange(-(-cells // size) + 1, device=low.device)
    place = torch.arange(size, device=low.device)[:, None]
    at = start[..., None, None] + step[..., None, None] * (place + (most + 0.5) / samples.clamp(min=1))
    counts = (most < samples) & (at >= -1) & (at <= cells)                          # (..., size, most)
    near = at.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=low.device)
    return ((1 - near.abs()).clamp(min=0) * counts[..., None]).sum(-2) / samples.clamp(min=1)
