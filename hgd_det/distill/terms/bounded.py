"""Chen et al. 2017 (NeurIPS), part two: the teacher's box error is a bound, not a target."""
from __future__ import annotations

from torch import Tensor

from hgd_det.distill.functional import count_of, only, rows
from hgd_det.distill.head_term import HeadTerm
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.registry import TERMS
from hgd_det.distill.term import HeadSpec
from hgd_det.errors import UserError


@TERMS.register_module()
class BoundedRegression(HeadTerm):
    """Push a box further only where the student is not yet better than the teacher.

    ::

        e   = sum over the 4 deltas of (delta - t)^2                  t = encoded target
        L_b = (1 / N+) sum_{positive a} e_S,a 1[e_S,a + margin > e_T,a]

    The comparison is made anchor by anchor, is strict, and is a constant to the gradient: the pull
    is towards the ground truth, never towards the teacher's box. Units are encoded deltas: with
    SSD's stds an error of a tenth of the anchor's width counts 1. The paper's nu is this term's
    ``weight``.

    A distribution head's deltas are its bins' expectation; the two heads may differ in that.

    Args:
        margin: How much better than the teacher the student must be to be left alone.
    """
    schedule = dict(weight=0.5)

    def __init__(self, *, margin: float = 0.0):
        super().__init__(region='pos')
        self.margin = float(margin)

    def learn(self, mine: HeadSpec, theirs: HeadSpec, other: str = 'teacher') -> None:
        for who, head in (('student', mine), (other, theirs)):
            self._check(self.title, who, head)
        super().learn(mine, theirs, other)

    @staticmethod
    def _check(name: str, who: str, head: HeadSpec) -> None:
        if head.anchors is None or head.coder is None:
            raise UserError(f'{name}: the {who} head {head.kind} is anchor-free and has no encoded '
                            'box targets; use a feature term such as HGD')
        if head.decoded:
            raise UserError(f'{name}: the {who} head {head.kind} learns decoded boxes '
                            '(reg_decoded_bbox=True), but errors are compared in encoded deltas; '
                            'use reg_decoded_bbox=False or leave this term out')
        per_delta = 1 if head.project is None else head.project.numel()
        if head.reg_channels != 4 * per_delta:
            raise UserError(f'{name}: the {who} head {head.kind} puts out {head.reg_channels} '
                            f'numbers per anchor, not 4 deltas of {per_delta}')

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        targets = lesson.targets
        positive = targets.positive                                                 # (B, M)
        student, teacher = self.deltas(lesson, positive)                            # (P, 4)
        wanted = rows(targets.boxes, positive).to(student.dtype)
        e_student = (student - wanted).square().sum(-1)                             # (P,)
        e_teacher = (teacher - wanted).square().sum(-1)
        worse = e_student.detach() + self.margin > e_teacher
        worse = only(worse, positive)
        bounded = e_student.masked_fill(~worse, 0).sum() / targets.num_positive
        return dict(loss=bounded, active=worse.sum() / count_of(positive))
