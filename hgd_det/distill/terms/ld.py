"""Localization distillation (Zheng et al., CVPR 2022): how sure the teacher is of each box side."""
from __future__ import annotations

import torch
from torch import Tensor

from hgd_det.device import launches
from hgd_det.distill.boxes import overlaps, point_deltas
from hgd_det.distill.functional import choose, only, padded_boxes, precise, rows
from hgd_det.distill.head_term import HeadTerm
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.registry import TERMS
from hgd_det.distill.term import HeadSpec
from hgd_det.errors import UserError
from hgd_det.models.matching import MOST

TEACHERS = ('own', 'two_hot', 'gaussian')


@TERMS.register_module(name='LD')
class LocalizationDistillation(HeadTerm):
    """Imitate the teacher's distribution over the bins of every encoded delta.

    ::

        K_a  = 1/4 sum over the 4 deltas of tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau))
        L    = main_weight sum_main w_a K_a / sum_main w_a
             + vlr_weight  sum_VLR IoU_a K_a / sum_VLR IoU_a
             + kd_weight   (T^2 / N+) sum_main KL(p_T || p_S)            p = softmax(class / T)
        main = the objects' anchors;           w_a = the student's best class score, a constant
        VLR  = other anchors with lo <= DIoU < hi for some object;  IoU_a = the best such IoU

    The official code for GFL averages KL over bins and divides by 4 only, not by ``sum w``: its
    weight 0.25 is no guide to this form, in which every part is a weighted mean over its anchors.
    Nor is its class weight of 10, where KL is averaged over the classes too.

    Both detectors need ``DistributionSSDHead`` with the same bins. A teacher that regresses points
    can still teach: ``teacher_dist`` spreads its deltas over the student's bins, as two neighbours
    whose mean is the delta (``two_hot``) or a Gaussian of one bin (``gaussian``). Such a target is
    equally sure of every side, so little is left of the idea; it asks for ``temperature=1``.

    Args:
        main_weight, vlr_weight, kd_weight: Weights of the three parts; 0 leaves one out.
        temperature: tau; default 10, and 1 where ``teacher_dist`` is not ``own``.
        kd_temperature: T of the class scores.
        vlr: The band of DIoU that makes the valuable localization region. Default is a quarter of
            SSD's matching threshold up to the threshold.
        teacher_dist: ``own``, ``two_hot`` or ``gaussian``.
    """
    needs = frozenset({'head', 'anchors', 'targets', 'boxes'})
    schedule = dict(weight=1.0)

    def __init__(self, *, main_weight: float = 1.0, vlr_weight: float = 0.25,
                 kd_weight: float = 1.0, temperature: float | None = None,
                 kd_temperature: float = 4.0, vlr: tuple[float, float] = (0.125, 0.5),
                 teacher_dist: str = 'own'):
        super().__init__(region='pos')
        choose('LD', 'teacher_dist', teacher_dist, TEACHERS)
        if temperature is None:
            temperature = 10.0 if teacher_dist == 'own' else 1.0
        if teacher_dist != 'own' and temperature != 1:
            raise UserError(f'LD: temperature={temperature} with teacher_dist={teacher_dist!r}: a '
                            'distribution made from a point has no logits to soften; leave it 1')
        if not (temperature > 0 and kd_temperature > 0):
            raise UserError(f'LD: temperature={temperature}, kd_temperature={kd_temperature}; '
                            'temperatures are above 0')
        if min(main_weight, vlr_weight, kd_weight) < 0:
            raise UserError(f'LD: main_weight={main_weight}, vlr_weight={vlr_weight}, '
                            f'kd_weight={kd_weight}; none may be negative')
        if not (len(vlr) == 2 and 0 < vlr[0] < vlr[1] <= 1):
            raise UserError(f'LD: vlr={vlr!r}; it is a band of DIoU such as (0.125, 0.5), above 0')
        self.main_weight, self.vlr_weight, self.kd_weight = main_weight, vlr_weight, kd_weight
        self.temperature, self.kd_temperature = float(temperature), float(kd_temperature)
        self.vlr, self.teacher_dist = tuple(vlr), teacher_dist

    def learn(self, mine: HeadSpec, theirs: HeadSpec, other: str = 'teacher') -> None:
        if mine.use_sigmoid or mine.anchors is None:
            raise UserError(f'LD: it is written for softmax heads with anchors, and {mine.kind} is '
                            'none; use DistributionSSDHead')
        if mine.project is None:
            raise UserError(f'LD: the student head {mine.kind} regresses points, so there is no '
                            "distribution to teach; use bbox_head=dict(type='DistributionSSDHead')")
        if theirs.project is None and self.teacher_dist == 'own':
            raise UserError(f'LD: the teacher head {theirs.kind} regresses points; train a teacher '
                            'with DistributionSSDHead (configs/ld/ssd300_vgg16_voc.py), or spread '
                            "its points over the student's bins with teacher_dist='two_hot'")
        if theirs.project is not None:
            self._same_bins(mine.project, theirs.project)
        super().learn(mine, theirs, other)

    @staticmethod
    def _same_bins(mine: Tensor, theirs: Tensor) -> None:
        if mine.shape == theirs.shape and torch.allclose(mine, theirs.to(mine)):
            return
        said = [f'n={len(p) - 1}, lo={p[0].item():g}, hi={p[-1].item():g}' for p in (mine, theirs)]
        raise UserError(f'LD: bins differ: student {said[0]}; teacher {said[1]}; give both heads '
                        'the same n, lo and hi')

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        student, teacher = lesson.student.head, lesson.teacher.head
        positive = lesson.targets.positive                                      # (B, M)
        z_student = _precise(rows(student.cls, positive))                       # (P, C+1)
        z_teacher = _precise(rows(teacher.cls, positive)).detach()
        score = z_student.detach().softmax(-1)[:, :-1].amax(-1)
        parts = dict(main=self.main_weight * self._imitate(lesson, positive, score))
        if self.vlr_weight:
            near, iou = self._valuable(lesson)
            parts['vlr'] = self.vlr_weight * self._imitate(lesson, near, rows(iou, near))
        if self.kd_weight:
            each = divergence(z_teacher.div(self.kd_temperature).log_softmax(-1),
                              z_student, self.kd_temperature)
            parts['classes'] = self.kd_weight * only(each, positive).sum() / lesson.targets.num_positive
        return dict(loss=sum(parts.values()), **{k: v.detach() for k, v in parts.items()})

    def _imitate(self, lesson: Lesson, chosen: Tensor, weight: Tensor) -> Tensor:
        """``sum w_a K_a / sum w_a`` over the chosen anchors; 0 that keeps its graph over none."""
        bins = (4, len(self.student_bins))
        logits = _precise(rows(lesson.student.head.reg, chosen)).unflatten(-1, bins)    # (P, 4, n+1)
        log_p = self._teacher(_precise(rows(lesson.teacher.head.reg, chosen)).detach())
        each = divergence(log_p, logits, self.temperature).mean(-1)             # (P,)
        weight = only(weight, chosen)
        return (weight.to(each) * each).sum() / _total(weight)

    def _teacher(self, reg: Tensor) -> Tensor:
        """(P, 4, n+1) log-probabilities to imitate, softened by tau."""
        if self.teacher_dist == 'own':
            return reg.unflatten(-1, (4, len(self.student_bins))).div(self.temperature).log_softmax(-1)
        spread = two_hot if self.teacher_dist == 'two_hot' else gaussian
        return spread(point_deltas(reg, self.teacher_bins), self.student_bins)

    @torch.no_grad()
    def _valuable(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """The VLR (B, M) and the best IoU (B, M) among the objects that put an anchor there."""
        low, high = self.vlr
        if launches(lesson.targets.label_weights):
            iou = self._all_valuable(lesson)
            free = ~lesson.targets.positive & (lesson.targets.label_weights > 0)
            return free & (iou > 0), iou
        iou = torch.zeros_like(lesson.targets.label_weights)
        for best, boxes in zip(iou, lesson.boxes, strict=True):
            if len(boxes):  # an image without objects has no VLR
                value, distance = overlaps(lesson.anchors, boxes.to(lesson.anchors))
                band = (distance >= low) & (distance < high)
                best.copy_(value.masked_fill(~band, 0).amax(1))
        # anchors of weight 0 (outside the image, or ignored by the assignment) are in no region
        free = ~lesson.targets.positive & (lesson.targets.label_weights > 0)
        return free & (iou > 0), iou


    def _all_valuable(self, lesson: Lesson) -> Tensor:
        """(B, M): the best IoU in the band, of all images' objects at once."""
        boxes, real = padded_boxes(lesson)
        if not boxes.shape[1]:
            return torch.zeros_like(lesson.targets.label_weights)
        best, some = [], max(1, MOST // (len(boxes) * boxes.shape[1]))
        for anchors in lesson.anchors.split(some):
            value, distance = overlaps(anchors, boxes.to(anchors).flatten(0, 1))       # (m, B n)
            band = (distance >= self.vlr[0]) & (distance < self.vlr[1]) & real.flatten()
            best.append(value.masked_fill(~band, 0).unflatten(1, real.shape).amax(2))
        return torch.cat(best).t()


def divergence(log_p: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """``tau^2 KL(p || softmax(logits / tau))``, summed over the last axis."""
    log_q = logits.div(temperature).log_softmax(-1)
    return temperature ** 2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def two_hot(deltas: Tensor, project: Tensor) -> Tensor:
    """Log-probabilities (..., n+1) of the two neighbouring bins whose mean is the delta (...)."""
    position, n = _position(deltas, project)
    low = position.floor().clamp(max=n - 1)
    share = position - low
    probs = position.new_zeros(*position.shape, n + 1)
    probs.scatter_(-1, low.long()[..., None], (1 - share)[..., None])
    probs.scatter_(-1, low.long()[..., None] + 1, share[..., None])
    return probs.clamp(min=1e-38).log()  # not -inf: 0 log 0 must come out as 0, not NaN


def gaussian(deltas: Tensor, project: Tensor) -> Tensor:
    """Log-probabilities (..., n+1) of a Gaussian around the delta (...), one bin wide."""
    position, n = _position(deltas, project)
    bins = torch.arange(n + 1, device=deltas.device, dtype=deltas.dtype)
    return (-(bins - position[..., None]).square() / 2).log_softmax(-1)


def _position(deltas: Tensor, project: Tensor) -> tuple[Tensor, int]:
    """Where deltas lie in units of bins, in [0, n]."""
    n = len(project) - 1
    step = (project[-1] - project[0]) / n
    return ((deltas - project[0]) / step).clamp(0, n), n


def _precise(x: Tensor) -> Tensor:
    return x.to(precise(x))


def _total(weight: Tensor) -> Tensor:
    """Sum of the weights, averaged over data-parallel processes: their averaged gradients are then
    those of one process with the whole batch. Not below 1e-12, so that nothing is divided by 0."""
    total = weight.detach().sum()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total /= torch.distributed.get_world_size()
    return total.clamp(min=1e-12)
