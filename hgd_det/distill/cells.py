"""The cells of several maps side by side, (B, T) with T the sum of their H W: what is small is then computed
once for all of them. What is constant of a batch's shape is kept.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from hgd_det.device import sent

Sizes = tuple[tuple[int, int], ...]


class Cells:
    """How the maps of some sizes lie in (B, T)."""

    def __init__(self, sizes: Sizes, like: Tensor):
        self.sizes, self.counts = sizes, [h * w for h, w in sizes]
        owners = torch.arange(len(sizes)).repeat_interleave(torch.tensor(self.counts))
        self.stage = owners.to(like.device)                                                 # (T,)
        self.member = torch.nn.functional.one_hot(owners, len(sizes)).to(like.device, like.dtype)   # (T, S)

    def sums(self, x: Tensor) -> Tensor:
        """(B, S): the sum over each map's cells."""
        return x @ self.member

    def spread(self, x: Tensor) -> Tensor:
        """(B, T): each map's value (B, S) in all of its cells."""
        return x.index_select(1, self.stage)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """Each map's (B, H W)."""
        return x.split(self.counts, 1)


def cells_of(sizes: Sequence[Sequence[int]], like: Tensor) -> Cells:
    """Those of maps of these sizes, on the device and in the precision of ``like``."""
    return _cells(tuple(tuple(size) for size in sizes), like.device, like.dtype)


@lru_cache(16)
def _cells(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Cells:
    with torch.inference_mode(False), torch.no_grad():
        return Cells(sizes, torch.empty(0, device=device, dtype=dtype))


# masks from boxes -----------------------------------------------------------------------------
@lru_cache(16)
def _axes(sizes: Sizes, input_shape: tuple[int, int], device: torch.device) -> tuple[Tensor, ...]:
    """Of each column of each map, then of each row of each: its edge of a box, number, cells, pixels."""
    lines = [(axis, at, size[1 - axis], input_shape[1 - axis])
             for axis in (0, 1) for size in sizes for at in range(size[1 - axis])]
    edge, *rest = zip(*lines, strict=True)
    with torch.inference_mode(False), torch.no_grad():
        like = torch.empty(0, device=device)
        return sent(edge, like, torch.long), *(sent(part, like, torch.float32) for part in rest)


@torch.no_grad()
def box_masks(boxes: Tensor, real: Tensor, sizes: Sequence[Sequence[int]], input_shape: tuple[int, int],
              rule: str = 'overlap') -> Tensor:
    """(B, T) bool: `functional.box_mask` of every size, from padded boxes (B, n, 4)."""
    sizes = tuple(tuple(size) for size in sizes)
    if not boxes.shape[1]:
        return torch.zeros(len(boxes), sum(h * w for h, w in sizes), dtype=torch.bool, device=boxes.device)
    edge, at, count, pixels = _axes(sizes, tuple(input_shape), boxes.device)
    low, high = (boxes.index_select(2, edge + 2 * end) * count / pixels for end in (0, 1))  # (B, n, L)
    if rule == 'center':
        cover = (at + 0.5 >= low) & (at + 0.5 < high)
    elif rule == 'area':
        cover = (torch.minimum(high, at + 1) - torch.maximum(low, at)).clamp(0, 1)
    else:   # as functional._cover
        first = torch.minimum((low + 1e-4).floor_().clamp_(min=0), count - 1)
        last = torch.maximum(torch.minimum((high - 1e-4).ceil_(), count), first + 1)
        cover = (at >= first) & (at < last)
    cover = (cover * real[..., None]).float()
    lines = cover.split([w for _, w in sizes] + [h for h, _ in sizes], 2)
    masks = []
    for across, down in zip(lines[:len(sizes)], lines[len(sizes):], strict=True):
        whole = (down[..., None] * across[:, :, None]).amax(1) if rule == 'area' else \
            down.transpose(1, 2) @ across
        masks.append(whole.flatten(1))
    found = torch.cat(masks, 1)
    return found >= 0.5 if rule == 'area' else found > 0.5
