"""Gradient-based attention transfer (Zagoruyko & Komodakis, ICLR 2017): care where the teacher cares."""
from __future__ import annotations

import torch
from torch import Tensor

from hgd_det.distill.detection import detection_loss
from hgd_det.distill.functional import precise, unit_vectors
from hgd_det.distill.head_term import HeadTerm
from hgd_det.distill.lesson import HeadOutput, Lesson
from hgd_det.distill.registry import TERMS


@TERMS.register_module()
class GradientAttention(HeadTerm):
    """Which pixels the detection loss depends on (gradient-based attention transfer).

    ::

        J     = d L_det / d image                                   L = mean over images of 1/2 |J_S - J_T|^2
        L_det = 1/N+ (sum_{a in hard} CE(z_a, y_a) + sum_{a in pos} smoothL1(delta_a, t_a))

    J of each image is scaled to length 1 (``normalize``): gradients of pixels are tiny, and their size
    follows the loss, in which the teacher is ahead. Both detectors are held to the student's targets and
    to the negatives that the student's loss mines. An image without objects has no J and costs nothing.

    The gradient of J is a second derivative: a step costs about two of the student's and three passes of
    the teacher. Train without mixed precision: a pixel's gradient has no place in float16.

    Args:
        normalize: Compare directions; False compares the gradients as they are.
    """
    needs = frozenset({'head', 'targets', 'gradient'})
    schedule = dict(weight='auto')
    ssd_like = True

    def __init__(self, *, normalize: bool = True):
        super().__init__()
        self.normalize = normalize

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        hard = lesson.region('hard')
        mine = self._gradient(lesson, lesson.student.head, hard, self.student_bins, torch.is_grad_enabled())
        theirs = self._gradient(lesson, lesson.teacher.head, hard, self.teacher_bins, False)
        cosine = (unit_vectors(mine) * unit_vectors(theirs)).sum(1)
        if self.normalize:
            mine, theirs = unit_vectors(mine), unit_vectors(theirs)
        return dict(loss=(mine - theirs).square().sum(1).mean() / 2, cosine=cosine.mean().detach())

    @staticmethod
    def _gradient(lesson: Lesson, head: HeadOutput, hard: Tensor, bins: Tensor | None, twice: bool) -> Tensor:
        """(B, 3HW): the gradient of the detection loss with respect to the images."""
        with torch.enable_grad():
            loss = detection_loss(head, lesson.targets, region=hard, bins=bins)
            found, = torch.autograd.grad(loss, lesson.images, create_graph=twice, retain_graph=True)
        found = found.to(precise(found)).flatten(1)
        return found if twice else found.detach()
