"""The contract of a term: what it declares, what it is told before training, what it returns."""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from hgd_det.distill.lesson import NEEDS
from hgd_det.distill.stages import Pair, Survey, explicit_pairs, pair_stages
from hgd_det.errors import UserError

if TYPE_CHECKING:
    from hgd_det.distill.lesson import Lesson, Targets


@dataclass(frozen=True)
class HeadSpec:
    """All that is known of a dense head before training."""
    kind: str
    num_classes: int
    cls_channels: int                    # numbers per anchor in the classification output
    reg_channels: int                    # numbers per anchor in the regression output
    use_sigmoid: bool
    anchors: Tensor | None               # (M, 4) at the surveyed input size; None: anchor-free
    coder: dict | None = None            # type, means and stds of the box coder
    project: Tensor | None = None        # bins of a distribution head: (n+1,)
    per_cell: tuple[int, ...] = ()       # anchors per cell of each level
    decoded: bool = False                # its targets are boxes in pixels, not encoded

    @property
    def bins(self) -> Tensor | None:
        """The bins as a term keeps them; None for a head that puts out the deltas themselves."""
        return None if self.project is None else self.project.detach().clone().float()

    @property
    def ssd_like(self) -> bool:
        """Softmax scores, encoded boxes, anchors."""
        return self.anchors is not None and self.coder is not None and not (self.use_sigmoid or self.decoded)


@dataclass(frozen=True)
class Spec:
    """All that a term learns of the two detectors when it is set up."""
    student: Survey
    teacher: Survey | None               # None: the config has no teacher, and no term that needs one
    models: tuple[nn.Module, nn.Module | None] = field(repr=False)
    read_heads: Callable[[], tuple[HeadSpec | None, HeadSpec | None]]  # runs both heads, once
    owner: str = 'a term'
    shows_model: bool = True

    def shown_to(self, name: str, term: Term) -> Spec:
        """What this term may know: the student itself only where it runs it."""
        return replace(self, owner=term.called(name), shows_model=term.needs_model)

    @property
    def student_model(self) -> nn.Module:
        """The student, for a term that runs it or parts of it."""
        if not self.shows_model:
            raise UserError(f'{self.owner} asks for the student itself, which it does not declare: set '
                            'needs_model = True, or read what it needs from student and student_head')
        return self.models[0]

    @property
    def student_head(self) -> HeadSpec | None:
        return self.read_heads()[0]

    @property
    def teacher_head(self) -> HeadSpec | None:
        return self.read_heads()[1]

    def pairs(self, taps=None, **selection) -> list[Pair]:
        """Pairs of stages: those of :func:`~hgd_det.distill.stages.pair_stages`, or those named."""
        if taps:
            return explicit_pairs(self.student, self.teacher, self.models, taps)
        return pair_stages(self.student, self.teacher, **selection)

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

    A subclass says what it needs, builds its adapters in :meth:`setup` and returns *raw* values from
    :meth:`forward`; weight, warm-up and ramp are the distiller's business (``weight=``, ``warmup=``...
    beside the term's own arguments in the config, defaults in ``schedule``). Terms that compare maps are
    :class:`~hgd_det.distill.map_term.MapTerm`, those that compare anchor by anchor
    :class:`~hgd_det.distill.head_term.HeadTerm`: they own what such terms have in common.

    :meth:`forward` returns a dict of scalars. Keys containing "loss" are added up, weighted, into the
    training loss (most terms return one, ``'loss'``); every other key is logged only, and must not
    contain that word. ``'aside_loss'`` is added as it is: the loss of parts that only the term has (an
    auto-encoder of the teacher's map) stays out of weight and balance. On an empty set (no object,
    no positive anchor) a term returns ``student_tensor.sum() * 0``, which keeps the graph whole.
    Values are computed in float32: the distiller switches autocast off around a term.

    Attributes:
        needs: What of a lesson the term reads, of :data:`~hgd_det.distill.lesson.NEEDS`. Reading more is
            an error, in training and in ``hgd-det inspect`` alike.
        needs_teacher: False for a method in which nobody but the student teaches.
        needs_model: True for a method that runs the student, or a copy of it, itself.
        schedule: Defaults of :class:`~hgd_det.distill.schedule.Schedule` for this method.
        scales_detection: Factors on the student's own losses, by the beginning of their key, while the
            term counts: ``{'loss_cls': 0.5}``.
        title: The name it is registered under: what its messages call it.
        student_taps, teacher_taps: Taps that ``setup`` asks for (``needs`` has ``'maps'``).
    """
    needs: ClassVar[Collection[str]] = frozenset({'maps'})
    needs_teacher: ClassVar[bool] = True
    needs_model: ClassVar[bool] = False
    schedule: ClassVar[Mapping] = {}
    scales_detection: Mapping[str, float] = {}
    title: ClassVar[str] = 'Term'

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        cls.title = cls.__name__    # a registry that knows it by another name says so

    def __init__(self):
        super().__init__()
        self.student_taps: list[str] = []
        self.teacher_taps: list[str] = []

    def setup(self, spec: Spec) -> None:
        """Choose taps and build adapters; called once, before the optimizer exists."""

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        raise NotImplementedError

    #: ``retarget(lesson, targets) -> targets``: what a term changes of the head's own assignment, before
    #: the student's loss is computed from it. The student's head output is there, its maps and losses
    #: are not yet.
    retarget: Callable[[Lesson, Targets], Targets] | None = None

    def called(self, name: str) -> str:
        """How messages call the term of a config's entry ``name``."""
        return f'term {name!r} ({self.title})'

    def describe(self) -> list[dict]:
        """Rows for the correspondence table: ``Pair.describe()`` plus the adapter's name."""
        return []

    def use_pairs(self, pairs) -> None:
        """Ask for the taps of these pairs."""
        self.student_taps = list(dict.fromkeys(p.student.tap for p in pairs))
        self.teacher_taps = list(dict.fromkeys(p.teacher.tap for p in pairs))


def check_declared(name: str, term: Term) -> None:
    """Refuse needs that no lesson has."""
    unknown = sorted(set(term.needs) - set(NEEDS))
    if unknown:
        raise UserError(f'{term.called(name)} needs {", ".join(map(repr, unknown))}, which no lesson has; '
                        f'a term can need {", ".join(NEEDS)}')


def check_returned(name: str, term: Term, values) -> None:
    """Refuse what a training loss cannot be made of; without waiting for a number."""
    who = term.called(name)
    if not isinstance(values, Mapping):
        raise UserError(f'{who} returned a {type(values).__name__}; forward() returns a dict of scalars, '
                        'such as dict(loss=value)')
    for key, value in values.items():
        if not isinstance(key, str):
            raise UserError(f'{who} returned the key {key!r}; keys are words')
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = f'a tensor of shape {tuple(value.shape)}' if isinstance(value, Tensor) \
                else f'a {type(value).__name__}'
            raise UserError(f'{who} returned {shape} as {key!r}; give a tensor with one number (a mean or a '
                            'sum over images, cells, anchors)')
        if 'loss' in key and torch.is_grad_enabled() and not value.requires_grad:
            raise UserError(f'{who}: its {key!r} carries no gradient, so that nothing would learn from it; '
                            'compute it from the student\'s tensors, not detached and not under no_grad (an '
                            'empty choice gives student_tensor.sum() * 0)')
    if not any('loss' in key for key in values) and term.retarget is None:
        raise UserError(f'{who} returned no loss, only {", ".join(values) or "nothing"}; one key must '
                        'contain the word "loss"')
