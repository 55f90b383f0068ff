"""A head's level maps as one row per anchor, and the gradient of a few of the rows.

Shapes: B images, M anchors, K outputs per anchor; a level's map is ``(B, A*K, H, W)``. The anchors' order
is mmdet's: by level, row, column, and anchor within the cell.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def anchor_rows(maps: Sequence[Tensor], priors: Sequence[int]) -> Tensor:
    """(B, M, K) copy of level maps with ``priors`` anchors per cell; no gradient flows through it."""
    width = maps[0].shape[1] // priors[0]
    counts = [a * level.shape[2] * level.shape[3] for level, a in zip(maps, priors, strict=True)]
    rows = maps[0].new_empty(len(maps[0]), sum(counts), width)
    for level, a, part in zip(maps, priors, rows.split(counts, 1), strict=True):
        part.unflatten(1, (*level.shape[2:], a)).flatten(3).copy_(level.permute(0, 2, 3, 1))
    return rows


def all_rows(maps: Sequence[Tensor], priors: Sequence[int]) -> Tensor:
    """(B, M, K) of level maps, through which every row's gradient flows; maps in channels last are not copied
    but to be joined."""
    width = maps[0].shape[1] // priors[0]
    return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, width) for level in maps], 1)


def pick(maps: Sequence[Tensor], priors: Sequence[int], rows: Tensor, chosen: Tensor) -> Tensor:
    """(B, S, K): of the maps' ``rows`` those that ``chosen`` (B, S) names.

    Forward it is ``anchor_rows(maps, priors)`` gathered by ``chosen``. Backward it writes S rows into
    zeros that lie in memory as the maps do; through a gather, every row would be carried back.
    """
    return _Pick.apply(rows, chosen, tuple(priors), *maps)


class _Pick(torch.autograd.Function):

    @staticmethod
    def forward(ctx, rows: Tensor, chosen: Tensor, priors: tuple[int, ...], *maps: Tensor) -> Tensor:
        ctx.save_for_backward(chosen)
        ctx.priors, ctx.shapes = priors, [level.shape for level in maps]
        ctx.channels_last = [not level.is_contiguous() and
                             level.is_contiguous(memory_format=torch.channels_last) for level in maps]
        image = torch.arange(len(rows), device=chosen.device)[:, None] * rows.shape[1]
        return rows.flatten(0, 1).index_select(0, (chosen + image).flatten()).view(
            *chosen.shape, rows.shape[2])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        chosen, = ctx.saved_tensors
        sizes = [shape.numel() for shape in ctx.shapes]
        places = _places(chosen, grad.shape[2], ctx.priors, ctx.shapes, ctx.channels_last)
        parts = grad.new_zeros(sum(sizes)).scatter_add_(0, places.flatten(), grad.flatten()).split(sizes)
        return None, None, None, *(
            part.view(b, h, w, c).permute(0, 3, 1, 2) if last else part.view(b, c, h, w)
            for part, (b, c, h, w), last in zip(parts, ctx.shapes, ctx.channels_last, strict=True))


def _places(chosen: Tensor, width: int, priors: tuple[int, ...], shapes: list[torch.Size],
            channels_last: list[bool]) -> Tensor:
    """(B, S, K): where the chosen anchors' outputs lie when all maps are laid out one after the other."""
    first, step, stride, start = [], [], [], 0
    for a, (b, c, h, w), last in zip(priors, shapes, channels_last, strict=True):
        cell, anchor = (torch.arange(n, device=chosen.device) for n in (h * w, a))
        channel = 1 if last else h * w
        begin = start + cell[:, None] * (c if last else 1) + anchor * (width * channel)     # (H*W, A)
        first.append(begin.flatten())
        step.append(torch.full_like(first[-1], channel))
        stride.append(torch.full_like(first[-1], c * h * w))
        start += b * c * h * w
    first, step, stride = (torch.cat(parts)[chosen] for parts in (first, step, stride))     # (B, S)
    first = first + stride * torch.arange(len(chosen), device=chosen.device)[:, None]
    return first[..., None] + step[..., None] * torch.arange(width, device=chosen.device)
