"""Logit regression (Ba & Caruana, NeurIPS 2014): the teacher's class logits themselves."""
from __future__ import annotations

from torch import Tensor

from hgd_det.distill.functional import agreement, choose, region_scores
from hgd_det.distill.lesson import REGIONS, Lesson, mean_count
from hgd_det.distill.registry import TERMS
from hgd_det.distill.term import Spec, Term
from hgd_det.errors import UserError

SPACES = ('logit', 'prob')


@TERMS.register_module()
class LogitL2(Term):
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
    requires = frozenset({'head', 'targets'})
    schedule = dict(weight='auto')

    def __init__(self, *, space: str = 'logit', center: bool = False, region: str = 'hard'):
        super().__init__()
        choose('LogitL2', 'space', space, SPACES)
        choose('LogitL2', 'region', region, REGIONS)
        if center and space == 'prob':
            raise UserError("LogitL2: center=True with space='prob' changes nothing, as probabilities "
                            "sum to 1; leave it False, or use space='logit'")
        self.space, self.center, self.region = space, center, region

    def setup(self, spec: Spec) -> None:
        spec.same_anchors('LogitL2')
        if self.center and spec.student_head.use_sigmoid:
            raise UserError(f'LogitL2: center=True, but {spec.student_head.kind} scores with sigmoid, '
                            'where the mean of the logits matters; leave it False')

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        student, teacher = region_scores(lesson, self.region)           # (P, C+1), sigmoid heads (P, C)
        agree, half = agreement(student, teacher), 0.5
        if self.space == 'prob':
            sigmoid = student.shape[-1] == lesson.targets.num_classes
            student, teacher = (z.sigmoid() if sigmoid else z.softmax(-1) for z in (student, teacher))
            half = 1.0
        error = student - teacher
        if self.center:
            error = error - error.mean(-1, keepdim=True)
        # An empty choice needs no case of its own: its sum is 0 and still hangs on the student.
        count = mean_count(lesson.region(self.region).sum())
        return dict(loss=half * error.square().sum() / count, agreement=agree)
