"""What a detector costs: parameters, multiply-adds, sizes of its feature maps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmdet.structures import DetDataSample
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


class Complexity(NamedTuple):
    """`maps` are what the head reads: (name, channels, height, width) per level, empty if the model
    has no such part."""

    params: int
    macs: int
    maps: list[tuple[str, int, int, int]]


def count(model: nn.Module, input_size: int | tuple[int, int] = 300) -> Complexity:
    """Counts on one forward pass of a black image, `input_size` pixels a side or (height, width).

    Multiply-adds are those of convolutions and linear layers, the figure papers print as "GFLOPs":
    per output element of a convolution, kernel cells times input channels of its group. Biases,
    normalisation, activations, pooling and attention products are not in it. A layer that runs
    several times (a head shared by levels) counts each time.

    The model is left as it was found: training mode, BatchNorm statistics, gradients.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    macs = 0
    maps: list[tuple[str, int, int, int]] = []

    def add_conv(module: _ConvNd, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if module.transposed:  # every input element meets the kernel once
            macs += inputs[0].numel() * module.weight[0].numel()
        else:
            macs += output.numel() * module.weight[0].numel()

    def add_linear(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        macs += output.numel() * module.in_features

    def see_maps(name: str, output: object) -> None:
        tensors = [output] if isinstance(output, Tensor) else output
        maps.extend((f'{name}[{level}]', *tensor.shape[1:]) for level, tensor in enumerate(tensors))

    # A detector's last module before the head: the neck, or the backbone of a detector without one
    source = next((name for name in ('neck', 'backbone')
                   if isinstance(getattr(model, name, None), nn.Module)), None)
    handles = [module.register_forward_hook(add_conv if isinstance(module, _ConvNd) else add_linear)
               for module in model.modules() if isinstance(module, (_ConvNd, nn.Linear))]
    if source is not None:
        handles.append(getattr(model, source).register_forward_hook(
            lambda module, inputs, output: see_maps(source, output)))
    modes = {module: module.training for module in model.modules()}
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
    try:
        model.eval()
        with torch.no_grad():
            _forward(model, image)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return Complexity(sum(p.numel() for p in model.parameters()), macs, maps)


def _forward(model: nn.Module, image_NCHW: Tensor) -> None:
    if not hasattr(model, '_forward'):
        model(image_NCHW)
        return
    # Two-stage detectors read the image's size from here; others do not look
    shape = tuple(image_NCHW.shape[-2:])
    sample = DetDataSample(metainfo=dict(
        img_shape=shape, ori_shape=shape, batch_input_shape=shape, pad_shape=shape,
        scale_factor=(1.0, 1.0), img_id=0))
    model._forward(image_NCHW, [sample])
