"""Chen et al. 2017 (NeurIPS), part one: learn the teacher's class scores, background included."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hgd_det.distill.functional import agreement, only
from hgd_det.distill.head_term import HeadTerm
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.registry import TERMS
from hgd_det.errors import UserError


@TERMS.register_module()
class SoftLoss(HeadTerm):
    """Weighted soft cross-entropy on the class scores of the anchors that matter.

    ::

        L_cls  = mu L_hard + (1 - mu) L_soft
        L_soft = -(T^2 / N+) sum_{a in region} sum_c w_c p_T,c log p_S,c      p = softmax(z / T)

    with ``w = background_weight`` for background and 1 for every class. Background is the LAST
    index here; ports that weight index 0 would favour the first class instead.
    ``L_hard`` is the student's own classification loss: it is scaled by mu while this term counts.

    A sigmoid head has no background column; there ``w`` weights the "not this class" half,
    ``-(p_T log p_S + w (1 - p_T) log(1 - p_S))`` per class; with one class that is the same thing.

    It is a cross-entropy: a student that equals its teacher leaves the teacher's entropy, not 0.

    Args:
        mu: Share of the student's own classification loss.
        background_weight: ``w`` of the background.
        temperature: ``T``; 1 is what the authors found best for detection.
        region: ``hard`` (anchors of objects and the negatives that SSD's loss mines), ``pos`` or
            ``all``.
        detection_key: How the keys of the student's classification loss begin.
    """
    schedule = dict(weight=1.0)

    def __init__(self, *, mu: float = 0.5, background_weight: float = 1.5, temperature: float = 1.0,
                 region: str = 'hard', detection_key: str = 'loss_cls'):
        super().__init__(region=region)
        if not 0 <= mu <= 1:
            raise UserError(f'SoftLoss: mu={mu}; it is a share between 0 and 1')
        if not background_weight >= 0:
            raise UserError(f'SoftLoss: background_weight={background_weight}; '
                            'it cannot be negative')
        if not temperature > 0:
            raise UserError(f'SoftLoss: temperature={temperature}; it must be above 0')
        self.mu, self.background_weight = mu, background_weight
        self.temperature = temperature
        self.scales_detection = {detection_key: mu}

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        z_student, z_teacher, chosen = self.scores(lesson)           # (P, C+1), sigmoid heads (P, C)
        each = (self._sigmoid if self.sigmoid else self._softmax)(
            z_student / self.temperature, z_teacher / self.temperature)
        soft = self.temperature ** 2 * only(each, chosen).sum() / lesson.targets.num_positive
        return dict(loss=(1 - self.mu) * soft, agreement=agreement(z_student, z_teacher, chosen))

    def _softmax(self, z_student: Tensor, z_teacher: Tensor) -> Tensor:
        weight = torch.ones_like(z_student[:1])
        weight[:, -1].fill_(self.background_weight)
        return -(weight * z_teacher.softmax(-1) * z_student.log_softmax(-1)).sum(-1)

    def _sigmoid(self, z_student: Tensor, z_teacher: Tensor) -> Tensor:
        p = z_teacher.sigmoid()
        # softplus(-z) = -log p and softplus(z) = -log(1 - p), finite for any z
        return (p * F.softplus(-z_student)
                + self.background_weight * (1 - p) * F.softplus(z_student)).sum(-1)
