"""The imitation of all stages in few operations, for devices where launches cost: whole maps, no pieces.

Equal to :func:`~hgd_det.distill.imitation.imitation` stage by stage. Maps are read in the precision they come
in, sums are float32; float16 is computed in float32, in which the gradient of one cell among 90,000 survives.
What is one number per cell is computed once, for the cells of all stages side by side. The gradient is
computed with the value, as the weights are constants there.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hgd_det.distill.cells import Cells
from hgd_det.distill.functional import DEAD, EPS, precise


def imitations(students: Sequence[Tensor], teachers: Sequence[Tensor], weights: Sequence[Tensor | None],
               biases: Sequence[Tensor | None], w: Tensor, scale: Tensor, cells: Cells, *,
               distance: str = 'cosine', l2_reduce: str = 'sum', z_norm: Tensor | None = None,
               alike: bool = False) -> tuple[Tensor, Tensor]:
    """``(values (S,), D (B, S))``, D without gradient; see `imitation`, whose arguments these are.

    Args:
        w, z_norm: (B, T): the cells of all stages side by side.
        scale: (B, S).
        alike: Whether the gradient of all values is the same, as it is where they are added up; backward is
            then one operation for all stages.
    """
    count = len(students)
    if not torch.is_grad_enabled():
        w, scale, students, weights, biases = w.detach(), scale.detach(), *(
            [None if x is None else x.detach() for x in group] for group in (students, weights, biases))
    options = dict(distance=distance, l2_reduce=l2_reduce, alike=alike, cells=cells, count=count)
    return _Imitations.apply(options, w, scale, z_norm, *students, *(z.detach() for z in teachers), *weights,
                             *biases)


class _Imitations(torch.autograd.Function):

    @staticmethod
    def forward(ctx, options, w, scale, z_norm, *tensors):
        count, cells = options['count'], options['cells']
        students, teachers, weights, biases = (tensors[i * count:(i + 1) * count] for i in range(4))
        wants = ctx.needs_input_grad[4:]
        learns = any(wants)
        vectors, sums, norms = [], [], []
        for S, Z, weight, bias in zip(students, teachers, weights, biases, strict=True):
            dtype = torch.bfloat16 if S.dtype == Z.dtype == torch.bfloat16 else precise(S, Z)
            s, z = _rows(S).to(dtype), _rows(Z).to(dtype)                           # (B, HW, C)
            W = None if weight is None else weight.flatten(1).to(dtype)             # (C_T, C_S)
            V = s if W is None else _adapted(s, W, bias)
            if options['distance'] == 'cosine':
                sums.append((V * z).sum(2, dtype=w.dtype))
                norms.append(torch.linalg.vector_norm(V, dim=2, dtype=w.dtype))
            else:
                V = V - z
                norms.append(torch.linalg.vector_norm(V, dim=2, dtype=w.dtype))
            vectors.append((V, s, z, W))
        factor = w * cells.spread(scale) if learns else None
        norm = torch.cat(norms, 1)                                                  # (B, T)
        if options['distance'] == 'cosine':
            ell, on_V, on_Z = _cosine(torch.cat(sums, 1), norm, z_norm, factor)
        else:
            share = cells.spread(w.new_ones(1, count) if options['l2_reduce'] == 'sum' else torch.cat(
                [w.new_full((1, 1), 1 / Z.shape[1]) for Z in teachers], 1))         # (1, T)
            ell, on_V, on_Z = norm.square() * share, 2 * factor * share if learns else None, None
        D = cells.sums(ell * w)
        gradients = [None] * (3 * count)
        for i, (V, s, z, W) in enumerate(vectors if learns else ()):
            part = slice(sum(cells.counts[:i]), sum(cells.counts[:i + 1]))
            dV = V.mul_(on_V[:, part, None]) if W is not None or on_Z is None else V * on_V[:, part, None]
            if on_Z is not None:
                dV = dV.addcmul_(z, on_Z[:, part, None], value=-1)
            flat = dV.flatten(0, 1)
            if wants[i]:
                gradients[i] = flat if W is None else flat @ W
            if wants[2 * count + i]:
                gradients[count + i] = flat.t() @ s.flatten(0, 1)
            if wants[3 * count + i]:
                gradients[2 * count + i] = flat.sum(0, dtype=w.dtype)
        ctx.save_for_backward(scale, D, ell if ctx.needs_input_grad[1] else None, *gradients)
        ctx.alike, ctx.cells = options['alike'], cells
        ctx.learned = [(i, x.shape, x.dtype) for i, x in enumerate((*students, *weights, *biases))
                       if gradients[i] is not None]
        ctx.mark_non_differentiable(D)
        return (D * scale).sum(0), D

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        scale, D, ell, *gradients = ctx.saved_tensors
        count = len(grad)
        kept = [gradients[i] for i, *_ in ctx.learned]
        if ctx.alike:
            kept = torch._foreach_mul(kept, grad[0]) if kept else []
        else:
            kept = [x * grad[i % count] for x, (i, *_) in zip(kept, ctx.learned, strict=True)]
        found = [None] * (3 * count)
        for x, (i, shape, dtype) in zip(kept, ctx.learned, strict=True):
            if i < count:       # rows of cells: a view in channels last
                x = x.view(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2)
            found[i] = x.view(shape).to(dtype) if i >= count else x.to(dtype)
        dw = ell * ctx.cells.spread(scale * grad) if ctx.needs_input_grad[1] else None
        return (None, dw, D * grad if ctx.needs_input_grad[2] else None, None,
                *found[:count], *[None] * count, *found[count:])


def _rows(x: Tensor) -> Tensor:
    """(B, HW, C): a view where the channels of a cell are neighbours, else a copy."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])


def _adapted(s: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    flat = s.flatten(0, 1)
    made = flat @ W.t() if bias is None else torch.addmm(bias.to(W.dtype), flat, W.t())
    return made.view(*s.shape[:2], -1)


def _cosine(dot: Tensor, norm_v: Tensor, norm_z: Tensor, factor: Tensor | None):
    """Distances (B, T), and the factors of their gradient ``on_V V - on_Z Z``; see `imitation._cosine`."""
    valid = (norm_v > EPS) & (norm_z >= DEAD)
    inverse = (norm_v * norm_z).reciprocal_().masked_fill_(~valid, 0)
    cosine = dot.mul_(inverse)
    if factor is None:
        return 1 - cosine, None, None
    on_Z = inverse.mul_(factor)
    on_V = on_Z * cosine * norm_z / norm_v.clamp(min=EPS)
    return 1 - cosine, on_V, on_Z
