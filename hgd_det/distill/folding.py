"""BatchNorm inside the convolution before it, for a forward pass: the same maps, each walked once less."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# their convolution `conv1` is followed by the norm that `norm1_name` names, and so on
NUMBERED = {kind.forward for kind in (ResNet, BasicBlock, Bottleneck)}
IDENTITY = nn.Identity().eval()


class Folding:
    """``W' = W g / s`` and ``b' = (b - mean) g / s + beta`` with ``s = sqrt(var + eps)``, while a block runs.

    Only where the structure says that a norm follows its convolution and nothing else: neighbours in an
    ``nn.Sequential``, mmcv's ``ConvModule``, and mmdet's ResNet and its blocks. What is hooked when the block
    begins, as by a tap, stays apart: somebody reads it. Before and after the block the detector, which is in
    eval, is as it was; the weights are those it has when the block begins.
    """

    def __init__(self, detector: nn.Module):
        self.pairs: list[tuple[nn.Module, nn.Conv2d, str]] = []
        for module in detector.modules():
            for conv, norm in _neighbours(module):
                first, second = getattr(module, conv), getattr(module, norm)
                if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d \
                        and second.running_mean is not None:
                    self.pairs.append((module, first, norm))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        pairs = [(module, conv, norm) for module, conv, norm in self.pairs
                 if not _hooked(conv) and not _hooked(getattr(module, norm))]
        was = [(conv.weight, conv.bias, getattr(module, norm)) for module, conv, norm in pairs]
        try:
            with torch.no_grad():
                for (module, conv, norm), (weight, bias, bn) in zip(pairs, was, strict=True):
                    weight, bias = fuse_conv_bn_weights(weight, bias, bn.running_mean, bn.running_var, bn.eps,
                                                        bn.weight, bn.bias)
                    conv._parameters.update(weight=weight, bias=bias)
                    module._modules[norm] = IDENTITY
            yield
        finally:
            for (module, conv, norm), (weight, bias, bn) in zip(pairs, was, strict=True):
                conv._parameters.update(weight=weight, bias=bias)
                module._modules[norm] = bn


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _neighbours(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a convolution and of what gets its output."""
    if isinstance(module, ConvModule):
        if module.norm_name and module.order[:2] == ('conv', 'norm'):
            yield 'conv', module.norm_name
    elif type(module) is nn.Sequential:
        names = list(module._modules)
        yield from zip(names, names[1:], strict=False)
    elif type(module).forward in NUMBERED:
        for number in '123':
            if f'conv{number}' in module._modules:
                yield f'conv{number}', getattr(module, f'norm{number}_name')
