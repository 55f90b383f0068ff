"""BatchNorm of a teacher inside the convolutions before it: the same function, a pass over each map less."""
from __future__ import annotations

from collections.abc import Collection, Iterator

from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_norms(detector: nn.Module, keep: Collection[str] = ()) -> list[str]:
    """``W' = W g / s`` and ``b' = (b - mean) g / s + beta`` with ``s = sqrt(var + eps)``, in place.

    The norm becomes an identity, so that what is tapped there is what was. Only where the structure says
    that a norm follows its convolution and nothing else: neighbours in an ``nn.Sequential``, and mmcv's
    ``ConvModule``. The detector is in eval and stays there.

    Args:
        keep: Paths of convolutions whose own output somebody reads.

    Returns:
        The paths of the convolutions.
    """
    found = []
    for path, module in list(detector.named_modules()):
        for conv, norm in _pairs(module):
            first, second = getattr(module, conv), getattr(module, norm)
            name = f'{path}.{conv}' if path else conv
            if name in keep or type(first) is not nn.Conv2d or type(second) is not nn.BatchNorm2d \
                    or second.running_mean is None:
                continue
            first.weight, bias = fuse_conv_bn_weights(
                first.weight, first.bias, second.running_mean, second.running_var, second.eps, second.weight,
                second.bias)
            first.bias = bias
            setattr(module, norm, nn.Identity().train(second.training))
            found.append(name)
    return found


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of a convolution and of the norm that gets its output."""
    if isinstance(module, ConvModule):
        if module.norm_name and module.order[:2] == ('conv', 'norm'):
            yield 'conv', module.norm_name
    elif type(module) is nn.Sequential:
        names = list(module._modules)
        yield from zip(names, names[1:], strict=False)
