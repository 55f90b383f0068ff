"""Activation boundaries (Heo et al., AAAI 2019): which neurons are on, not how strongly."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgd_det.distill.adapters import Adapter, build_adapter, resize_map
from hgd_det.distill.functional import choose
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import Pair
from hgd_det.errors import UserError

REDUCTIONS = ('mean', 'sum')


class Connector(nn.Module):
    """1x1 convolution and BatchNorm, so that the margin means one deviation; then the resize."""

    def __init__(self, student_channels: int, teacher_channels: int, policy: str):
        super().__init__()
        self.conv = build_adapter(student_channels, teacher_channels, policy)
        self.norm = nn.BatchNorm2d(teacher_channels) if isinstance(self.conv, Adapter) else None

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x, norm = self.conv(x), self.norm
        if norm is not None:
            # one value has no deviation: a 1x1 map of a single image takes the running statistics
            of_batch = self.training and x.numel() > x.shape[1]
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, of_batch,
                             norm.momentum, norm.eps)
        return resize_map(x, size)

    def __str__(self) -> str:
        if self.norm is None:
            return str(self.conv)
        return f'1x1 conv + BN {self.conv.in_channels}->{self.conv.out_channels}'


@TERMS.register_module()
class ActivationBoundary(MapTerm):
    """First learn which of the teacher's neurons are on, then train plainly from there.

    ::

        first 20 %   L = sum over pairs of mean over neurons of  (mu - s)_+^2   where t > 0
                                                                 (mu + s)_+^2   where t <= 0
                     s = BN(W S), before the ReLU                              no detection loss
        then         plain training, no distillation

    A neuron is a channel in a cell, t the teacher's. Only the sign of t counts. The count of neurons on
    the wrong side, ``|1[t > 0] - 1[s > 0]|_1``, has no gradient; it is logged (``differ``, per image),
    and its share of each pair (``differ_s38``).

    The authors add up the neurons of an image, halve the weight with every stage towards the input and
    take 0.003 of it (``reduction='sum', weight=0.003``). Their stages double the channels and halve the
    sides, so that this is one weight on every stage's mean: on maps as unequal as SSD's, the mean.

    The maps are those that heads read, before their activation and before SSD's L2Norm; a map without
    an activation (FPN) has its boundary at 0. Phases follow from the iteration alone. The 20 % are ours;
    an ImageNet recipe has 20 epochs of 120.

    Args:
        margin: ``mu``: how far on its side a neuron must be to be left alone.
        reduction: ``mean`` over the neurons, or the authors' ``sum``.
    """
    schedule = dict(weight='auto', stop=0.2, detection=0.0)
    defaults = dict(act='pre', l2norm='pre')

    def __init__(self, *, margin: float = 1.0, reduction: str = 'mean', **stages):
        super().__init__(**stages)
        if not margin > 0:
            raise UserError(f'ActivationBoundary: margin={margin}; it must be above 0, or a student that '
                            'puts out 0 everywhere has nothing to learn')
        choose('ActivationBoundary', 'reduction', reduction, REDUCTIONS)
        self.margin, self.reduction = margin, reduction

    def adapter_for(self, pair: Pair) -> nn.Module:
        return Connector(pair.student.channels, pair.teacher.channels, self.adapter)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        values, log, count = {}, {}, 0
        for i, (pair, S, Z) in enumerate(self.maps(lesson)):
            on = Z > 0                                                      # (B, C_T, H, W)
            s = self.adapted(pair, S, on.shape[-2:])
            each = boundary_loss(s, on, self.margin)
            values[pair.name] = each.mean() if self.reduction == 'mean' else \
                each.sum() / len(each) / 2 ** (len(self.pairs) - 1 - i)
            wrong = ((s > 0) != on).sum()
            log[f'differ_{pair.name}'] = wrong / on.numel()
            count = count + wrong / len(on)
        return self.summed(values, differ=count, **log)


def boundary_loss(s: Tensor, on: Tensor, margin: float) -> Tensor:
    """Per neuron: the square of what ``s`` lacks to ``margin`` on its side, above 0 where ``on``."""
    return (margin - torch.where(on, s, -s)).clamp(min=0).square()
