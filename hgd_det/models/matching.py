"""Which anchor stands for which object, and which background is hard: mmdet's rules, a batch at a time.

Shapes: B images, M anchors, at most G objects in an image. What ties is resolved as mmdet does it,
one image at a time.
"""
from __future__ import annotations

import torch
from torch import Tensor

from hgd_det.device import sent

BACKGROUND, NOBODY = -1, -2     # NOBODY: no object, and no background to learn from either
MOST = 2 ** 26      # overlaps held at a time on a GPU: a quarter of a gigabyte


@torch.no_grad()
def match(anchors: Tensor, boxes: Tensor, counts: list[int], inside: Tensor | None = None, *,
          positive: float = 0.5, negative: float = 0.5, forced: float = 0.0) -> Tensor:
    """(B, M) number of the object that each anchor stands for, or BACKGROUND or NOBODY.

    An anchor takes the first of the objects it overlaps most where that IoU is at least ``positive``,
    and is background below ``negative``. Then each object, the later ones last, takes the first of the
    anchors it overlaps most if that IoU is at least ``forced``: `MaxIoUAssigner` with
    ``gt_max_assign_all=False``.

    The loop is over an object's number within its image: step g looks at the g-th object of every image
    that has one, so that B x M values are held however many objects there are.

    Args:
        anchors: (M, 4) x1 y1 x2 y2, the same for every image.
        boxes: (B, G, 4); image i has ``counts[i]``, what follows is padding.
        inside: (B, M) bool, the anchors that take part; None is all.
    """
    order = sorted(range(len(counts)), key=lambda i: -counts[i])    # images with a g-th object come first
    ranked, back = (torch.tensor(places, dtype=torch.long, device=anchors.device)
                    for places in (order, sorted(order, key=order.__getitem__)))
    boxes = boxes[ranked]
    inside = None if inside is None else inside[ranked]
    shape = len(counts), len(anchors)
    best = anchors.new_zeros(shape, dtype=torch.result_type(anchors, boxes))
    owner = ranked.new_zeros(shape)
    taken = ranked.new_full(shape, BACKGROUND)
    edges = anchors.t().contiguous().unbind()   # _iou takes three times as long on strided ones
    for g in range(max(counts, default=0)):
        n = sum(count > g for count in counts)
        iou = _iou(edges, boxes[:n, g])
        if inside is not None:
            iou.masked_fill_(~inside[:n], -1)
        most, where = iou.max(1, keepdim=True)
        taken[:n].scatter_(1, where, torch.where(most >= forced, g, taken[:n].gather(1, where)))
        owner[:n].masked_fill_(iou > best[:n], g)
        torch.maximum(best[:n], iou, out=best[:n])
    owner = torch.where(best >= positive, owner, torch.where(best < negative, BACKGROUND, NOBODY))
    owner = torch.where(taken >= 0, taken, owner)
    if inside is not None:
        owner.masked_fill_(~inside, NOBODY)
    return owner[back]


