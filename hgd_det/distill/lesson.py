"""A lesson: all that one batch offers a term.

Whatever it holds has the gradient that it should have, whoever asks first: what the detectors put out is
there before the first term runs, and what is made of it for several terms (regions, masks) are constants.

Shapes: B images, M anchors per image, C foreground classes. Background is the LAST index, C.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from hgd_det.distill.schedule import Progress
from hgd_det.errors import UserError

REGIONS = ('pos', 'hard', 'all')

#: What a term may need of a lesson, beside samples, progress and the sizes of the batch.
NEEDS = {
    'maps': 'feature maps of both detectors, at the taps that it chose when it was set up',
    'head': 'raw outputs of both heads, anchor by anchor',
    'anchors': "the student's anchors and its head's levels",
    'targets': "what the student's head wants of each anchor, and the regions made of that",
    'boxes': 'the objects: boxes and labels',
    'images': 'the batch as the student saw it',
    'gradient': "images with respect to which both detectors' outputs can be differentiated",
}


@dataclass(frozen=True)
class HeadOutput:
    """A dense head's raw outputs, all levels concatenated in anchor order."""
    cls: Tensor                     # (B, M, C+1) logits; (B, M, C) for sigmoid heads
    reg: Tensor                     # (B, M, R) encoded boxes, R = 4 or 4*(bins)
    levels: tuple[tuple[int, int, int], ...]  # (H, W, anchors per cell) of each level


@dataclass(frozen=True)
class Targets:
    """What the student head's own assignment wants of each anchor."""
    labels: Tensor                  # (B, M) in [0, C]; C = background
    label_weights: Tensor           # (B, M)
    boxes: Tensor                   # (B, M, 4) encoded targets t
    box_weights: Tensor             # (B, M, 4)
    num_classes: int

    @cached_property
    def positive(self) -> Tensor:
        """(B, M) bool: anchors that stand for an object."""
        return (self.labels >= 0) & (self.labels < self.num_classes) & (self.label_weights > 0)

    @cached_property
    def num_positive(self) -> Tensor:
        """N+ = max(1, positive anchors in the batch), averaged over data-parallel processes."""
        return mean_count(self.positive.sum())


def mean_count(count: Tensor) -> Tensor:
    """``max(1, count)``, the count averaged over data-parallel processes.

    As a divisor it makes their averaged gradients those of one process with the whole batch.
    """
    count = count.detach().float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = count.clone()
        torch.distributed.all_reduce(count)
        count /= torch.distributed.get_world_size()
    return count.clamp(min=1.0)


class Side:
    """What one detector put out: its maps by tap, and its head's output where a term needs it."""

    def __init__(self, maps: Mapping[str, Tensor] | None = None, head: HeadOutput | None = None):
        self._maps, self._head = {} if maps is None else maps, head
        self._needs: Collection[str] = NEEDS
        self._owner = 'a term'

    def limited(self, owner: str, needs: Collection[str], taps: Collection[str]) -> Side:
        """This side as a term sees it: what it declared, and the taps that it chose."""
        view = Side(_Chosen(self._maps, taps, owner), self._head)
        view._needs, view._owner = needs, owner
        return view

    @property
    def maps(self) -> Mapping[str, Tensor]:
        _declared(self._owner, self._needs, 'maps')
        return self._maps

    @property
    def head(self) -> HeadOutput:
        _declared(self._owner, self._needs, 'head')
        if self._head is None:
            raise UserError(f'{self._owner} reads head outputs, and there are none')
        return self._head


class _Chosen(Mapping):
    """Some of the maps: those that a term asked for."""

    def __init__(self, maps: Mapping[str, Tensor], taps: Collection[str], owner: str):
        self._maps, self._taps, self._owner = maps, taps, owner

    def __getitem__(self, tap: str) -> Tensor:
        if tap not in self._taps:
            raise UserError(f'{self._owner} reads the map {tap!r}, which it did not ask for in setup(); it '
                            f'asked for {", ".join(self._taps) or "none"}')
        return self._maps[tap]

    def __iter__(self) -> Iterator[str]:
        return iter(self._taps)

    def __len__(self) -> int:
        return len(self._taps)


