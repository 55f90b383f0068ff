"""Neuron selectivity transfer (Huang & Wang, 2017): channels that respond where the teacher's do."""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hgd_det.distill.functional import choose, precise, unit_vectors
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import pair_stages
from hgd_det.distill.term import Spec, Term
from hgd_det.errors import UserError

KERNELS = ('linear', 'poly', 'gaussian')
CELLS = 4               # on fewer cells a channel is hardly more than a sign
LEAST_VARIANCE = 1e-4   # below it, rounding in the squared distances would decide


@TERMS.register_module()
class NST(Term):
    """The distribution of the channels' spatial patterns (neuron selectivity transfer).

    ::

        L = mean over pairs, images of  mean_ii' k(s_i, s_i') + mean_jj' k(z_j, z_j') - 2 mean_ij k(s_i, z_j)

        linear      k(x, y) = x.y
        poly        k(x, y) = (x.y + offset)^degree
        gaussian    k(x, y) = exp(-|x - y|^2 / (2 variance))

    ``s_i`` and ``z_j`` are the channels of one map in student and teacher, each flattened over the cells
    and scaled to length 1. The value is the squared maximum mean discrepancy between the two sets, so
    the numbers of channels may differ and no adapter is needed; the linear kernel leaves the squared
    distance of the two means. A channel that is off everywhere is the zero vector. Of maps of unequal
    size the larger is averaged down; pairs below 4 cells are left out.

    Args:
        kernel: ``poly``, ``linear`` or ``gaussian``.
        degree, offset: Of the ``poly`` kernel.
        variance: Of the ``gaussian`` kernel; None takes the mean squared distance between the
            student's and the teacher's channels of each image (a constant to the gradient).
        select: Which maps; ``heads`` are those that a prediction head reads.
        sizes: Keep only the pairs whose teacher map has one of these heights.
        l2norm: ``post`` or ``pre`` SSD's L2Norm on the first map.
    """
    requires = frozenset({'maps'})
    schedule = dict(weight=50.0)

    def __init__(self, *, kernel: str = 'poly', degree: int = 2, offset: float = 0.0,
                 variance: float | None = None, select: str = 'heads',
                 sizes: Sequence[int] | None = None, l2norm: str = 'post'):
        super().__init__()
        choose('NST', 'kernel', kernel, KERNELS)
        if degree != int(degree) or degree < 1:
            raise UserError(f'NST: degree={degree}; it is a whole number from 1')
        if not offset >= 0:
            raise UserError(f'NST: offset={offset}; it cannot be negative')
        if variance is not None and not variance > 0:
            raise UserError(f'NST: variance={variance}; it must be above 0 (None measures it)')
        self.kernel, self.degree, self.offset, self.variance = kernel, int(degree), offset, variance
        self.options = dict(select=select, sizes=sizes, l2norm=l2norm)
        self.pairs = []

    def setup(self, spec: Spec) -> None:
        pairs = pair_stages(spec.student, spec.teacher, **self.options)
        self.pairs = [p for p in pairs
                      if min(math.prod(p.student.size), math.prod(p.teacher.size)) >= CELLS]
        if not self.pairs:
            raise UserError(f'NST compares where channels respond, but no pair has {CELLS} cells (sizes '
                            f'{[p.teacher.size[0] for p in pairs]}); choose larger sizes or input_size')
        self.use_pairs(self.pairs)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        discrepancy = dict(linear=self._linear, poly=self._poly, gaussian=self._gaussian)[self.kernel]
        values = {}
        for pair in self.pairs:
            student = lesson.student.maps[pair.student.tap]                 # (B, C_S, h, w)
            teacher = lesson.teacher.maps[pair.teacher.tap].detach()        # (B, C_T, H, W)
            dtype = precise(student, teacher)
            size = [min(both) for both in zip(student.shape[-2:], teacher.shape[-2:], strict=True)]
            s, z = (unit_vectors(F.adaptive_avg_pool2d(x.to(dtype), size).flatten(2))
                    for x in (student, teacher))                            # (B, C, cells)
            values[f'd_{pair.name}'] = discrepancy(s, z).mean()
        return dict(loss=sum(values.values()) / len(values), **{k: v.detach() for k, v in values.items()})

    def _linear(self, s: Tensor, z: Tensor) -> Tensor:
        return (s.mean(1) - z.mean(1)).square().sum(-1)

    def _poly(self, s: Tensor, z: Tensor) -> Tensor:
        def mean(x: Tensor, y: Tensor) -> Tensor:
            return (x @ y.transpose(1, 2) + self.offset).pow(self.degree).mean((1, 2))
        return mean(s, s) + mean(z, z) - 2 * mean(s, z)

    def _gaussian(self, s: Tensor, z: Tensor) -> Tensor:
        across = square_distances(s, z)
        variance = across.detach().mean((1, 2), keepdim=True).clamp(min=LEAST_VARIANCE) \
            if self.variance is None else self.variance

        def mean(distances: Tensor) -> Tensor:
            return torch.exp(-distances / (2 * variance)).mean((1, 2))
        return mean(square_distances(s, s)) + mean(square_distances(z, z)) - 2 * mean(across)

    def describe(self) -> list[dict]:
        return [dict(pair.describe(), name=pair.name, adapter='none') for pair in self.pairs]


def square_distances(x: Tensor, y: Tensor) -> Tensor:
    """(B, n, m) from vectors (B, n, N) and (B, m, N)."""
    lengths = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None]
    return (lengths - 2 * x @ y.transpose(1, 2)).clamp(min=0)
