"""What terms that compare two heads anchor by anchor have in common."""
from __future__ import annotations

from torch import Tensor

from hgd_det.distill.boxes import point_deltas
from hgd_det.distill.functional import binary_divergence, choose, divergence, precise, rows
from hgd_det.distill.lesson import REGIONS, HeadOutput, Lesson
from hgd_det.distill.term import HeadSpec, Spec, Term
from hgd_det.errors import UserError


class HeadTerm(Term):
    """A value over the anchors of a region, from what both heads put out there.

    It owns what such terms need: the same anchors in both detectors, the region, scores of softmax and of
    sigmoid heads, encoded boxes whether a head puts out deltas or distributions, and empty regions, whose
    sum is 0 and still hangs on the student. What it hands out is of P anchors: the region's alone on a CPU,
    all of them on a GPU; a sum over them goes through :func:`~hgd_det.distill.functional.only`.
    """
    needs = frozenset({'head', 'targets'})
    ssd_like = False    # True: refuse heads without softmax scores and encoded boxes

    def __init__(self, *, region: str = 'hard'):
        super().__init__()
        choose(self.title, 'region', region, REGIONS)
        self.region = region
        self.sigmoid = False
        self.register_buffer('student_bins', None, persistent=False)
        self.register_buffer('teacher_bins', None, persistent=False)

    def setup(self, spec: Spec) -> None:
        spec.same_anchors(self.title)
        self.learn(spec.student_head, spec.teacher_head)

    def learn(self, mine: HeadSpec, theirs: HeadSpec, other: str = 'teacher') -> None:
        """Keep what :meth:`forward` needs of the two heads."""
        if self.ssd_like:
            require_ssd(self.title, 'student', mine)
            require_ssd(self.title, other, theirs)
        self.sigmoid = mine.use_sigmoid
        self.student_bins, self.teacher_bins = mine.bins, theirs.bins

    def scores(self, lesson: Lesson) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (P, K) of student and teacher, a constant, and the region (B, M) that they are of."""
        chosen = lesson.region(self.region)
        student, teacher = (rows(side.head.cls, chosen) for side in (lesson.student, lesson.teacher))
        teacher = teacher.detach()
        dtype = precise(student, teacher)
        return student.to(dtype), teacher.to(dtype), chosen

    def deltas(self, lesson: Lesson, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded boxes (P, 4) of student and teacher, a constant, on the chosen anchors (B, M)."""
        return (deltas_of(lesson.student.head, chosen, self.student_bins),
                deltas_of(lesson.teacher.head, chosen, self.teacher_bins).detach())

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The summands of KL(teacher || student) of logits: over classes, or yes and no of each class."""
        return (binary_divergence if self.sigmoid else divergence)(teacher, student)


def deltas_of(head: HeadOutput, chosen: Tensor, bins: Tensor | None) -> Tensor:
    """(P, 4) encoded boxes of the chosen anchors; the expectation where a head puts out bins."""
    reg = rows(head.reg, chosen)
    reg = reg.to(precise(reg))
    return point_deltas(reg, None if bins is None else bins.to(reg))


def require_ssd(owner: str, who: str, spec: HeadSpec | None) -> None:
    """Refuse a head that is not of SSD's kind: softmax scores, encoded boxes, anchors."""
    if spec is None or not spec.ssd_like:
        raise UserError(f'{owner}: the {who} head {spec.kind if spec else ""} has no softmax scores with '
                        'encoded boxes; use an SSD head, or a feature term such as HGD')
