"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017): look where the teacher looks."""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hgd_det.distill.adapters import resize_map
from hgd_det.distill.functional import choose, precise, unit_vectors
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import pair_stages
from hgd_det.distill.term import Spec, Term
from hgd_det.errors import UserError

MODES = ('code', 'sum', 'paper')


@TERMS.register_module()
class AttentionTransfer(Term):
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

    Args:
        mode: ``code``, ``sum`` or ``paper``.
        select: Which maps; ``heads`` are those that a prediction head reads.
        sizes: Keep only the pairs whose teacher map has one of these heights.
        l2norm: ``pre`` or ``post`` SSD's L2Norm on the first map; behind it all cells are equally
            active, but for the channels' scales.
    """
    requires = frozenset({'maps'})
    schedule = dict(weight='auto')

    def __init__(self, *, mode: str = 'code', select: str = 'heads',
                 sizes: Sequence[int] | None = None, l2norm: str = 'pre'):
        super().__init__()
        choose('AttentionTransfer', 'mode', mode, MODES)
        self.mode = mode
        self.options = dict(select=select, sizes=sizes, l2norm=l2norm)
        self.pairs = []

    def setup(self, spec: Spec) -> None:
        pairs = pair_stages(spec.student, spec.teacher, **self.options)
        self.pairs = [p for p in pairs if math.prod(p.teacher.size) > 1]
        if not self.pairs:
            raise UserError('AttentionTransfer compares cells, but every pair has only one; choose '
                            'larger sizes or input_size')
        self.use_pairs(self.pairs)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        values = {}
        for pair in self.pairs:
            student = lesson.student.maps[pair.student.tap]                 # (B, C_S, h, w)
            teacher = lesson.teacher.maps[pair.teacher.tap].detach()        # (B, C_T, H, W)
            student, teacher = (x.to(precise(student, teacher)) for x in (student, teacher))
            error = attention(resize_map(student, teacher.shape[-2:])) - attention(teacher)
            values[f'd_{pair.name}'] = self._size(error).mean()
        return dict(loss=sum(values.values()), **{k: v.detach() for k, v in values.items()})

    def _size(self, error: Tensor) -> Tensor:
        """(B,) from (B, H*W)."""
        if self.mode == 'paper':
            return torch.linalg.vector_norm(error, dim=1) / 2     # its gradient is 0 at 0
        return error.square().mean(1) if self.mode == 'code' else error.square().sum(1)

    def describe(self) -> list[dict]:
        return [dict(pair.describe(), name=pair.name, adapter='none') for pair in self.pairs]


def attention(x: Tensor) -> Tensor:
    """(B, H*W), of length 1, from a map (B, C, H, W)."""
    return unit_vectors(x.square().sum(1).flatten(1))
