"""Logit regression (Ba & Caruana, NeurIPS 2014): the teacher's class logits themselves."""
from __future__ import annotations

from torch import Tensor

from hgd_det.distill.functional import agreement, choose, only
from hgd_det.distill.head_term import HeadTerm
from hgd_det.distill.lesson import Lesson, mean_count
from hgd_det.distill.registry import TERMS
from hgd_det.distill.term import Spec
from hgd_det.errors import UserError

SPACES = ('logit', 'prob')


@TERMS.register_module()
class LogitL2(HeadTerm):
    """Imitate the class logits of every anchor that matters by their squared distance.

    ::

        space='logit'    L = 1/2 mean_{a in region} |z_S,a - z_T,a|^2
        space='prob'     L =     mean_{a in region} |p_S,a - p_T,a|^2       p = softmax(z)

    Logits tell how unlikely the teacher finds each wrong class; in probabilities all of these are
    nearly 0. A softmax ignores a constant added to all logits of an anchor, their distance does
    not: ``center=True`` takes the mean over the classes off the difference. On a sigmoid head that
    constant means something, so there ``center`` is refused, and p = sigmoid(z).

    Args:
        space: ``logit`` or ``prob``.
        center: Compare logits less their mean over the classes, background included.
        region: ``hard`` (anchors of objects and the negatives that SSD's loss mines), ``pos`` or
            ``all``; the mean is over its anchors, averaged over data-parallel processes.
    """
    schedule = dict(weight='auto')

    def __init__(self, *, space: str = 'logit', center: bool = False, region: str = 'hard'):
        super().__init__(region=region)
        choose('LogitL2', 'space', space, SPACES)
        if center and space == 'prob':
            raise UserError("LogitL2: center=True with space='prob' changes nothing, as probabilities "
                            "sum to 1; leave it False, or use space='logit'")
        self.space, self.center = space, center

    def setup(self, spec: Spec) -> None:
        super().setup(spec)
        if self.center and self.sigmoid:
            raise UserError(f'LogitL2: center=True, but {spec.student_head.kind} scores with sigmoid, '
                            'where the mean of the logits matters; leave it False')

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        student, teacher, chosen = self.scores(lesson)                  # (P, C+1), sigmoid heads (P, C)
        agree, half = agreement(student, teacher, chosen), 0.5
        if self.space == 'prob':
            student, teacher = (z.sigmoid() if self.sigmoid else z.softmax(-1) for z in (student, teacher))
            half = 1.0
        error = student - teacher
        if self.center:
            error = error - error.mean(-1, keepdim=True)
        count = mean_count(chosen.sum())
        return dict(loss=half * only(error, chosen).square().sum() / count, agreement=agree)
