"""A zero that a module's parameters take part in."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Variable


def touch(module: nn.Module, like: Tensor) -> Tensor:
    """A zero in which every parameter of the module takes part: data-parallel training then finds each of
    them in every step, and needs no search for unused ones. One that nothing else reaches gets a gradient of
    zeros."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    zero = like.detach().new_zeros(())
    return _Touch.apply(zero, *parameters) if parameters else zero


class _Touch(torch.autograd.Function):
    """Its gradients are undefined, which costs no operation: zeros are made behind the backward pass, for
    those parameters that have no gradient by then."""

    @staticmethod
    def forward(ctx, zero: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = parameters
        return zero.view_as(zero)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        parameters = ctx.parameters
        Variable._execution_engine.queue_callback(lambda: fill(parameters))
        return (None,) * (1 + len(parameters))


def fill(parameters: Sequence[Tensor]) -> None:
    """Zeros for gradients that are missing."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
