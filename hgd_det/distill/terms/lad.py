"""Label assignment distillation (Nguyen et al., WACV 2022): the teacher picks the anchors of each object."""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import bbox2delta
from torch import Tensor

from hgd_det.distill.boxes import box_iou, point_deltas
from hgd_det.distill.functional import choose, precise
from hgd_det.distill.head_term import HeadTerm
from hgd_det.distill.lesson import HeadOutput, Lesson, Targets
from hgd_det.distill.registry import TERMS
from hgd_det.distill.term import HeadSpec
from hgd_det.errors import UserError

SELECT = ('gmm', 'mean', 'static')
ROUNDS, SETTLED = 100, 1e-3  # of the mixture's fit, as in scikit-learn, which PAA uses
LEAST_VARIANCE = 1e-6        # likewise
TIE = 1e-9                   # equal costs differ by rounding


@TERMS.register_module(name='LAD')
class LabelAssignmentDistillation(HeadTerm):
    """Which anchors stand for an object, as the teacher sees it; there is nothing to imitate.

    ::

        candidates of object g = its anchors with IoU >= iou, and the one of largest IoU, best(g)
        cost_a      = CE(z_T,a, class of g) + sum over 4 deltas of smoothL1(delta_T,a, t_a)
        positive(g) = best(g) and
          gmm:   of the 9 cheapest candidates per level, those of the cheap one of two Gaussians fitted
                 to their costs, cheapest first, up to the one where the mixture is densest
          mean:  the candidates that cost no more than their mean
        all other anchors are background; the student's own loss, mining included, does the rest

    t_a is g's box encoded for the anchor a. An anchor that is a candidate of several objects belongs to
    one that it is the best of, else to that of largest IoU. A lone candidate is positive, and candidates
    of equal cost share their fate. An anchor keeps the weight that the head's assigner gave it; one of
    weight 0 (outside the image, or on an ignored object) is no candidate.

    The mixture is PAA's: begun at the least and the largest cost, with equal shares and variance 1. LAD
    fits it to anchors of IoU >= 0.1 by PAA's IoU loss; SSD's static rule is IoU >= 0.5, and 0.3 and the
    loss SSD trains with were chosen here. The labels depend on the teacher and the data alone.

    Args:
        select: ``gmm``, ``mean``, or ``static``: the head's own assignment, which changes nothing.
        iou: Least overlap of a candidate.
        per_level: Candidates of an object per level that ``gmm`` looks at.
    """
    needs = frozenset({'head', 'anchors', 'targets', 'boxes'})
    ssd_like = True

    def __init__(self, *, select: str = 'gmm', iou: float = 0.3, per_level: int = 9):
        super().__init__()
        choose('LAD', 'select', select, SELECT)
        if not 0 < iou < 1:
            raise UserError(f'LAD: iou={iou}; an overlap lies between 0 and 1')
        if per_level < 1:
            raise UserError(f'LAD: per_level={per_level}; it is at least 1')
        self.select, self.iou, self.per_level = select, iou, per_level
        self.coder: dict = {}

    def learn(self, mine: HeadSpec, theirs: HeadSpec, other: str = 'teacher') -> None:
        super().learn(mine, theirs, other)
        if mine.coder['type'] != 'DeltaXYWHBBoxCoder':
            raise UserError(f'LAD: boxes are encoded by {mine.coder["type"]}, which cannot be done here; '
                            "use bbox_coder=dict(type='DeltaXYWHBBoxCoder') in both heads")
        self.coder = dict(means=mine.coder['means'], stds=mine.coder['stds'])

    def retarget(self, lesson: Lesson, targets: Targets) -> Targets:
        return targets if self.select == 'static' else self._assign(lesson, targets)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        chosen, was = lesson.targets, lesson.assigned
        kept = chosen.positive & was.positive & (chosen.labels == was.labels)
        before = was.positive.sum()
        return dict(positives=chosen.positive.sum(), before=before, kept=kept.sum() / before.clamp(min=1))

    @torch.no_grad()
    def _assign(self, lesson: Lesson, targets: Targets) -> Targets:
        image, anchor, owner, best = self._candidates(lesson, targets.label_weights > 0)
        labels = torch.cat(lesson.labels)[owner]                                        # (N,)
        wanted = bbox2delta(lesson.anchors[anchor], torch.cat(lesson.boxes)[owner], **self.coder)
        cost = self._cost(lesson.teacher.head, (image, anchor), labels, wanted)
        if self.select == 'gmm':
            sizes = torch.tensor([h * w * a for h, w, a in lesson.levels], device=cost.device)
            level = torch.bucketize(anchor, sizes.cumsum(0), right=True)
            cheap = ranks(cost, owner * len(sizes) + level) < self.per_level
            cheap[cheap.clone()] = by_group(densest, cost[cheap], owner[cheap])
        else:
            cheap = by_group(below_mean, cost, owner)
        keep = cheap | best
        where = image[keep], anchor[keep]
        chosen = Targets(torch.full_like(targets.labels, targets.num_classes), targets.label_weights,
                         torch.zeros_like(targets.boxes), torch.zeros_like(targets.box_weights),
                         targets.num_classes)
        chosen.labels[where] = labels[keep].to(chosen.labels)
        chosen.boxes[where] = wanted[keep].to(chosen.boxes)
        chosen.box_weights[where] = 1
        return chosen

    def _candidates(self, lesson: Lesson, usable: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the N candidates: image, anchor, object (counted through the batch), and whether it is the
        object's best."""
        found, first = [], 0
        for i, boxes in enumerate(lesson.boxes):
            if len(boxes):
                iou = box_iou(boxes.to(lesson.anchors), lesson.anchors).masked_fill_(~usable[i], 0)   # (n, M)
                top, best = iou.max(1)
                iou[torch.arange(len(boxes), device=iou.device), best] += 2 * (top > 0)  # before all others
                value, owner = iou.max(0)
                anchor = (value >= self.iou).nonzero().flatten()
                found.append(torch.stack([torch.full_like(anchor, i), anchor, owner[anchor] + first,
                                          value[anchor] > 2]))
            first += len(boxes)
        if not found:
            found = [torch.zeros(4, 0, dtype=torch.long, device=usable.device)]
        image, anchor, owner, best = torch.cat(found, 1)
        return image, anchor, owner, best.bool()

    def _cost(self, head: HeadOutput, where: tuple[Tensor, Tensor], labels: Tensor, wanted: Tensor) -> Tensor:
        """(N,): what the teacher's detection loss says of each candidate."""
        dtype = precise(head.cls, head.reg)
        scores = F.cross_entropy(head.cls[where].to(dtype), labels, reduction='none')
        deltas = point_deltas(head.reg[where].to(dtype), self.teacher_bins)
        return scores + F.smooth_l1_loss(deltas, wanted.to(dtype), reduction='none').sum(-1)


def ranks(values: Tensor, groups: Tensor) -> Tensor:
    """(N,): how many of the same group come before each, from the least value up."""
    order = values.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    ordered = groups[order]
    place = torch.arange(len(order), device=order.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(order).scatter_(0, order, place)


def by_group(rule, cost: Tensor, groups: Tensor) -> Tensor:
    """(N,) bool: ``rule(costs, valid)`` of each group's costs, one group per row, cheapest first."""
    if not len(cost):
        return torch.zeros_like(cost, dtype=torch.bool)
    row = groups.unique(return_inverse=True)[1]
    column = ranks(cost, row)
    table = cost.new_zeros(int(row.max()) + 1, int(column.max()) + 1, dtype=torch.float64)
    valid = torch.zeros_like(table, dtype=torch.bool)
    table[row, column], valid[row, column] = cost.double(), True
    return rule(table, valid)[row, column]


def below_mean(cost: Tensor, valid: Tensor) -> Tensor:
    """(R, K) bool: the valid costs of each row that are no larger than their mean."""
    mean = cost.where(valid, 0).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    return valid & (cost <= mean * (1 + TIE))


def densest(cost: Tensor, valid: Tensor) -> Tensor:
    """(R, K) bool: of each row the members of the cheap Gaussian, up to the one of largest density."""
    joint = mixture(cost, valid)
    member = valid & (joint[0] + TIE >= joint[1])
    top = torch.logaddexp(*joint).masked_fill(~member, -math.inf).argmax(1, keepdim=True)
    return member & (cost <= cost.gather(1, top))


def mixture(x: Tensor, valid: Tensor) -> Tensor:
    """(2, R, K): ``log(share_k N(x; mean_k, variance_k))`` of two Gaussians fitted to the valid of each row.

    Expectation and maximisation in turns, until the mean log-likelihood of a row moves by less than 1e-3,
    at most 100 times. Each row has at least one valid number.
    """
    count = valid.sum(1)
    low = x.masked_fill(~valid, math.inf).amin(1)
    high = x.masked_fill(~valid, -math.inf).amax(1)
    x = x.where(valid, low[:, None])
    mean, variance = torch.stack([low, high]), x.new_ones(2, len(x))
    share = torch.full_like(variance, 0.5)
    reached = torch.full_like(low, -math.inf)
    rows = torch.arange(len(x), device=x.device)
    for _ in range(ROUNDS):
        part, there = x[rows], valid[rows]
        joint = log_joint(part, mean[:, rows], variance[:, rows], share[:, rows])
        density = torch.logaddexp(*joint)
        member = (joint - density).exp() * there
        total = member.sum(2) + 10 * torch.finfo(x.dtype).eps  # a Gaussian may lose all its members
        middle = (member * part).sum(2) / total
        variance[:, rows] = (member * (part - middle[..., None]).square()).sum(2) / total + LEAST_VARIANCE
        mean[:, rows], share[:, rows] = middle, total / total.sum(0)
        likelihood = (density * there).sum(1) / count[rows]
        moved = (likelihood - reached[rows]).abs() >= SETTLED
        reached[rows] = likelihood
        rows = rows[moved]
        if not len(rows):
            break
    return log_joint(x, mean, variance, share)


def log_joint(x: Tensor, mean: Tensor, variance: Tensor, share: Tensor) -> Tensor:
    """(2, R, K): log of share times normal density, of x (R, K) under parameters (2, R)."""
    exponent = (x - mean[..., None]).square() / variance[..., None]
    return share.log()[..., None] - (exponent + (2 * math.pi * variance).log()[..., None]) / 2
