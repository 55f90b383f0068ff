"""FitNets (Romero et al., ICLR 2015): the lower half first, from a hint in the middle."""
from __future__ import annotations

from torch import Tensor

from hgd_det.distill.adapters import POLICIES, build_adapter
from hgd_det.distill.functional import choose, l2_distance, precise
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import explicit_pairs, pair_stages
from hgd_det.distill.term import Spec, Term


@TERMS.register_module()
class FitNets(Term):
    """First train the layers up to one map to give the teacher's, then the whole detector from there.

    ::

        first 30 %   L = 1/2 mean (r(S) - Z)^2          over cells, channels, images; no detection loss
        then         training with detection; the authors add the teacher's soft scores

    ``r`` is a 1x1 convolution, the map the largest one that a head reads (38x38 of SSD300). Stage two is
    a term of its own that begins where this one ends: ``LogitKD`` with ``warmup=0.3``.

    In stage one the layers behind the map get gradients of exactly 0, so they stay as they are, bit for
    bit, but for what an optimizer does without a gradient: weight decay shrinks them, and BatchNorm's
    running statistics follow the batches. Both stages follow from the iteration alone; a run resumes
    in the right one. The 30 % are ours. :class:`Hint` is the same loss on every map, beside detection.

    Args:
        size: Height of the teacher's map; default is the largest among ``select``.
        select: Among which maps; ``heads`` are those that a prediction head reads.
        l2norm: ``post`` or ``pre`` SSD's L2Norm on the first map.
        adapter: ``always`` a regressor, only on channel ``mismatch``, or ``none``.
        pair: A pair of your own, ``dict(student=TAP, teacher=TAP)``, instead of size and select.
    """
    requires = frozenset({'maps'})
    schedule = dict(weight='auto', stop=0.3, detection=0.0)

    def __init__(self, *, size: int | None = None, select: str = 'heads', l2norm: str = 'post',
                 adapter: str = 'always', pair: dict | None = None):
        super().__init__()
        choose('FitNets', 'adapter', adapter, POLICIES)
        self.adapter = adapter
        self.options = dict(select=select, l2norm=l2norm, sizes=None if size is None else [size])
        self.taps = pair

    def setup(self, spec: Spec) -> None:
        if self.taps:
            models = (spec.student_model, spec.teacher_model)
            self.pair, = explicit_pairs(spec.student, spec.teacher, models, [self.taps])
        else:
            self.pair = pair_stages(spec.student, spec.teacher, **self.options)[0]
        self.use_pairs([self.pair])
        self.regressor = build_adapter(self.pair.student.channels, self.pair.teacher.channels, self.adapter)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        student = lesson.student.maps[self.pair.student.tap]             # (B, C_S, h, w)
        teacher = lesson.teacher.maps[self.pair.teacher.tap].detach()    # (B, C_T, H, W)
        adapted = self.regressor(student.to(precise(student)), teacher.shape[-2:])
        return dict(loss=l2_distance(adapted, teacher, 'mean').mean() / 2)

    def describe(self) -> list[dict]:
        return [dict(self.pair.describe(), name=self.pair.name, adapter=str(self.regressor))]
