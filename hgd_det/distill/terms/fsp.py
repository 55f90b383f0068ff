"""FSP (Yim et al., CVPR 2017): how the features of one stage turn into those of the next."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from hgd_det.distill.functional import choose
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import Pair
from hgd_det.distill.term import Spec
from hgd_det.errors import UserError

POOLS: Mapping[str, Callable] = dict(max=F.adaptive_max_pool2d, avg=F.adaptive_avg_pool2d)


@TERMS.register_module()
class FSP(MapTerm):
    """The flow between stages: which features of one stage occur with which of the next.

    ::

        G = 1/(HW) sum_ij F1_ij F2_ij^T             (C1, C2), F1 pooled to the size of F2
        L = sum over flows of  mean over images, c1, c2 of (G_S - G_T)^2

    F1 and F2 are consecutive stages of one detector. The matrices of student and teacher compare only
    at equal channels: where a stage's differ, a 1x1 convolution brings the student's map to the
    teacher's, one per stage, so that two flows that meet in a stage share it. Sizes need not be equal.

    The schedule is that of the authors: first a phase without detection, then plain training. Its
    length here, a quarter of the iterations, is torchdistill's (5 of 20 epochs). ``detection=1,
    stop=None`` trains both at once.

    The stages are those of ``sizes``; by default four: the last before the first map that a prediction
    head reads, that one, and the next two (75, 38, 19 and 10 in SSD300).

    Args:
        pool: How the larger map is reduced: ``max`` or ``avg``.
    """
    schedule = dict(weight='auto', stop=0.25, detection=0.0)
    defaults = dict(select='source', adapter='mismatch')

    def __init__(self, *, pool: str = 'max', **stages):
        super().__init__(**stages)
        choose('FSP', 'pool', pool, tuple(POOLS))
        self.pool = POOLS[pool]

    def select(self, pairs: list[Pair], spec: Spec) -> list[Pair]:
        if self.selection['sizes'] is None and self.selection['taps'] is None:
            read = {m.size for m in spec.teacher.sources}
            first = next((i for i, p in enumerate(pairs) if p.teacher.size in read), 0)
            pairs = pairs[max(0, first - 1):first + 3]
        if len(pairs) < 2:
            raise UserError(f'FSP: a flow needs two stages, but there is only {pairs[0].teacher}; '
                            'name more sizes')
        return pairs

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        maps = [(pair.name, self.adapters[pair.name](S), Z) for pair, S, Z in self.maps(lesson)]
        values = {}
        for (one, *first), (other, *second) in pairwise(maps):
            mine, theirs = (flow_matrix(a, b, self.pool) for a, b in zip(first, second, strict=True))
            values[f'{one}_{other}'] = (mine - theirs).square().mean()
        return self.summed(values)


def flow_matrix(first: Tensor, second: Tensor, pool: Callable = F.adaptive_max_pool2d) -> Tensor:
    """(B, C1, C2): mean over the cells of the outer product, the larger map pooled to the smaller."""
    size = tuple(min(both) for both in zip(first.shape[-2:], second.shape[-2:], strict=True))
    first, second = ((x if x.shape[-2:] == size else pool(x, size)).flatten(2) for x in (first, second))
    return first @ second.transpose(1, 2) / first.shape[-1]
