"""The contract of a term, and the registry of terms."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from hgd_det.distill.stages import Survey
from hgd_det.errors import UserError

if TYPE_CHECKING:
    from hgd_det.distill.lesson import Lesson, Targets

NEEDS = frozenset({'maps', 'head', 'targets', 'boxes', 'gradient'})


@dataclass(frozen=True)
class HeadSpec:
    """What is known of a dense head before training: its classes and its anchors."""
    kind: str
    num_classes: int
    cls_channels: int                    # numbers per anchor in the classification output
    reg_channels: int                    # numbers per anchor in the regression output
    use_sigmoid: bool
    anchors: Tensor | None               # (M, 4) at the surveyed input size; None: anchor-free
    coder: dict | None = None            # type, means and stds of the box coder
    project: Tensor | None = None        # bins of a distribution head: (n+1,)


@dataclass(frozen=True)
class Spec:
    """All that a term learns of the two detectors when it is set up."""
    student: Survey
    teacher: Survey | None               # None: the config has no teacher, and no term that needs one
    student_model: nn.Module
    teacher_model: nn.Module | None
    read_heads: Callable[[], tuple[HeadSpec | None, HeadSpec | None]]

    @cached_property
    def _heads(self) -> tuple[HeadSpec | None, HeadSpec | None]:
        return self.read_heads()  # runs both heads: only when a term asks

    @property
    def student_head(self) -> HeadSpec | None:
        return self._heads[0]

    @property
    def teacher_head(self) -> HeadSpec | None:
        return self._heads[1]

    def same_anchors(self, name: str) -> None:
        """Refuse detectors whose anchors differ: anchor-wise terms compare anchor by anchor."""
        same_anchors(name, self.student_head, self.teacher_head)


def same_anchors(name: str, mine: HeadSpec | None, theirs: HeadSpec | None, other: str = 'teacher') -> None:
    """Refuse two heads, the student's and that of another, whose anchors or classes differ."""
    advice = 'use the same anchor_generator and input_size in both, or a feature term such as HGD'
    if mine is None or theirs is None:
        which = 'student' if mine is None else other
        raise UserError(f'term {name!r} compares anchors, but the {which} has no dense anchor '
                        f'head; {advice}')
    if (mine.anchors is None) != (theirs.anchors is None):
        raise UserError(f'term {name!r} compares anchors, but only one detector has them; {advice}')
    if mine.num_classes != theirs.num_classes:
        raise UserError(f'term {name!r}: the student knows {mine.num_classes} classes, the '
                        f'{other} {theirs.num_classes}')
    if mine.use_sigmoid != theirs.use_sigmoid:
        raise UserError(f'term {name!r}: one head scores with sigmoid, the other with softmax')
    if mine.anchors is None:
        return
    if mine.anchors.shape != theirs.anchors.shape:
        raise UserError(f'term {name!r} compares anchor by anchor, but the student has '
                        f'{len(mine.anchors)} anchors and the {other} {len(theirs.anchors)}; {advice}')
    off = (mine.anchors - theirs.anchors).abs().max().item() if len(mine.anchors) else 0.0
    if off > 1e-3:
        raise UserError(f'term {name!r} compares anchor by anchor, but the anchors differ by up '
                        f'to {off:.3g} pixels; {advice}')
    if mine.coder != theirs.coder:
        raise UserError(f'term {name!r}: the box coders differ: student {mine.coder}, {other} '
                        f'{theirs.coder}; use the same bbox_coder in both')


class Term(nn.Module):
    """One method: a module that turns a :class:`~hgd_det.distill.lesson.Lesson` into losses.

    A subclass says what it needs in ``requires`` (of maps, head, targets, boxes, gradient), builds its
    adapters in :meth:`setup` and returns *raw* values from :meth:`forward`; weight, warm-up and
    ramp are the distiller's business (``weight=``, ``warmup=``... beside the term's own arguments
    in the config, defaults in ``schedule``).

    :meth:`forward` returns a dict. Keys containing "loss" are added up, weighted, into the
    training loss (most terms return one, ``'loss'``); every other key is logged only, and must not
    contain that word. ``'aside_loss'`` is added as it is: the loss of parts that only the term has (an
    auto-encoder of the teacher's map) stays out of weight and balance. On an empty set (no object,
    no positive anchor) a term returns ``student_tensor.sum() * 0``, which keeps the graph whole.
    Values are computed in float32: the distiller switches autocast off around a term.

    Attributes:
        requires: What of a lesson the term reads.
        schedule: Defaults of :class:`~hgd_det.distill.schedule.Schedule` for this method.
        needs_teacher: False for a method in which nobody but the student teaches.
        scales_detection: Factors on the student's own losses, by the beginning of their key, while the
            term counts: ``{'loss_cls': 0.5}``.
        student_taps, teacher_taps: Taps that ``setup`` asks for (``requires`` has ``'maps'``).
    """
    requires: ClassVar[frozenset[str]] = frozenset({'maps'})
    needs_teacher: ClassVar[bool] = True
    schedule: ClassVar[Mapping] = {}
    scales_detection: Mapping[str, float] = {}

    def __init__(self):
        super().__init__()
        self.student_taps: list[str] = []
        self.teacher_taps: list[str] = []

    def setup(self, spec: Spec) -> None:
        """Choose taps and build adapters; called once, before the optimizer exists."""

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        raise NotImplementedError

    #: ``retarget(lesson, targets) -> targets``: what a term changes of the head's own assignment, before
    #: the student's loss is computed from it. The student's head output is there; its losses are not yet.
    retarget: Callable[[Lesson, Targets], Targets] | None = None

    def describe(self) -> list[dict]:
        """Rows for the correspondence table: ``Pair.describe()`` plus the adapter's name."""
        return []

    def use_pairs(self, pairs) -> None:
        """Ask for the taps of these pairs."""
        self.student_taps = list(dict.fromkeys(p.student.tap for p in pairs))
        self.teacher_taps = list(dict.fromkeys(p.teacher.tap for p in pairs))
