"""A detector run with wider weights than its own, of which it is the leading part.

No config is scaled: convolutions and norms take their widths from the tensors they are given. Which
dimensions are widths is seen in a dry run, and that the detector is a part of the wider one is tried out.
"""
from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from hgd_det.errors import UserError

Shapes = dict[str, tuple[int, ...]]


def widen(detector: nn.Module, widths: Sequence[float], input_size: tuple[int, int]) -> list[
        tuple[nn.Module, Shapes]]:
    """Per width an :func:`outline` of the detector and the shapes of the weights to run it with.

    With any weights, and zeros around them, the wider detector must put out what the detector does with
    those weights alone: only then is the detector a part of it.
    """
    model, image = copy.deepcopy(detector).eval(), torch.randn(1, 3, *input_size)
    weights = {name: nn.init.kaiming_uniform_(torch.empty_like(p)) if p.ndim > 1 else torch.ones_like(p)
               for name, p in model.named_parameters()}
    first, last, expected = _trace(model, weights, image)
    wider = []
    for width in widths:
        net, shapes = outline(model, width), _shapes(model, first, last, width)
        _try(f'{type(detector).__name__} with its {type(detector.bbox_head).__name__}', width, net,
             {name: _padded(value, shapes[name]) for name, value in weights.items()}, image, expected)
        wider.append((outline(model, width), shapes))
    return wider


def compose(base: Tensor, below: Tensor | None, right: Tensor | None, shape: Sequence[int]) -> Tensor:
    """``[[base, right], [below]]`` cut to the shape: the base leads in both channel dimensions."""
    if right is not None:
        base = torch.cat([base, right[:, :shape[1] - base.shape[1]]], 1)
    if below is not None:
        below = below[:shape[0] - base.shape[0]]
        base = torch.cat([base, below[:, :shape[1]] if base.ndim > 1 else below])
    return base


def outline(detector: nn.Module, width: float) -> nn.Module:
    """The detector without parameters, to be given wider ones by ``functional_call``; norm statistics are
    its own."""
    net = copy.deepcopy(detector)
    for module in net.modules():
        for name in module._parameters:
            module._parameters[name] = None
        if isinstance(module, _NormBase) and module.running_mean is not None:
            channels = _grown(len(module.running_mean), width)
            module.running_mean = module.running_mean.new_zeros(channels)
            module.running_var = module.running_var.new_ones(channels)
            module.num_batches_tracked = torch.zeros_like(module.num_batches_tracked)
        elif isinstance(module, nn.Conv2d) and module.groups > 1:
            module.groups = _grown(module.groups, width)
        elif isinstance(module, nn.GroupNorm):  # more groups of the same size
            module.num_groups = _grown(module.num_groups, width)
    return net


@torch.no_grad()
def copy_frozen(net: nn.Module, detector: nn.Module) -> None:
    """Give the detector's own channels its statistics, in norms that do not measure them."""
    for name, norm in net.named_modules():
        if isinstance(norm, _NormBase) and norm.running_mean is not None and not norm.training:
            theirs = detector.get_submodule(name)
            norm.running_mean[:len(theirs.running_mean)] = theirs.running_mean
            norm.running_var[:len(theirs.running_var)] = theirs.running_var


def _grown(channels: int, width: float) -> int:
    return round(channels * width)


def _trace(detector: nn.Module, weights: dict[str, Tensor], image: Tensor) -> tuple[
        set[str], set[str], list[Tensor]]:
    """Convolutions that read the image, those that no other follows before the head's output, and that
    output."""
    first, nodes = set(), {}

    def saw(name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        if not args[0].requires_grad:
            first.add(name)
        nodes[output.grad_fn] = name

    handles = [module.register_forward_hook(partial(saw, name))
               for name, module in detector.named_modules() if isinstance(module, nn.Conv2d)]
    with torch.enable_grad():
        weights = {name: value.clone().requires_grad_() for name, value in weights.items()}
        outputs = _tensors(functional_call(detector, weights, (image,), dict(mode='tensor')))
    for handle in handles:
        handle.remove()
    last, seen, todo = set(), set(), [output.grad_fn for output in outputs]
    while todo:
        node = todo.pop()
        if node in nodes:
            last.add(nodes[node])
        elif node is not None and node not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
    return first, last, [output.detach() for output in outputs]


def _tensors(outputs) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [t for part in outputs for t in _tensors(part)] if isinstance(outputs, (list, tuple)) else []


def _shapes(detector: nn.Module, first: set[str], last: set[str], width: float) -> Shapes:
    """The shape of every parameter; what the image has and what the head puts out stay as they are."""
    shapes = {}
    for name, module in detector.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            shape = list(parameter.shape)
            if isinstance(module, nn.Conv2d):
                if module.groups not in (1, module.in_channels):
                    raise UserError(f'NetAug: {name} convolves in {module.groups} groups; only plain and '
                                    'depthwise convolutions can be widened')
                if name not in last:
                    shape[0] = _grown(shape[0], width)
                if key == 'weight' and name not in first and module.groups == 1:
                    shape[1] = _grown(shape[1], width)
            elif len(shape) == 1:
                shape[0] = _grown(shape[0], width)
            elif shape:
                raise UserError(f'NetAug: {name} is a {type(module).__name__}; only convolutions, and layers '
                                'with one number per channel, can be widened')
            shapes[f'{name}.{key}'] = tuple(shape)
    return shapes


def _padded(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    whole = value.new_zeros(shape)
    whole[tuple(slice(n) for n in value.shape)] = value
    return whole


@torch.no_grad()
def _try(kind: str, width: float, net: nn.Module, weights: dict[str, Tensor], image: Tensor,
         expected: list[Tensor]) -> None:
    try:
        found = _tensors(functional_call(net, weights, (image,), dict(mode='tensor')))
    except Exception as error:
        raise UserError(f'NetAug: this {kind} does not run with {width:g} times the channels: '
                        f'{error}') from error
    if any(a.shape != b.shape or (a - b).abs().max() > 1e-3 * b.abs().max()
           for a, b in zip(found, expected, strict=True)):
        raise UserError(f'NetAug: this {kind} is not the leading part of one with {width:g} times the '
                        'channels; some layer joins, splits or mixes channels. Train it without this term')
