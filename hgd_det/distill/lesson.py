"""A lesson: all that one batch offers a term, computed at most once and only when asked.

Shapes: B images, M anchors per image, C foreground classes. Background is the LAST index, C.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from hgd_det.distill.schedule import Progress
from hgd_det.errors import UserError

REGIONS = ('pos', 'hard', 'all')


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
    """What one detector put out: its maps by tap and, when a term needs it, its head's output."""

    def __init__(self, maps: Mapping[str, Tensor], head: Callable[[], HeadOutput] | None = None):
        self.maps = maps
        self._head = head

    @cached_property
    def head(self) -> HeadOutput:
        if self._head is None:
            raise UserError("a term read head outputs without declaring requires={'head'}")
        return self._head()


class Lesson:
    """The view of one batch that a term gets.

    Attributes:
        student, teacher: Maps (``lesson.student.maps[tap]``) and head outputs of each. The teacher runs
            when it is first asked for, and not at all where no term does.
        samples: The batch's data samples, with their ground truth.
        progress: Iteration and total.
        input_shape: (H, W) of the batch as the network saw it, padding included.
        neg_pos_ratio: Negatives per positive in SSD's hard-negative mining.
        images: The batch as the student saw it. With ``requires={'gradient'}`` both detectors' outputs
            can be differentiated with respect to it.
    """

    def __init__(self, student: Side, teacher: Side | Callable[[], Side], samples: list, *,
                 progress: Progress, input_shape: tuple[int, int],
                 targets: Callable[[], Targets] | None = None, anchors: Callable[[], Tensor] | None = None,
                 neg_pos_ratio: float = 3.0, images: Tensor | None = None):
        self.student, self.samples = student, samples
        self.progress, self.input_shape = progress, tuple(input_shape)
        self.neg_pos_ratio = neg_pos_ratio
        self.images = images
        self._teacher, self._targets, self._anchors = teacher, targets, anchors
        self._regions: dict[str, Tensor] = {}
        self.memo: dict = {}  # for functional.py: masks shared by terms and stages

    @property
    def batch_size(self) -> int:
        return len(self.samples)

    @cached_property
    def teacher(self) -> Side:
        return self._teacher() if callable(self._teacher) else self._teacher

    @cached_property
    def boxes(self) -> list[Tensor]:
        """Per image (n, 4) ground-truth boxes x1 y1 x2 y2 in input pixels, ignored ones left out."""
        return [self._instances(s).bboxes_tensor for s in self.samples]

    @cached_property
    def labels(self) -> list[Tensor]:
        """Per image (n,) class indices of :attr:`boxes`."""
        return [self._instances(s).labels for s in self.samples]

    @staticmethod
    def _instances(sample) -> _Instances:
        if 'gt_instances' not in sample or 'bboxes' not in sample.gt_instances:
            raise UserError('a term needs ground-truth boxes, but the data gives none; load them '
                            "with LoadAnnotations(with_bbox=True), or choose a term that needs none "
                            "(HGD: micro='variance')")
        boxes = sample.gt_instances.bboxes
        return _Instances(getattr(boxes, 'tensor', boxes).float(), sample.gt_instances.labels)

    @cached_property
    def targets(self) -> Targets:
        if self._targets is None:
            raise UserError("a term read targets without declaring requires={'targets'}, or the "
                            "student's head assigns none of the kind anchors have")
        return self._targets()

    @cached_property
    def anchors(self) -> Tensor:
        """(M, 4) anchors in input pixels, all levels concatenated."""
        if self._anchors is None:
            raise UserError("a term read anchors, but the student's head has none")
        return self._anchors()

    @cached_property
    def level_anchors(self) -> list[Tensor]:
        """Per level (H, W, A, 4): :attr:`anchors`, cell by cell."""
        levels = self.student.head.levels
        parts = self.anchors.split([h * w * a for h, w, a in levels])
        return [part.view(h, w, a, 4) for part, (h, w, a) in zip(parts, levels, strict=True)]

    def region(self, name: str) -> Tensor:
        """(B, M) bool: the anchors an anchor-wise term looks at.

        ``pos``: anchors of objects. ``hard``: those and, per image, the ``3 n_pos`` negatives of the
        largest student cross-entropy, the same set SSD's own loss uses (an image without objects
        gives none). ``all``: every anchor.
        """
        if name not in REGIONS:
            raise UserError(f'region={name!r}; choose one of {", ".join(REGIONS)}')
        if name not in self._regions:
            self._regions[name] = self._compute_region(name)
        return self._regions[name]

    def _compute_region(self, name: str) -> Tensor:
        targets = self.targets
        if name == 'pos':
            return targets.positive
        if name == 'all':
            return torch.ones_like(targets.positive)
        return targets.positive | hard_negatives(self.student.head.cls, targets, self.neg_pos_ratio)


@dataclass(frozen=True)
class _Instances:
    bboxes_tensor: Tensor
    labels: Tensor


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
