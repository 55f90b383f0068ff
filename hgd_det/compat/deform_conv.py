"""Deformable convolution of mmcv's extension, both versions: torchvision's operator where there is one for
the device, else PyTorch. mmcv has no other form of it, for CPUs neither.
"""
import torch

from hgd_det.compat.sampling import as_compiled, bags, cells_of, corners, gradients, single, torchvision_op


def convolution(input, offset, mask, weight, stride, padding, dilation, groups, deform_groups):
    """Without bias; `mask` None is version 1. Offsets (B, deform_groups * cells * 2, H, W) are y before x."""
    op = torchvision_op('deform_conv2d', input.device)
    if op is None:
        return plain(input, offset, mask, weight, stride, padding, dilation, groups, deform_groups)
    if mask is None:
        mask = input.new_zeros(len(input), 1)
    bias = input.new_zeros(len(weight))
    return op(input, weight, offset, mask, bias, *stride, *padding, *dilation, groups, deform_groups,
              mask.ndim == 4)


def plain(input, offset, mask, weight, stride, padding, dilation, groups, deform_groups):
    """`convolution` in PyTorch: what lies below each cell of the kernel, times the kernel."""
    batch, _, height, width = input.shape
    out, part, kernel_h, kernel_w = weight.shape
    bottom, right = offset.shape[2:]

    def ticks(count, step, start=0):
        return torch.arange(count, device=input.device, dtype=input.dtype) * step + start

    # (B, H, W, kernel's cells, deform_groups, ...)
    offset = offset.view(batch, deform_groups, -1, 2, bottom, right).permute(0, 4, 5, 2, 1, 3)
    row, column = torch.meshgrid(ticks(kernel_h, dilation[0]), ticks(kernel_w, dilation[1]), indexing='ij')
    y = offset[..., 0] + row.reshape(-1, 1) + ticks(bottom, stride[0], -padding[0]).view(-1, 1, 1, 1)
    x = offset[..., 1] + column.reshape(-1, 1) + ticks(right, stride[1], -padding[1]).view(-1, 1, 1)
    rows, columns, share = corners(y, x, height, width)
    if mask is not None:
        mask = mask.view(batch, deform_groups, -1, bottom, right).permute(0, 3, 4, 2, 1)
        share = share * mask[..., None]
    image = torch.arange(batch, device=input.device).view(-1, 1, 1, 1, 1, 1)
    group = torch.arange(deform_groups, device=input.device).view(-1, 1)
    index = ((image * height + rows) * width + columns) * deform_groups + group
    below = bags(cells_of(input, deform_groups), index, share)
    below = below.reshape(batch, bottom, right, kernel_h * kernel_w, groups, part)
    kernel = weight.view(groups, out // groups, part, kernel_h * kernel_w)
    return torch.einsum('bhwkgc,gock->bgohw', below, kernel).flatten(1, 2)


def _settings(kernel):
    """Stride, padding, dilation, groups and deform groups out of what version 1 is called with."""
    return ((kernel['dH'], kernel['dW']), (kernel['padH'], kernel['padW']),
            (kernel['dilationH'], kernel['dilationW']), kernel['group'], kernel['deformable_group'])


def _modulated_settings(kernel):
    return (*((kernel[f'{name}_h'], kernel[f'{name}_w']) for name in ('stride', 'pad', 'dilation')),
            kernel['group'], kernel['deformable_group'])


@as_compiled
def deform_conv_forward(input, weight, offset, output, columns, ones, **kernel):
    """Write the convolution into `output`. `columns` and `ones` are scratch of the extension's own."""
    input, weight, offset = single(input, weight, offset)
    output.copy_(convolution(input, offset, None, weight, *_settings(kernel)))


@as_compiled
def deform_conv_backward_input(input, offset, gradOutput, gradInput, gradOffset, weight, columns, **kernel):
    """Add the gradients of input and offset to their buffers."""
    weight, = single(weight.to(input))
    grads = gradients(lambda input, offset: convolution(input, offset, None, weight, *_settings(kernel)),
                      (input, offset), gradOutput)
    for buffer, grad in zip((gradInput, gradOffset), grads, strict=True):
        buffer += grad


@as_compiled
def deform_conv_backward_parameters(input, offset, gradOutput, gradWeight, columns, ones, *, scale, **kernel):
    """Add `scale` times the gradient of the weight to its buffer."""
    maps, offset = single(input, offset)
    weight = torch.zeros_like(gradWeight)  # the gradient depends on its shape alone
    grad, = gradients(lambda weight: convolution(maps, offset, None, weight.to(maps), *_settings(kernel)),
                      (weight,), gradOutput)
    gradWeight += scale * grad


@as_compiled
def modulated_deform_conv_forward(input, weight, bias, ones, offset, mask, output, columns, *, with_bias,
                                  **kernel):
    """Write the convolution, its samples multiplied by `mask`, into `output`."""
    input, weight, bias, offset, mask = single(input, weight, bias, offset, mask)
    out = convolution(input, offset, mask, weight, *_modulated_settings(kernel))
    output.copy_(out + bias.view(-1, 1, 1) if with_bias else out)


@as_compiled
def modulated_deform_conv_backward(input, weight, bias, ones, offset, mask, columns, grad_input, grad_weight,
                                   grad_bias, grad_offset, grad_mask, grad_output, *, with_bias, **kernel):
    """Add the gradients of all five to their buffers."""
    def function(input, offset, mask, weight):
        return convolution(input, offset, mask, weight, *_modulated_settings(kernel))

    grads = gradients(function, (input, offset, mask, weight), grad_output)
    for buffer, grad in zip((grad_input, grad_offset, grad_mask, grad_weight), grads, strict=True):
        buffer += grad
    if with_bias:
        grad_bias += single(grad_output)[0].sum((0, 2, 3))
