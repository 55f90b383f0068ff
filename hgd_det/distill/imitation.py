"""The distance between an adapted student map and the teacher's, without ever holding that map.

Written the obvious way, a 300x300 stage keeps the adapted map, both normalised maps, their product
and a gradient for each of them, all at the teacher's channels. Here the gradient is computed in the
forward pass, tile by tile, while a tile is in cache; only what backward must hand on stays: the
gradients of the student map and of the adapter.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hgd_det.distill.functional import DEAD, EPS, channel_norm, precise, tiles


def imitation(S: Tensor, Z: Tensor, weight: Tensor | None, bias: Tensor | None, w: Tensor,
              scale: Tensor | None = None, *, distance: str = 'cosine', l2_reduce: str = 'sum',
              z_norm: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``value = sum_b scale_b D_b`` with ``D_b = sum_ij w_bij l_ij(weight S_b + bias, Z_b)``.

    ``l`` is :func:`~hgd_det.distill.functional.cosine_distance` or ``l2_distance``. The value is
    differentiable with respect to ``S``, ``weight``, ``bias``, ``w`` and ``scale`` (once: there is
    no gradient of the gradient). Cells without weight cost little where ``w`` is a constant.

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
        z_norm = channel_norm(Z, None if w.requires_grad else w > 0)
    inputs = (S, Z.detach(), weight, bias, w.to(dtype), scale.to(dtype))
    if not torch.is_grad_enabled():  # then nobody wants the gradients: spare them
        inputs = tuple(None if x is None else x.detach() for x in inputs)
    return _Imitation.apply(*inputs, z_norm, distance, l2_reduce)


class _Imitation(torch.autograd.Function):

    @staticmethod
    def forward(ctx, S, Z, weight, bias, w, scale, z_norm, distance, l2_reduce):
        wants_S, _, wants_weight, wants_bias, wants_w = ctx.needs_input_grad[:5]
        wants_any = wants_S or wants_weight or wants_bias
        dtype, count = precise(S, Z), S.shape[0]
        # where nobody asks for dw, cells without weight can be left out altogether
        active = None if wants_w or S.is_cuda else w > 0
        if active is not None and active.all():
            active = None
        D = torch.zeros(count, dtype=dtype, device=S.device)
        l_map = torch.zeros_like(w) if wants_w else None
        dS = W = b = dW = db = None
        if wants_S:
            # float16 would lose the gradient of one cell among 90,000; bfloat16 has the range
            dS = torch.empty_like(S, dtype=dtype if S.dtype == torch.float16 else S.dtype)
            if active is not None:
                dS.zero_()
        if weight is not None:
            W, b = weight.to(dtype), bias.to(dtype)
            if wants_weight or wants_bias:
                dW, db = torch.zeros_like(W), torch.zeros_like(b)
        scaled = w * scale[:, None, None]
        room = _Room(dtype, S.device)

        for where in tiles(Z if Z.shape[1] >= S.shape[1] else S, active):
            cells = (where[0], *where[2:])
            S_t, Z_t = _columns(S[where], dtype), _columns(Z[where], dtype)  # (C,N): N cells
            V = S_t if W is None else _affine(W, S_t, b, Z_t, room)
            factor = scaled[cells].reshape(-1)
            if distance == 'cosine':
                norm = z_norm[cells].reshape(-1)
                ell, dV = _cosine(V, Z_t, norm, factor if wants_any else None, room)
            else:
                ell, dV = _l2(V, Z_t, factor if wants_any else None, l2_reduce, room)
            ell = ell.view(w[cells].shape)
            D[where[0]] += (ell * w[cells]).sum((1, 2))
            if wants_w:
                l_map[cells] = ell
            if dW is not None:
                dW.addmm_(dV, S_t.t())
                db += dV.sum(1)
            if wants_S:
                _store(dS[where], dV, W)

        ctx.save_for_backward(dS, dW, db, l_map, D, scale)
        ctx.dtypes = [None if x is None else x.dtype for x in (S, weight, bias)]
        ctx.mark_non_differentiable(D)
        return (D * scale).sum(), D

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        dS, dW, db, l_map, D, scale = ctx.saved_tensors
        wants = ctx.needs_input_grad
        dS, dW, db = (None if d is None else (d * grad).to(dtype) for d, dtype in
                      zip((dS, dW, db), ctx.dtypes, strict=True))
        return (dS, None, dW if wants[2] else None, db if wants[3] else None,
                l_map * (scale * grad)[:, None, None] if wants[4] else None,
                D * grad if wants[5] else None, None, None, None)


def _columns(tile: Tensor, dtype: torch.dtype) -> Tensor:
    """(b,C,h,w) -> (C, b*h*w): a view where the layout allows, else a copy of the tile."""
    return tile.transpose(0, 1).reshape(tile.shape[1], -1).to(dtype)


class _Room:
    """Memory that every tile uses again: fresh memory costs more than the arithmetic in it."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self._kept: dict[str, Tensor] = {}
        self._options = dict(dtype=dtype, device=device)

    def like(self, name: str, Z: Tensor) -> Tensor:
        """(C,N), uninitialised, laid out as Z so that both are walked through in one order."""
        if self._kept.get(name) is None or self._kept[name].numel() < Z.numel():
            self._kept[name] = torch.empty(Z.numel(), **self._options)
        flat = self._kept[name][:Z.numel()]
        if _by_cell(Z):
            return flat.view(Z.shape[1], Z.shape[0]).t()
        return flat.view(Z.shape)


