"""FSP (Yim et al., CVPR 2017): how the features of one stage turn into those of the next."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from hgd_det.distill.adapters import POLICIES, build_adapter
from hgd_det.distill.functional import choose, precise
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import pair_stages
from hgd_det.distill.term import Spec, Term
from hgd_det.errors import UserError

POOLS: Mapping[str, Callable] = dict(max=F.adaptive_max_pool2d, avg=F.adaptive_avg_pool2d)


@TERMS.register_module()
class FSP(Term):
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

    Args:
        sizes: Heights of the teacher's maps that are the stages. By default four: the last stage
            before the first map that a prediction head reads, that one, and the next two (75, 38, 19
            and 10 in SSD300).
        pool: How the larger map is reduced: ``max`` or ``avg``.
        adapter: A convolution on channel ``mismatch``, ``always``, or ``none``.
        l2norm: ``post`` or ``pre`` SSD's L2Norm on the first map that a head reads.
    """
    requires = frozenset({'maps'})
    schedule = dict(weight='auto', stop=0.25, detection=0.0)

    def __init__(self, *, sizes: Sequence[int] | None = None, pool: str = 'max',
                 adapter: str = 'mismatch', l2norm: str = 'post'):
        super().__init__()
        choose('FSP', 'pool', pool, tuple(POOLS))
        choose('FSP', 'adapter', adapter, POLICIES)
        self.sizes, self.pool, self.adapter, self.l2norm = sizes, POOLS[pool], adapter, l2norm
        self.pairs = []
        self.adapters = nn.ModuleList()

    def setup(self, spec: Spec) -> None:
        pairs = pair_stages(spec.student, spec.teacher, sizes=self.sizes, l2norm=self.l2norm)
        if self.sizes is None:
            read = {m.size for m in spec.teacher.sources}
            first = next((i for i, p in enumerate(pairs) if p.teacher.size in read), 0)
            pairs = pairs[max(0, first - 1):first + 3]
        if len(pairs) < 2:
            raise UserError(f'FSP: a flow needs two stages, but there is only {pairs[0].teacher}; '
                            'name more sizes')
        self.pairs = pairs
        self.use_pairs(pairs)
        self.adapters.extend(build_adapter(p.student.channels, p.teacher.channels, self.adapter)
                             for p in pairs)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        students = [adapter(_precise(lesson.student.maps[p.student.tap]))
                    for p, adapter in zip(self.pairs, self.adapters, strict=True)]
        teachers = [_precise(lesson.teacher.maps[p.teacher.tap].detach()) for p in self.pairs]
        values = {}
        for flow, mine, theirs in zip(pairwise(self.pairs), pairwise(students), pairwise(teachers),
                                      strict=True):
            error = flow_matrix(*mine, self.pool) - flow_matrix(*theirs, self.pool)
            values[f'd_{flow[0].name}_{flow[1].name}'] = error.square().mean()
        return dict(loss=sum(values.values()), **{k: v.detach() for k, v in values.items()})

    def describe(self) -> list[dict]:
        return [dict(pair.describe(), name=pair.name, adapter=str(adapter))
                for pair, adapter in zip(self.pairs, self.adapters, strict=True)]


def flow_matrix(first: Tensor, second: Tensor, pool: Callable = F.adaptive_max_pool2d) -> Tensor:
    """(B, C1, C2): mean over the cells of the outer product, the larger map pooled to the smaller."""
    size = tuple(min(both) for both in zip(first.shape[-2:], second.shape[-2:], strict=True))
    first, second = ((x if x.shape[-2:] == size else pool(x, size)).flatten(2) for x in (first, second))
    return first @ second.transpose(1, 2) / first.shape[-1]


def _precise(x: Tensor) -> Tensor:
    return x.to(precise(x))
