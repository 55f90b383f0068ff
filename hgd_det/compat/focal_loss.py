"""`sigmoid_focal_loss` and `softmax_focal_loss` of mmcv's extension, in PyTorch: what every focal loss of
mmdet calls on CUDA.

    loss = -a (1 - p)^gamma log p,  p the probability of the right answer

For the sigmoid each class is a question of its own, and a is alpha where the answer is yes, else 1 - alpha.
Logarithms are taken of logits, so that no probability is too small.
"""
import torch
from torch.nn import functional as F

from hgd_det.compat.sampling import as_compiled, single

TINY = torch.finfo(torch.float32).tiny


def _answers(input, target, weight, alpha):
    """Of each class: whether it is the target (C is none of them), the logit of the right answer to that, and
    what its loss counts."""
    logit, weight = single(input, weight)
    hit = target[:, None] == torch.arange(logit.shape[1], device=logit.device)
    count = torch.where(hit, logit.new_full((), alpha), 1 - alpha)
    if weight.numel():
        count = count * F.pad(weight, (0, 1), value=1)[target][:, None]
    return hit, torch.where(hit, logit, -logit), count


@as_compiled
def sigmoid_focal_loss_forward(input, target, weight, output, gamma, alpha):
    """Write the loss of each logit of `input` (N, C) into `output`; `target` (N,), `weight` (C,) or empty."""
    _, logit, count = _answers(input, target, weight, alpha)
    output.copy_(-count * (-logit).sigmoid().pow(gamma) * F.logsigmoid(logit))


@as_compiled
def sigmoid_focal_loss_backward(input, target, weight, grad_input, gamma, alpha):
    """Write the derivative of each loss for its logit into `grad_input`."""
    hit, logit, count = _answers(input, target, weight, alpha)
    wrong = (-logit).sigmoid()
    slope = wrong.pow(gamma) * (gamma * logit.sigmoid() * F.logsigmoid(logit) - wrong)
    grad_input.copy_(count * torch.where(hit, slope, -slope))


def _of_target(softmax, target, weight):
    """The probability of each target, and what its loss counts: nothing where the target is negative."""
    label = target.clamp(min=0)
    count = (target >= 0).to(softmax.dtype)
    if weight.numel():
        count = count * weight[label]
    return softmax.gather(1, label[:, None])[:, 0], count


@as_compiled
def softmax_focal_loss_forward(input, target, weight, output, gamma, alpha):
    """Write the loss of each row of `input` (N, C), softmax already taken, into `output` (N,)."""
    p, count = _of_target(*single(input), target, weight)
    output.copy_(-alpha * count * (1 - p).pow(gamma) * p.clamp(min=TINY).log())


@as_compiled
def softmax_focal_loss_backward(input, target, weight, buff, grad_input, gamma, alpha):
    """Write the derivative for the logits behind `input` into `grad_input`, a row's part into `buff`."""
    softmax, = single(input)
    p, count = _of_target(softmax, target, weight)
    slope = gamma * (1 - p).clamp(min=TINY).pow(gamma - 1) * p * p.clamp(min=TINY).log() - (1 - p).pow(gamma)
    slope = alpha * count * slope
    buff.copy_(slope)
    hit = target[:, None] == torch.arange(softmax.shape[1], device=softmax.device)
    grad_input.copy_(slope[:, None] * (hit.to(softmax.dtype) - softmax))
