"""Hints: plain L2 imitation of the maps that the prediction heads read."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hgd_det.distill.adapters import POLICIES, build_adapter
from hgd_det.distill.functional import choose, l2_distance, precise
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import explicit_pairs, pair_stages
from hgd_det.distill.term import Spec, Term

NORMALIZATIONS = ('none', 'channels')


@TERMS.register_module()
class Hint(Term):
    """FitNets' hint (Romero et al., ICLR 2015) on a detector, trained end to end.

    ::

        L = sum over pairs of mean_ij sum_c (V - Z)^2 [/ C_T]         V = resize(adapter(S))

    averaged over the images. ``normalize='none'`` is the rival in HGD's Table 3 (Eq. 1 and 3 of
    that paper); ``'channels'`` divides by the teacher's channels, as the hint of Chen et al. does
    here, whose weight is 0.5.

    Args:
        normalize: ``'none'`` or ``'channels'``.
        adapter: ``always`` a 1x1 convolution (reported to help at equal channels too), only on
            channel ``mismatch``, or ``none``.
        select: Which maps; ``heads`` are those that a prediction head reads.
        sizes: Keep only the pairs whose teacher map has one of these heights.
        l2norm: ``post`` or ``pre`` SSD's L2Norm on the first map; behind it vectors have norm 20.
        taps: Pairs of your own, ``[dict(student=TAP, teacher=TAP), ...]``, instead of select.
    """
    requires = frozenset({'maps'})
    schedule = dict(weight='auto')

    def __init__(self, *, normalize: str = 'none', adapter: str = 'always', select: str = 'heads',
                 sizes: Sequence[int] | None = None, l2norm: str = 'post',
                 taps: Sequence[dict] | None = None):
        super().__init__()
        choose('Hint', 'normalize', normalize, NORMALIZATIONS)
        choose('Hint', 'adapter', adapter, POLICIES)
        self.normalize, self.adapter = normalize, adapter
        self.options = dict(select=select, sizes=sizes, l2norm=l2norm)
        self.taps = taps
        self.pairs = []
        self.adapters = nn.ModuleList()

    def setup(self, spec: Spec) -> None:
        if self.taps:
            models = (spec.student_model, spec.teacher_model)
            self.pairs = explicit_pairs(spec.student, spec.teacher, models, self.taps)
        else:
            self.pairs = pair_stages(spec.student, spec.teacher, **self.options)
        self.use_pairs(self.pairs)
        self.adapters.extend(build_adapter(p.student.channels, p.teacher.channels, self.adapter)
                             for p in self.pairs)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        values = {}
        for pair, adapter in zip(self.pairs, self.adapters, strict=True):
            student = lesson.student.maps[pair.student.tap]             # (B, C_S, h, w)
            teacher = lesson.teacher.maps[pair.teacher.tap].detach()    # (B, C_T, H, W)
            adapted = adapter(student.to(precise(student)), teacher.shape[-2:])
            reduce = 'mean' if self.normalize == 'channels' else 'sum'
            values[pair.name] = l2_distance(adapted, teacher, reduce).mean()
        return dict(loss=sum(values.values()), **{k: v.detach() for k, v in values.items()})

    def describe(self) -> list[dict]:
        return [dict(pair.describe(), name=pair.name, adapter=str(adapter))
                for pair, adapter in zip(self.pairs, self.adapters, strict=True)]
