"""Knowledge distillation (Hinton et al., 2015): the teacher's softened class scores."""
from __future__ import annotations

from torch import Tensor

from hgd_det.distill.functional import agreement, only
from hgd_det.distill.head_term import HeadTerm
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.registry import TERMS
from hgd_det.errors import UserError


@TERMS.register_module()
class LogitKD(HeadTerm):
    """Imitate the class distribution of every anchor that matters, softened by a temperature.

    ::

        L = (T^2 / N+) sum_{a in region} KL(p_T,a || p_S,a)         p = softmax(z / T)

    The gradient is that of the cross-entropy -sum_c p_T,c log p_S,c, which the method is often
    written as; KL subtracts the teacher's entropy, so that a student that equals its teacher has
    the value 0. The student's own losses stay as they are.

    A sigmoid head has no common distribution: there KL is summed over the classes, each a choice
    of two, yes with sigmoid(z / T) and no with the rest.

    For large T the value nears ``1/(2K) sum_c (z_S,c - z_T,c)^2`` per anchor, over K classes,
    logits less their mean: :class:`~hgd_det.distill.terms.logit_l2.LogitL2` with ``center=True``.

    Args:
        temperature: ``T``.
        t2: Multiply by T^2. Without it the gradient shrinks by about T^2.
        region: ``hard`` (anchors of objects and the negatives that SSD's loss mines), ``pos`` or
            ``all``. ``N+``, the number of anchors of objects, divides in each.
    """
    schedule = dict(weight=1.0)

    def __init__(self, *, temperature: float = 4.0, t2: bool = True, region: str = 'hard'):
        super().__init__(region=region)
        if not temperature > 0:
            raise UserError(f'LogitKD: temperature={temperature}; it must be above 0')
        self.temperature, self.t2 = temperature, t2

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        z_student, z_teacher, chosen = self.scores(lesson)              # (P, C+1), sigmoid heads (P, C)
        each = self.divergence(z_teacher / self.temperature, z_student / self.temperature)
        scale = self.temperature ** 2 if self.t2 else 1.0
        return dict(loss=scale * only(each, chosen).sum() / lesson.targets.num_positive,
                    agreement=agreement(z_student, z_teacher, chosen))