class Lesson:
    """The view of one batch that a term gets: what it declared in ``needs``, and no more.

    ``teacher`` may be what several put out, by the name of the term that each of them teaches.

    Attributes:
        samples: The batch's data samples, with their ground truth.
        progress: Iteration and total.
        input_shape: (H, W) of the batch as the network saw it, padding included.
        neg_pos_ratio: Negatives per positive in SSD's hard-negative mining.
        autocast: The dtype of the student's mixed precision; None where it ran without.
        memo: Constants that terms share; see :meth:`constant`.
        taught_in: Seconds that the teacher took.
    """

    def __init__(self, student: Side, teacher: Side | Mapping[str, Side] | None, samples: list, *,
                 progress: Progress, input_shape: tuple[int, int],
                 targets: Targets | None = None, assigned: Targets | None = None,
                 anchors: Tensor | None = None, levels: tuple = (), neg_pos_ratio: float = 3.0,
                 images: Tensor | None = None, autocast: torch.dtype | None = None):
        self.samples, self.progress, self.input_shape = samples, progress, tuple(input_shape)
        self.neg_pos_ratio, self.autocast = neg_pos_ratio, autocast
        self.memo: dict = {}
        self.taught_in = 0.0
        self.student, self._teacher, self._images = student, teacher, images
        self._targets, self._assigned = targets, targets if assigned is None else assigned
        self._anchors, self._levels = anchors, tuple(levels)
        self._needs: Collection[str] = NEEDS
        self._owner = 'a term'

    def limited(self, name: str, term) -> Lesson:
        """This lesson as one term sees it."""
        owner, needs = term.called(name), frozenset(term.needs)
        view = copy.copy(self)      # the memo stays one for all
        view._owner, view._needs = owner, needs
        view.student = self.student.limited(owner, needs, term.student_taps)
        teacher = self._teacher.get(name) if isinstance(self._teacher, Mapping) else self._teacher
        view._teacher = teacher.limited(owner, needs, term.teacher_taps) \
            if teacher is not None and term.needs_teacher else None
        return view

    @property
    def teacher(self) -> Side:
        if self._teacher is None:
            raise UserError(f'{self._owner} reads the teacher, and there is none for a term whose class says '
                            'needs_teacher = False')
        return self._teacher

    @property
    def batch_size(self) -> int:
        return len(self.samples)

    def constant(self, key, make: Callable):
        """``make()``, once for all terms of this batch and without a gradient."""
        if key not in self.memo:
            with torch.no_grad():
                self.memo[key] = make()
        return self.memo[key]

    def _offer(self, need: str, value, without: str = ''):
        _declared(self._owner, self._needs, need)
        if value is None:
            raise UserError(f'{self._owner} reads {need}, {without or "and there are none"}')
        return value

    # -- the objects -----------------------------------------------------------------------------
    @property
    def boxes(self) -> list[Tensor]:
        """Per image (n, 4) ground-truth boxes x1 y1 x2 y2 in input pixels, ignored ones left out."""
        _declared(self._owner, self._needs, 'boxes')
        return self.constant('boxes', lambda: [
            getattr(i.bboxes, 'tensor', i.bboxes).float() for i in self._instances()])

    @property
    def labels(self) -> list[Tensor]:
        """Per image (n,) class indices of :attr:`boxes`."""
        _declared(self._owner, self._needs, 'boxes')
        return [instances.labels for instances in self._instances()]

    def _instances(self) -> list:
        for sample in self.samples:
            if 'gt_instances' not in sample or 'bboxes' not in sample.gt_instances:
                raise UserError('a term needs ground-truth boxes, but the data gives none; load them '
                                "with LoadAnnotations(with_bbox=True), or choose a term that needs none "
                                "(HGD: micro='variance')")
        return [sample.gt_instances for sample in self.samples]

    # -- images and anchors ----------------------------------------------------------------------
    @property
    def images(self) -> Tensor:
        """The batch as the student saw it; a leaf with a gradient for whoever needs that."""
        need = 'gradient' if 'gradient' in self._needs else 'images'
        return self._offer(need, self._images)

    @property
    def levels(self) -> tuple[tuple[int, int, int], ...]:
        """(H, W, anchors per cell) of each level of the student's head."""
        return self._offer('anchors', self._levels or None, "but the student's head has no levels")

    @property
    def anchors(self) -> Tensor:
        """(M, 4) anchors in input pixels, all levels concatenated."""
        return self._offer('anchors', self._anchors, "but the student's head has points only")

    @property
    def level_anchors(self) -> list[Tensor]:
        """Per level (H, W, A, 4): :attr:`anchors`, cell by cell."""
        parts = self.anchors.split([h * w * a for h, w, a in self.levels])
        return [part.view(h, w, a, 4) for part, (h, w, a) in zip(parts, self.levels, strict=True)]

    # -- targets and regions ---------------------------------------------------------------------
    @property
    def targets(self) -> Targets:
        """What the student's loss was computed from."""
        return self._offer('targets', self._targets)

    @property
    def assigned(self) -> Targets:
        """What the head's own assignment said, before any term moved it."""
        return self._offer('targets', self._assigned)

    def region(self, name: str) -> Tensor:
        """(B, M) bool: the anchors an anchor-wise term looks at.

        ``pos``: anchors of objects. ``hard``: those and, per image, the ``3 n_pos`` negatives of the
        largest student cross-entropy, the same set SSD's own loss uses (an image without objects
        gives none). ``all``: every anchor.
        """
        if name not in REGIONS:
            raise UserError(f'region={name!r}; choose one of {", ".join(REGIONS)}')
        targets = self.targets
        if name == 'pos':
            return targets.positive
        if name == 'all':
            return torch.ones_like(targets.positive)
        cls = self.student.head.cls
        return self.constant('hard', lambda: targets.positive | hard_negatives(
            cls, targets, self.neg_pos_ratio))


def _declared(owner: str, needs: Collection[str], need: str) -> None:
    if need not in needs:
        raise UserError(f"{owner} reads {need}, which it does not declare: add {need!r} to its class's needs "
                        f'({", ".join(sorted(needs)) or "none so far"})')


@torch.no_grad()
def hard_negatives(cls: Tensor, targets: Targets, ratio: float = 3.0) -> Tensor:
    """(B, M) bool: per image the ``ratio * n_pos`` background anchors of the largest cross-entropy.

    Anchors of weight 0 (outside the image, or in the assigner's no-man's-land) are never taken.
    """
    logits = cls.detach().float()
    if cls.shape[-1] == targets.num_classes:    # sigmoid: background is "no" to every class
        loss = F.softplus(logits).sum(-1)
    else:
        loss = -logits.log_softmax(-1)[..., targets.num_classes]
    background = (targets.labels == targets.num_classes) & (targets.label_weights > 0)
    loss = (loss * targets.label_weights).masked_fill(~background, -1.0)
    order = loss.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    wanted = (ratio * targets.positive.sum(1, keepdim=True)).long()
    return (rank < wanted) & background
