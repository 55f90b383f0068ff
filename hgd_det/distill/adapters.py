"""What makes a student map comparable with the teacher's: a 1x1 convolution and a resize."""
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hgd_det.errors import UserError

POLICIES = ('always', 'mismatch', 'none')


def resize_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear, ``align_corners=False``; the map itself when it already has that size."""
    size = tuple(size)
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode='bilinear', align_corners=False)


class Adapter(nn.Conv2d):
    """``V = resize(W S + b)``: 1x1 convolution from the student's channels to the teacher's.

    No norm and no activation; Xavier-uniform, bias 0. The convolution and the bilinear resize
    commute, so the convolution runs at whichever of the two resolutions is smaller.
    """

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__(student_channels, teacher_channels, 1)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None:
            return super().forward(x)
        if size[0] * size[1] < x.shape[-2] * x.shape[-1]:
            return super().forward(resize_map(x, size))
        return resize_map(super().forward(x), size)

    def __str__(self) -> str:
        return f'1x1 conv {self.in_channels}->{self.out_channels}'


class SameChannels(nn.Module):
    """The adapter that only resizes."""

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return x if size is None else resize_map(x, size)

    def __str__(self) -> str:
        return 'none'


def build_adapter(student_channels: int, teacher_channels: int, policy: str = 'always') -> nn.Module:
    """``always`` a convolution, only on channel ``mismatch``, or ``none`` at all."""
    if policy not in POLICIES:
        raise UserError(f'adapter={policy!r}; choose one of {", ".join(POLICIES)}')
    if policy == 'none' and student_channels != teacher_channels:
        raise UserError(f"adapter='none' needs equal channels, but the student has "
                        f"{student_channels} and the teacher {teacher_channels}; use 'mismatch'")
    if policy == 'always' or (policy == 'mismatch' and student_channels != teacher_channels):
        return Adapter(student_channels, teacher_channels)
    return SameChannels()
