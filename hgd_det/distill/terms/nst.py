"""Neuron selectivity transfer (Huang & Wang, 2017): channels that respond where the teacher's do."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hgd_det.distill.functional import choose, unit_vectors
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS
from hgd_det.errors import UserError

KERNELS = ('linear', 'poly', 'gaussian')
LEAST_VARIANCE = 1e-4   # below it, rounding in the squared distances would decide


@TERMS.register_module()
class NST(MapTerm):
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
    """
    schedule = dict(weight=50.0)
    adapts, min_cells = False, 4        # on fewer cells a channel is hardly more than a sign

    def __init__(self, *, kernel: str = 'poly', degree: int = 2, offset: float = 0.0,
                 variance: float | None = None, **stages):
        super().__init__(**stages)
        choose('NST', 'kernel', kernel, KERNELS)
        if degree != int(degree) or degree < 1:
            raise UserError(f'NST: degree={degree}; it is a whole number from 1')
        if not offset >= 0:
            raise UserError(f'NST: offset={offset}; it cannot be negative')
        if variance is not None and not variance > 0:
            raise UserError(f'NST: variance={variance}; it must be above 0 (None measures it)')
        self.kernel, self.degree, self.offset, self.variance = kernel, int(degree), offset, variance

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        discrepancy = dict(linear=self._linear, poly=self._poly, gaussian=self._gaussian)[self.kernel]
        values = {}
        for pair, S, Z in self.maps(lesson):
            size = [min(both) for both in zip(S.shape[-2:], Z.shape[-2:], strict=True)]
            s, z = (unit_vectors(F.adaptive_avg_pool2d(x, size).flatten(2)) for x in (S, Z))   # (B, C, cells)
            values[pair.name] = discrepancy(s, z).mean()
        found = self.summed(values)
        return found | dict(loss=found['loss'] / len(values))

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


def square_distances(x: Tensor, y: Tensor) -> Tensor:
    """(B, n, m) from vectors (B, n, N) and (B, m, N)."""
    lengths = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None]
    return (lengths - 2 * x @ y.transpose(1, 2)).clamp(min=0)
