"""BatchNorm inside the convolution before it, for a forward pass: the same maps, each walked once less."""
from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

IDENTITY = nn.Identity().eval()


class Folding:
    """``W' = W g / s`` and ``b' = (b - mean) g / s + beta`` with ``s = sqrt(var + eps)``, while a block runs.

    Only where the structure says that a norm follows its convolution and nothing else: neighbours in an
    ``nn.Sequential``, and mmcv's ``ConvModule``. Before and after the block the detector is as it was; the
    weights are those it has when the block begins.

    Args:
        detector: It is in eval.
        keep: Paths of modules whose own output somebody reads: these stay apart.
    """

    def __init__(self, detector: nn.Module, keep: Collection[str] = ()):
        self.pairs: list[tuple[nn.Module, nn.Conv2d, str]] = []
        for path, module in detector.named_modules():
            for conv, norm in _neighbours(module):
                first, second = getattr(module, conv), getattr(module, norm)
                names = {f'{path}.{name}'.lstrip('.') for name in (conv, norm)}
                if type(first) is nn.Conv2d and type(second) is nn.BatchNorm2d \
                        and second.running_mean is not None and not names & set(keep):
                    self.pairs.append((module, first, norm))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        was = [(conv.weight, conv.bias, getattr(module, norm)) for module, conv, norm in self.pairs]
        try:
            with torch.no_grad():
                for (module, conv, norm), (weight, bias, bn) in zip(self.pairs, was, strict=True):
                    weight, bias = fuse_conv_bn_weights(weight, bias, bn.running_mean, bn.running_var, bn.eps,
                                                        bn.weight, bn.bias)
                    conv._parameters.update(weight=weight, bias=bias)
                    module._modules[norm] = IDENTITY
            yield
        finally:
            for (module, conv, norm), (weight, bias, bn) in zip(self.pairs, was, strict=True):
                conv._parameters.update(weight=weight, bias=bias)
                module._modules[norm] = bn


def _neighbours(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a convolution and of what gets its output."""
    if isinstance(module, ConvModule):
        if module.norm_name and module.order[:2] == ('conv', 'norm'):
            yield 'conv', module.norm_name
    elif type(module) is nn.Sequential:
        names = list(module._modules)
        yield from zip(names, names[1:], strict=False)
