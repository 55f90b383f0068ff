"""The distance between an adapted student map and the teacher's, without ever holding that map.

Written the obvious way, a 300x300 stage keeps the adapted map, both normalised maps, their product
and a gradient for each of them, all at the teacher's channels. Here only the cells that have weight are
read, some thousands at a time, and the gradient is computed in the forward pass while they are in cache.
Only what backward must hand on stays: the gradients of those cells of the student map and of the adapter.
"""
from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hgd_det.distill import functional
from hgd_det.distill.functional import DEAD, EPS, by_cell, channel_norm, precise


def imitation(S: Tensor, Z: Tensor, weight: Tensor | None, bias: Tensor | None, w: Tensor,
              scale: Tensor | None = None, *, distance: str = 'cosine', l2_reduce: str = 'sum',
              z_norm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``value = sum_b scale_b D_b`` with ``D_b = sum_ij w_bij l_ij(weight S_b + bias, Z_b)``.

    ``l`` is :func:`~hgd_det.distill.functional.cosine_distance` or ``l2_distance``. The value is
    differentiable with respect to ``S``, ``weight``, ``bias``, ``w`` and ``scale`` (once: there is
    no gradient of the gradient). Cells without weight cost nothing where ``w`` is a constant. This is the
    way of a CPU; on a GPU all stages go through :func:`~hgd_det.distill.whole_maps.imitations`.

    Args:
        S: Student map (B,C_S,H,W), at the teacher's resolution; any float type.
        Z: Teacher map (B,C_T,H,W), a constant.
        weight, bias: Of the 1x1 adapter, (C_T,C_S[,1,1]) and (C_T,); None: the map as it is.
        w: Weight of each cell (B,H,W), normalised by the caller.
        scale: Factor of each image (B,); 1/B when left out.
        z_norm: ``channel_norm(Z)`` if it is known already.

    Returns:
        The value (a scalar), and ``D`` (B,) without gradient.
    """
    assert S.ndim == Z.ndim == 4, (S.shape, Z.shape)
    assert S.shape[0] == Z.shape[0] and S.shape[2:] == Z.shape[2:], (S.shape, Z.shape)
    assert w.shape == (S.shape[0], *S.shape[2:]), (w.shape, S.shape)
    dtype = precise(S, Z)
    if scale is None:
        scale = w.new_full((S.shape[0],), 1 / max(1, S.shape[0]))
    if weight is None:
        bias = None
    else:
        weight = weight.flatten(1)
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    if distance == 'cosine' and z_norm is None:
        z_norm = channel_norm(Z, None if w.requires_grad else w != 0)
    inputs = (S, Z.detach(), weight, bias, w.to(dtype), scale.to(dtype))
    if not torch.is_grad_enabled():  # then nobody wants the gradients: spare them
        inputs = tuple(None if x is None else x.detach() for x in inputs)
    return _Imitation.apply(*inputs, z_norm, distance, l2_reduce)


class _Imitation(torch.autograd.Function):

    @staticmethod
    def forward(ctx, S, Z, weight, bias, w, scale, z_norm, distance, l2_reduce):
        wants_S, _, wants_weight, wants_bias, wants_w = ctx.needs_input_grad[:5]
        wants_any = wants_S or wants_weight or wants_bias
        dtype = precise(S, Z)
        W = b = dW = db = None
        if weight is not None:
            W, b = weight.to(dtype), bias.to(dtype)
            if wants_weight or wants_bias:
                dW, db = torch.zeros_like(W.t()), torch.zeros_like(b)     # the way round that BLAS is fast
        # float16 would lose the gradient of one cell among 90,000; bfloat16 has the range
        kept = dtype if S.dtype == torch.float16 else S.dtype
        scaled, l_map, room = w * scale[:, None, None], torch.zeros_like(w), _Room(dtype, S.device)
        blocks, saved = [], []

        for images in _blocks(S, Z):
            chosen = None if wants_w else _weighty(w[images])
            s, z = _rows(S[images]), _rows(Z[images])
            count = len(s) if chosen is None else len(chosen)
            dS = s.new_empty(count, s.shape[1], dtype=kept) if wants_S else None
            factor, ell_all = scaled[images].flatten(), l_map[images].view(-1)
            norm = z_norm[images].flatten() if distance == 'cosine' else None
            for piece in _pieces(count, z if z.shape[1] >= s.shape[1] else s):
                cells = piece if chosen is None else chosen[piece]
                s_t, z_t = room.take('S', s, cells), room.take('Z', z, cells)           # (N,C): N cells
                V = s_t if W is None else torch.addmm(b, s_t, W.t(), out=room.like('V', z_t))
                f = _at(factor, cells) if wants_any else None
                ell, dV = _cosine(V, z_t, _at(norm, cells), f, room) if distance == 'cosine' else \
                    _l2(V, z_t, f, l2_reduce, room)
                if chosen is None:
                    ell_all[piece] = ell
                else:
                    ell_all.index_copy_(0, cells, ell)
                if dW is not None:
                    dW.addmm_(s_t.t(), dV)
                    db += dV.sum(0)
                if wants_S:
                    _store(dS[piece], dV, W)
            blocks.append(images)
            saved += [dS, chosen]

        D = (l_map * w).sum((1, 2))
        ctx.save_for_backward(dW, db, l_map if wants_w else None, D, scale, *saved)
        ctx.blocks, ctx.shape = blocks, S.shape
        ctx.dtypes = [None if x is None else x.dtype for x in (S, weight, bias)]
        ctx.mark_non_differentiable(D)
        return (D * scale).sum(), D

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        dW, db, l_map, D, scale, *saved = ctx.saved_tensors
        wants, (dtype_S, dtype_W, dtype_b) = ctx.needs_input_grad, ctx.dtypes
        return (_whole(ctx.shape, ctx.blocks, saved, grad, dtype_S) if wants[0] else None, None,
                (dW.t() * grad).to(dtype_W) if wants[2] else None,
                (db * grad).to(dtype_b) if wants[3] else None,
                l_map * (scale * grad)[:, None, None] if wants[4] else None,
                D * grad if wants[5] else None, None, None, None)


# which cells, and in what order ---------------------------------------------------------------
def _blocks(S: Tensor, Z: Tensor) -> Iterator[slice]:
    """All images at once where both maps lie cell by cell; else as few as it takes, since each is copied."""
    if by_cell(S) and by_cell(Z):
        yield slice(0, len(S))
        return
    each = max(1, functional.WHOLE // max(1, S[:1].numel(), Z[:1].numel()))
    for first in range(0, len(S), each):
        yield slice(first, first + each)


def _weighty(w: Tensor) -> Tensor | None:
    """Numbers (N,) of the cells that have weight; None for all of them."""
    found = (w != 0).flatten().nonzero()[:, 0]
    return None if len(found) == w.numel() else found


def _pieces(count: int, rows: Tensor) -> Iterator[slice]:
    step = max(1, functional.TILE // max(1, rows.shape[1]))
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def _at(x: Tensor, cells: slice | Tensor) -> Tensor:
    return x[cells] if isinstance(cells, slice) else x.index_select(0, cells)


def _rows(x: Tensor) -> Tensor:
    """(B,C,H,W) -> (B*H*W, C): a view where the channels of a cell are neighbours, else a copy."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class _Room:
    """Memory that every piece uses again: fresh memory costs more than the arithmetic in it."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self._kept: dict[str, Tensor] = {}
        self._options = dict(dtype=dtype, device=device)

    def like(self, name: str, x: Tensor) -> Tensor:
        """Uninitialised, of the shape of x."""
        if self._kept.get(name) is None or self._kept[name].numel() < x.numel():
            self._kept[name] = torch.empty(x.numel(), **self._options)
        return self._kept[name][:x.numel()].view(x.shape)

    def take(self, name: str, rows: Tensor, cells: slice | Tensor) -> Tensor:
        """These rows, in the dtype to compute in."""
        if isinstance(cells, slice) or rows.dtype != self._options['dtype']:
            return rows[cells].to(self._options['dtype'])
        out = self.like(name, rows[:1].expand(len(cells), -1))
        return torch.index_select(rows, 0, cells, out=out)


# distances and gradients of N cells -----------------------------------------------------------
def _cosine(V: Tensor, Z: Tensor, norm_z: Tensor, factor: Tensor | None, room: _Room):
    """Distances (N,) and, times ``factor``, their gradient with respect to V (N,C).

    dl/dV = -(Z - cos |Z|/|V| V) / (|V| |Z|), and 0 where a vector has no direction.
    """
    work = room.like('work', Z)
    dot = torch.mul(V, Z, out=work).sum(1)
    norm_v = torch.linalg.vector_norm(V, dim=1)
    valid = (norm_v > EPS) & (norm_z >= DEAD)
    inverse = torch.where(valid, 1 / (norm_v * norm_z), 0)
    cosine = dot.mul_(inverse)
    if factor is not None:
        torch.mul(V, torch.where(valid, -cosine * norm_z / norm_v, 0)[:, None], out=work)
        work.add_(Z).mul_(inverse.mul_(factor).neg_()[:, None])
    return 1 - cosine, work


def _l2(V: Tensor, Z: Tensor, factor: Tensor | None, reduce: str, room: _Room):
    share = 1.0 if reduce == 'sum' else 1 / V.shape[1]
    difference = torch.sub(V, Z, out=room.like('difference', Z))
    ell = torch.mul(difference, difference, out=room.like('work', Z)).sum(1).mul_(share)
    if factor is not None:
        difference.mul_((factor * (2 * share))[:, None])
    return ell, difference


def _store(target: Tensor, dV: Tensor, W: Tensor | None) -> None:
    """``dV W`` into the gradient of these cells of the student map (N,C)."""
    if W is not None and target.dtype == dV.dtype:
        torch.mm(dV, W, out=target)
    else:
        target.copy_(dV if W is None else dV @ W)


def _whole(shape: tuple, blocks: list[slice], saved: list[Tensor | None], grad: Tensor,
           dtype: torch.dtype) -> Tensor:
    """The gradient (B,C,H,W) of the student map: ``grad`` times that of the cells kept, and 0 elsewhere."""
    count, channels, height, width = shape
    whole = None
    for images, kept, chosen in zip(blocks, saved[::2], saved[1::2], strict=True):
        rows = (kept * grad).to(dtype)
        if chosen is not None:
            size = len(range(count)[images]) * height * width
            rows = rows.new_zeros(size, channels).index_copy_(0, chosen, rows)
        part = rows.view(-1, height, width, channels).permute(0, 3, 1, 2)
        if len(part) == count:
            return part
        if whole is None:
            whole = part.new_empty(shape)
        whole[images] = part
    return whole