def _by_cell(Z: Tensor) -> bool:
    """Whether the channels of a cell are neighbours in memory (channels-last)."""
    return Z.stride(0) == 1 and Z.stride(1) != 1


def _affine(W: Tensor, S: Tensor, b: Tensor, Z: Tensor, room: _Room) -> Tensor:
    V = room.like('V', Z)
    if _by_cell(Z):
        torch.addmm(b, S.t(), W.t(), out=V.t())
    else:
        torch.addmm(b[:, None], W, S, out=V)
    return V


def _cosine(V: Tensor, Z: Tensor, norm_z: Tensor, factor: Tensor | None, room: _Room):
    """Distances (N,) and, times ``factor``, their gradient with respect to V (C,N).

    dl/dV = -(Z - cos |Z|/|V| V) / (|V| |Z|), and 0 where a vector has no direction.
    """
    work = room.like('work', Z)
    dot = torch.mul(V, Z, out=work).sum(0)
    norm_v = torch.mul(V, V, out=work).sum(0).sqrt_()
    valid = (norm_v > EPS) & (norm_z >= DEAD)
    inverse = torch.where(valid, 1 / (norm_v * norm_z), 0)
    cosine = dot.mul_(inverse)
    if factor is not None:
        torch.mul(V, torch.where(valid, -cosine * norm_z / norm_v, 0), out=work)
        work.add_(Z).mul_(inverse.mul_(factor).neg_())
    return 1 - cosine, work


def _l2(V: Tensor, Z: Tensor, factor: Tensor | None, reduce: str, room: _Room):
    share = 1.0 if reduce == 'sum' else 1 / len(V)
    difference = torch.sub(V, Z, out=room.like('difference', Z))
    ell = torch.mul(difference, difference, out=room.like('work', Z)).sum(0).mul_(share)
    if factor is not None:
        difference.mul_(factor * (2 * share))
    return ell, difference


def _store(target: Tensor, dV: Tensor, W: Tensor | None) -> None:
    """``W^T dV`` into the student's gradient (b,C,h,w), without a copy where the layout allows."""
    columns = target.transpose(0, 1).reshape(target.shape[1], -1)
    in_place = columns.data_ptr() == target.data_ptr() and columns.dtype == dV.dtype
    if W is not None and in_place:
        torch.mm(W.t(), dV, out=columns)
        return
    dS = dV if W is None else W.t() @ dV
    count, channels, height, width = target.shape
    target.copy_(dS.view(channels, count, height, width).transpose(0, 1))
