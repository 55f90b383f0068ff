"""`ms_deform_attn` of mmcv's extension, in PyTorch: the attention of Deformable DETR and DINO on CUDA.

A query's output is a sum over 4 * levels * points cells of the maps, so one bag of cells per query and head;
the form that mmcv has for CPUs stores every sample, and reads the maps' sizes back from the device.
"""
import torch

from hgd_det.compat.sampling import as_compiled, bags, corners, gradients, single


def attention(value, locations, weights, shapes, starts):
    """value (B, cells, heads, C), locations (B, queries, heads, levels, points, 2) as x y in 0..1, weights
    without the 2, shapes (levels, 2) as height width, starts (levels,) -> (B, queries, heads * C).
    """
    batch, count, heads, channels = value.shape
    height, width = shapes[:, 0, None], shapes[:, 1, None]
    x, y = locations.unbind(-1)
    rows, columns, corner = corners(y * height - 0.5, x * width - 0.5, height, width)
    cell = starts[:, None, None] + rows * width[..., None] + columns
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1, 1, 1)
    head = torch.arange(heads, device=value.device).view(-1, 1, 1, 1)
    index = (image * count + cell) * heads + head
    out = bags(value.reshape(-1, channels), index.flatten(3), (weights[..., None] * corner).flatten(3))
    return out.flatten(2)


@as_compiled
def ms_deform_attn_forward(value, value_spatial_shapes, value_level_start_index, sampling_locations,
                           attention_weights, im2col_step):
    """Returns the output, as the extension does. `im2col_step` is a matter of the extension's memory."""
    inputs = single(value, sampling_locations, attention_weights)
    return attention(*inputs, value_spatial_shapes, value_level_start_index).to(value)


@as_compiled
def ms_deform_attn_backward(value, value_spatial_shapes, value_level_start_index, sampling_locations,
                            attention_weights, grad_output, grad_value, grad_sampling_loc,
                            grad_attn_weight, im2col_step):
    """Add the gradients of `ms_deform_attn_forward` to the three buffers."""
    grads = gradients(lambda *inputs: attention(*inputs, value_spatial_shapes, value_level_start_index),
                      (value, sampling_locations, attention_weights), grad_output)
    for buffer, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        buffer += grad