@torch.no_grad()
def match_all(anchors: Tensor, boxes: Tensor, counts: list[int], inside: Tensor | None = None, *,
              positive: float = 0.5, negative: float = 0.5, forced: float = 0.0) -> Tensor:
    """:func:`match` from all overlaps (B, G, M) at once: few operations and no wait. G is at least 1.

    However many objects there are, about ``MOST`` overlaps are held at a time.
    """
    real = torch.arange(boxes.shape[1], device=boxes.device) < sent(counts, boxes)[:, None]  # (B, G)
    owner = best = taken = None
    step = max(1, MOST // max(1, len(counts) * len(anchors)))
    for first in range(0, boxes.shape[1], step):
        some = slice(first, first + step)
        iou = _all_iou(anchors, boxes[:, some])
        iou = iou.masked_fill_(~real[:, some, None], -1)
        if inside is not None:
            iou.masked_fill_(~inside[:, None], -1)
        most, where = iou.max(2)                                                            # (B, G)
        number = torch.arange(first, first + iou.shape[1], device=boxes.device)
        number = torch.where((most >= forced) & real[:, some], number, BACKGROUND)
        if best is None:
            best, owner = iou.max(1)
            taken = torch.full_like(owner, BACKGROUND)
        else:
            more, other = iou.max(1)
            owner = torch.where(more > best, other + first, owner)
            best = torch.maximum(best, more)
        taken.scatter_reduce_(1, where, number, 'amax')     # the later object wins
    if negative < positive:
        owner = owner.masked_fill(best < positive, NOBODY)
    owner = owner.masked_fill(best < min(negative, positive), BACKGROUND)
    owner = torch.where(taken >= 0, taken, owner)
    return owner if inside is None else owner.masked_fill_(~inside, NOBODY)


def _all_iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """(B, G, M) of boxes (B, G, 4) with anchors, rounded as :func:`_iou` is."""
    (start, end), (low, high) = anchors.split(2, -1), boxes[:, :, None].split(2, -1)
    overlap = (torch.minimum(end, high).sub_(torch.maximum(start, low))).clamp_(min=0)
    overlap = overlap[..., 0] * overlap[..., 1]
    of_box, of_anchor = high - low, end - start
    areas = of_box[..., 0] * of_box[..., 1] + of_anchor[..., 0] * of_anchor[..., 1]
    return overlap.div_(areas.sub_(overlap).clamp_(min=1e-6))


@torch.no_grad()
def mined(loss: Tensor, background: Tensor, ratio: float) -> Tensor:
    """(B, M) bool: what :func:`hardest` takes of the backgrounds, without a wait; of equal losses the first.

    Args: those of :func:`hardest`.
    """
    backgrounds = background.sum(1)
    wanted = torch.minimum((ratio * (background.shape[1] - backgrounds)).long(), backgrounds)
    order = loss.masked_fill(~background, -torch.inf).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places) < wanted[:, None]


def _iou(edges: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """(n, M) of n boxes with anchors given by their four edges, rounded as mmdet's `bbox_overlaps` is."""
    left, top, right, bottom = edges
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)                                            # (n, 1)
    width = torch.minimum(right, x2).sub_(torch.maximum(left, x1)).clamp_(min=0)
    height = torch.minimum(bottom, y2).sub_(torch.maximum(top, y1)).clamp_(min=0)
    overlap = width.mul_(height)
    areas = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top)
    return overlap.div_(areas.sub_(overlap).clamp_(min=1e-6))


@torch.no_grad()
def hardest(loss: Tensor, background: Tensor, ratio: float) -> tuple[Tensor, Tensor, int]:
    """Per image its positives and the ``ratio`` times as many backgrounds of the largest loss.

    Which of equal losses `topk` returns depends on its input's length and on k. Where the last one taken
    equals the first one left, that image is therefore asked anew as SSDHead asks: its backgrounds only.

    Args:
        loss: (B, M), of each anchor as background.
        background: (B, M) bool; the others are positives.

    Returns:
        ``chosen`` (B, S) anchors, the positives first; ``taken`` (B, S) bool, false where an image has
        fewer than S; the largest number of positives in an image.
    """
    positives, backgrounds = (~background).sum(1), background.sum(1)
    wanted = torch.minimum((ratio * positives).long(), backgrounds)
    total = positives + wanted
    longest, most = torch.stack([total, positives]).amax(1).tolist()
    values, chosen = loss.masked_fill(~background, torch.inf).topk(min(longest + 1, loss.shape[1]), 1)
    last = values.gather(1, (total - 1).clamp(min=0)[:, None])
    left = values.gather(1, total.clamp(max=values.shape[1] - 1)[:, None])
    tied = (last == left).squeeze(1) & (wanted > 0) & (wanted < backgrounds)
    for i in tied.nonzero().flatten().tolist():
        places = background[i].nonzero().flatten()
        hard = places[loss[i][places].topk(int(wanted[i])).indices]
        chosen[i, :total[i]] = torch.cat([(~background[i]).nonzero().flatten(), hard])
    taken = torch.arange(longest, device=loss.device) < total[:, None]
    return chosen[:, :longest], taken, most
