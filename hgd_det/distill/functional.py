"""Pure tensor functions shared by terms and stages.

Shapes: B images, C channels, HxW cells. ``V`` is the adapted student map, ``Z`` the teacher map,
``v`` a weight per cell. Everything is computed in float32, or in float64 where that comes in.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hgd_det.device import launches, padded, sent
from hgd_det.errors import UserError

DEAD = 1e-6  # a teacher vector shorter than this points nowhere (all its ReLUs are off)
EPS = 1e-8   # likewise for the student's
TILE = 2 ** 19       # numbers of the widest tensor in a tile: 2 MB, so that a tile stays in cache
CELLS = 1024         # from here a matrix product is no faster for being longer
WHOLE = 2 ** 24      # numbers of a map from which its images are copied one after the other, if at all

MASKS = ('overlap', 'center', 'area')


def choose(owner: str, name: str, value, options: Sequence[str]) -> None:
    """Refuse an option's value that is not among its choices."""
    if value not in options:
        raise UserError(f'{owner}: {name}={value!r}; choose one of {", ".join(map(repr, options))}')


def precise(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: float32, or float64 where one of the tensors has it."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def unit_vectors(x: Tensor) -> Tensor:
    """``x`` at length 1 along its last dimension; a vector of length <= 1e-8 is 0 and has no gradient."""
    square = x.square().sum(-1, keepdim=True)
    alive = square > EPS ** 2
    return torch.where(alive, x, 0) / torch.where(alive, square, 1).sqrt()


# Distances per cell ---------------------------------------------------------------------------

def cosine_distance(V: Tensor, Z: Tensor) -> Tensor:
    """(B,H,W): ``1 - <V,Z> / (|V| |Z|)`` along channels, in [0, 2].

    A vector without direction (``|V| <= 1e-8`` or ``|Z| < 1e-6``) has distance 1 and no gradient.
    """
    dtype = precise(V, Z)
    V, Z = V.to(dtype), Z.to(dtype)
    square_v, norm_z = V.square().sum(1), Z.square().sum(1).sqrt()
    valid = (square_v > EPS ** 2) & (norm_z >= DEAD)
    lengths = torch.where(valid, square_v, 1).sqrt() * torch.where(valid, norm_z, 1)
    return 1 - torch.where(valid, (V * Z).sum(1) / lengths, 0)


def l2_distance(V: Tensor, Z: Tensor, reduce: str = 'sum') -> Tensor:
    """(B,H,W): squared distance along channels, summed (the paper's) or averaged over them."""
    dtype = precise(V, Z)
    square = (V.to(dtype) - Z.to(dtype)).square()
    return square.sum(1) if reduce == 'sum' else square.mean(1)


# Weights and means ----------------------------------------------------------------------------

def normalized_weights(v: Tensor) -> Tensor:
    """(B,H,W): ``v`` divided by its sum over each image; 0 where an image has no weight at all."""
    total = v.sum((1, 2), keepdim=True)
    return v / torch.where(total > 0, total, 1)


def weighted_mean(values: Tensor, v: Tensor) -> Tensor:
    """(B,): mean over the cells of each image, weighted with ``v``; 0 where there is no weight."""
    return (values * normalized_weights(v)).sum((1, 2))


def focal_factors(losses: Tensor, gamma: float = 2.0, mode: str = 'paper') -> Tensor:
    """(S,): ``(1-p)^gamma`` (``paper``) or ``p^gamma`` (``intent``), with ``p = losses / sum``."""
    total = losses.sum()
    p = losses / torch.where(total > 0, total, 1)
    return (1 - p) ** gamma if mode == 'paper' else p ** gamma


def by_cell(x: Tensor) -> bool:
    """Whether the channels of each cell of (B,C,H,W) are neighbours in memory, and the cells too."""
    return x.permute(0, 2, 3, 1).is_contiguous()


# Statistics along channels --------------------------------------------------------------------

def channel_statistic(S: Tensor, kind: str, norm: str = 'none') -> Tensor:
    """(B,H,W): ``mean`` or population ``variance`` of each cell's vector.

    ``norm='rms'`` takes the statistic of ``S / rms(S)``, the root mean square of an image's map:
    large activations would otherwise saturate a sigmoid behind it.
    """
    if kind == 'mean' and norm == 'none':
        return S.mean(1, dtype=precise(S))
    if norm == 'none' and launches(S) and S.dtype != torch.float16:     # which ends at 65504
        return S.var(1, unbiased=False).to(precise(S))
    mean, variance = channel_moments(S)
    if norm == 'none':
        return variance
    # mean of squares = variance + mean^2, so that the divided map never has to exist
    square = (variance + mean.square()).mean((1, 2), keepdim=True).clamp_min(EPS ** 2)
    return variance / square if kind == 'variance' else mean / square.sqrt()


def channel_moments(S: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance along channels, each (B,H,W)."""
    dtype = precise(S)
    if launches(S) or (S.requires_grad and torch.is_grad_enabled()):
        S = S.to(dtype)
        return S.mean(1), S.var(1, unbiased=False)
    # torch's variance is ten times slower on a CPU than two passes over a tile in cache, and a matrix
    # product faster than its sum over a short vector
    mean = torch.empty(S.shape[0], *S.shape[2:], dtype=dtype, device=S.device)
    variance = torch.empty_like(mean)
    share = torch.full((S.shape[1],), 1 / S.shape[1], dtype=dtype, device=S.device)
    if by_cell(S):
        rows = S.permute(0, 2, 3, 1).view(-1, S.shape[1])
        step = max(1, TILE // S.shape[1])
        for first in range(0, len(rows), step):
            cells = slice(first, first + step)
            tile = rows[cells].to(dtype)
            average = torch.mv(tile, share, out=mean.view(-1)[cells])
            torch.mv((tile - average[:, None]).square_(), share, out=variance.view(-1)[cells])
        return mean, variance
    for where in tiles(S):
        tile = S[where].to(dtype)
        average = tile.mean(1, keepdim=True)
        cells = (where[0], *where[2:])
        mean[cells] = average[:, 0]
        variance[cells] = (tile - average).square_().mean(1)
    return mean, variance


@torch.no_grad()
def channel_norm(Z: Tensor, active: Tensor | None = None) -> Tensor:
    """(B,H,W): Euclidean length of each cell's vector; 0 for cells far from any active one."""
    dtype = precise(Z)
    if launches(Z) or active is None and by_cell(Z):
        return torch.linalg.vector_norm(Z, dim=1, dtype=dtype)
    norm = torch.zeros(Z.shape[0], *Z.shape[2:], dtype=dtype, device=Z.device)
    if by_cell(Z):
        rows = Z.permute(0, 2, 3, 1).view(-1, Z.shape[1])
        for cells in active.flatten().nonzero()[:, 0].split(max(1, TILE // Z.shape[1])):
            norm.view(-1)[cells] = torch.linalg.vector_norm(rows.index_select(0, cells), dim=1, dtype=dtype)
        return norm
    for where in tiles(Z, active):
        norm[(where[0], *where[2:])] = Z[where].to(dtype).square().sum(1).sqrt_()
    return norm


def tiles(x: Tensor, active: Tensor | None = None) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Index a map (B,C,H,W) piece by piece: some whole images, or some rows of one.

    With ``active`` (B,H,W), cells far from any active one are left out: whole images, rows and columns.
    """
    count, channels, height, width = x.shape
    everything = slice(None)
    images = TILE // max(1, channels * height * width)
    # several images make one matrix by a copy: only where one alone is too short
    images = min(images, -(-CELLS // (height * width)))
    if images:
        for b in range(0, count, images):
            if active is None or active[b:b + images].any():
                yield slice(b, b + images), everything, everything, everything
        return
    step = max(1, TILE // (channels * width))
    for b in range(count):
        top, bottom = (0, height) if active is None else _extent(active[b].any(1))
        for y in range(top, bottom, step):
            rows = slice(y, min(y + step, bottom))
            left, right = (0, width) if active is None else _extent(active[b, rows].any(0))
            if left == right:
                continue
            # cutting columns off means copying: only where it saves much
            narrow = right - left < 0.75 * width
            yield slice(b, b + 1), everything, rows, slice(left, right) if narrow else everything


def _extent(active: Tensor) -> tuple[int, int]:
    """First and one past the last true entry of a vector; (0, 0) where there is none."""
    where = active.nonzero().flatten()
    return (int(where[0]), int(where[-1]) + 1) if len(where) else (0, 0)


# Masks from boxes -----------------------------------------------------------------------------

class Padded(NamedTuple):
    """Lists of boxes as one tensor (B,n,4); ``real`` (B,n) tells which of them are there."""
    boxes: Tensor
    real: Tensor


def pad_boxes(boxes: Sequence[Tensor]) -> Padded:
    if not len(boxes):
        return Padded(torch.zeros(0, 0, 4), torch.zeros(0, 0, dtype=torch.bool))
    rows = [b.float().reshape(-1, 4) for b in boxes]
    found, counts = padded(rows), sent([len(b) for b in rows], rows[0])
    return Padded(found, torch.arange(found.shape[1], device=found.device) < counts[:, None])


def box_mask(boxes: Sequence[Tensor] | Padded, size: tuple[int, int], input_shape: tuple[int, int],
             rule: str = 'overlap') -> Tensor:
    """(B,H,W) bool: the cells inside any ground-truth box.

    ``overlap``: the cell and the box share some area; columns ``floor(x1 W/W_in)`` up to
    ``ceil(x2 W/W_in)``, and never less than one cell, so every object counts at every size.
    ``center``: the cell's centre lies in ``[x1, x2)``. ``area``: one box covers at least half of
    the cell.

    Args:
        boxes: Per image (n,4), x1 y1 x2 y2 in input pixels; or what :func:`pad_boxes` makes of that.
        size: (H, W) of the map.
        input_shape: (H, W) of the batch the boxes refer to, padding included.
    """
    choose('box_mask', 'rule', rule, MASKS)
    (height, width), (in_height, in_width) = size, input_shape
    found, real = boxes if isinstance(boxes, Padded) else pad_boxes(boxes)
    x1, y1, x2, y2 = found.unbind(2)
    # product first: a border at the exact centre of a cell stays there
    across = _cover(x1 * width / in_width, x2 * width / in_width, width, rule)
    down = _cover(y1 * height / in_height, y2 * height / in_height, height, rule)
    down = down * real[..., None]
    if rule != 'area':  # covers are 0 or 1, so boxes may be added up
        return down.transpose(1, 2) @ across > 0.5
    mask = torch.zeros(len(found), height, width, dtype=torch.bool, device=found.device)
    for i in range(found.shape[1]):
        mask |= down[:, i, :, None] * across[:, i, None, :] >= 0.5
    return mask


def _cover(low: Tensor, high: Tensor, cells: int, rule: str) -> Tensor:
    """(B,n,cells): how much of each cell along one axis ``[low, high)`` takes, by the rule."""
    at = torch.arange(cells, device=low.device, dtype=low.dtype)
    low, high = low[..., None], high[..., None]
    if rule == 'center':
        return ((at + 0.5 >= low) & (at + 0.5 < high)).to(low.dtype)
    if rule == 'area':
        return (torch.minimum(high, at + 1) - torch.maximum(low, at)).clamp(0, 1)
    # the 1e-4 keeps a border that lies on a cell's edge, up to rounding, out of the next cell
    first = (low + 1e-4).floor().clamp(0, cells - 1)
    last = torch.maximum((high - 1e-4).ceil().clamp(max=cells), first + 1)
    return ((at >= first) & (at < last)).to(low.dtype)


def shared_box_mask(lesson, size: tuple[int, int], rule: str = 'overlap') -> Tensor:
    """:func:`box_mask` of a lesson, computed once per size and rule for all terms and stages."""
    boxes = padded_boxes(lesson)
    return lesson.constant(('box_mask', tuple(size), rule),
                           lambda: box_mask(boxes, size, lesson.input_shape, rule))


def padded_boxes(lesson) -> Padded:
    """A lesson's boxes, (B,n,4) with which of them are there, once for all terms."""
    return lesson.constant('padded boxes', lambda boxes=lesson.boxes: pad_boxes(boxes))


# What a region picks out -----------------------------------------------------------------------

def rows(x: Tensor, chosen: Tensor) -> Tensor:
    """(P, ...) of x (B, M, ...): the chosen (B, M) alone; all where picking out would be waited for."""
    return x.flatten(0, 1) if launches(chosen) else x[chosen]


def only(each: Tensor, chosen: Tensor) -> Tensor:
    """What was computed of :func:`rows`, (P, ...), and 0 in those that are not chosen."""
    if not launches(chosen):
        return each
    return each.masked_fill(~chosen.flatten().view(-1, *[1] * (each.ndim - 1)), 0)


def count_of(chosen: Tensor) -> Tensor:
    """How many are chosen, at least 1."""
    return chosen.sum().clamp(min=1)


# Scores of anchors ----------------------------------------------------------------------------

def agreement(student: Tensor, teacher: Tensor, chosen: Tensor) -> Tensor:
    """Share of the chosen anchors, whose :func:`rows` these are, to which both give the same class; 0 over
    none."""
    return only(student.argmax(-1) == teacher.argmax(-1), chosen).sum() / count_of(chosen)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """(P, K): the summands of KL(softmax(teacher) || softmax(student))."""
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction='none', log_target=True)


def binary_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """(P, C): KL(sigmoid(teacher) || sigmoid(student)) of each class, yes and no together."""
    yes, no = ((F.logsigmoid(t), F.logsigmoid(s)) for t, s in ((teacher, student), (-teacher, -student)))
    return yes[0].exp() * (yes[0] - yes[1]) + no[0].exp() * (no[0] - no[1])
