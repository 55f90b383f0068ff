"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017): look where the teacher looks."""
from __future__ import annotations

import torch
from torch import Tensor

from hgd_det.distill.functional import choose, unit_vectors
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS

MODES = ('code', 'sum', 'paper')


@TERMS.register_module()
class AttentionTransfer(MapTerm):
    """The share of its activity that a map has in each cell (activation-based attention transfer).

    ::

        Q(F) = q / |q|,    q = sum_c F_c^2 over the cells            D = Q(S) - Q(Z)

        L = sum over pairs of mean over images of      code     mean_ij D^2
                                                       sum      sum_ij D^2
                                                       paper    |D| / 2

    The authors' equation is ``paper``, their program is ``code`` (with weight 1000). A detector's maps
    differ in size, and a mean over the cells, of vectors of length 1, makes a 38x38 map count 160 times
    less than a 3x3 map; ``sum`` bounds every pair by 2.

    There is one attention map whatever the number of channels, so there is no adapter. A map that is 0
    everywhere has no attention: Q = 0. A student map of another size is resized to the teacher's. Maps
    of one cell are left out: their attention is always 1.

    Behind SSD's L2Norm all cells are equally active, but for the channels' scales: ``l2norm='pre'``.

    Args:
        mode: ``code``, ``sum`` or ``paper``.
    """
    defaults = dict(l2norm='pre')
    adapts, min_cells = False, 2

    def __init__(self, *, mode: str = 'code', **stages):
        super().__init__(**stages)
        choose('AttentionTransfer', 'mode', mode, MODES)
        self.mode = mode

    def distance(self, V: Tensor, Z: Tensor, lesson: Lesson) -> Tensor:
        error = attention(V) - attention(Z)                             # (B, H*W)
        if self.mode == 'paper':
            return torch.linalg.vector_norm(error, dim=1) / 2           # its gradient is 0 at 0
        return error.square().mean(1) if self.mode == 'code' else error.square().sum(1)


def attention(x: Tensor) -> Tensor:
    """(B, H*W), of length 1, from a map (B, C, H, W)."""
    return unit_vectors(x.square().sum(1).flatten(1))
