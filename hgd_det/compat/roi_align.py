"""`roi_align_forward` and `roi_align_backward` of mmcv's extension, in torch.

Bilinear sampling on a regular grid is separable: with one matrix of weights per axis, the samples
of a region are `Y @ map @ X.T`. Average pooling averages the rows of Y and X beforehand, and its
gradient is `Y.T @ grad @ X`. Only the part of the map that the region touches takes part. A region
costs a few small matrix products on the CPU: enough for the occasional two-stage teacher; whoever
trains one on a GPU wants the compiled operator.
"""

from math import ceil

import torch


def bilinear(position, size):
    """Lower and upper neighbour of each position along an axis, weight of the upper, validity.

    Positions up to one cell outside the map are pulled to its border; beyond, they sample nothing.
    """
    inside = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    low = position.floor().clamp(max=max(size - 2, 0))
    high = (low + 1).clamp(max=size - 1)
    return low.long(), high.long(), position - low, inside


class Axis:
    """How one region samples one axis: `matrix` (bins * grid, hi - lo) acts on cells `lo:hi`."""

    def __init__(self, start, end, bins, size, sampling_ratio, aligned):
        extent = end - start
        if not aligned:
            extent = extent.clamp(min=1)  # the legacy rule: a region is at least one cell
        elif not extent >= 0:
            raise ValueError(f'roi_align: a region ends before it starts, at {float(end):g} and '
                             f'{float(start):g} of the feature map')
        step = extent / bins
        self.bins = bins
        self.grid = sampling_ratio if sampling_ratio > 0 else ceil(step)
        bin_starts = start + torch.arange(bins, dtype=step.dtype)[:, None] * step
        centres = (torch.arange(self.grid, dtype=step.dtype) + 0.5) * step / self.grid
        self.position = (bin_starts + centres).view(-1)
        low, high, weight, inside = bilinear(self.position, size)
        self.lo, self.hi = (int(low.min()), int(high.max()) + 1) if len(low) else (0, 0)
        self.matrix = step.new_zeros(len(low), self.hi - self.lo)
        rows = torch.arange(len(low))
        self.matrix[rows, high - self.lo] += weight * inside
        self.matrix[rows, low - self.lo] += (1 - weight) * inside

    def mean(self):
        """Average over the samples of each bin, (bins, hi - lo); zero where there are none."""
        shape = (self.bins, self.grid, self.hi - self.lo)
        return self.matrix.view(shape).sum(1) / max(self.grid, 1)


def axes(roi, height, width, pooled, spatial_scale, sampling_ratio, aligned):
    """The y axis and the x axis of a region (image, x1, y1, x2, y2)."""
    x1, y1, x2, y2 = roi[1:] * spatial_scale - (0.5 if aligned else 0)
    return (Axis(y1, y2, pooled[0], height, sampling_ratio, aligned),
            Axis(x1, x2, pooled[1], width, sampling_ratio, aligned))


def on_cpu(*tensors):
    """The tensors on the CPU, all of the first one's precision, single at least."""
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return [tensor.detach().to('cpu', dtype) for tensor in tensors]


def roi_align_forward(input, rois, output, argmax_y, argmax_x, aligned_height, aligned_width,
                      spatial_scale, sampling_ratio, pool_mode, aligned):
    """Write `output` (R, C, aligned_height, aligned_width); for `pool_mode` 0 (max; 1 is mean)
    also write the positions of the maxima."""
    maps, regions = on_cpu(input, rois)
    for r, roi in enumerate(regions):
        y, x = axes(roi, *maps.shape[2:], (aligned_height, aligned_width), spatial_scale,
                    sampling_ratio, aligned)
        part = maps[int(roi[0]), :, y.lo:y.hi, x.lo:x.hi]
        if pool_mode == 1:
            output[r] = y.mean() @ part @ x.mean().T
        else:
            output[r], argmax_y[r], argmax_x[r] = max_pool(part, y, x)


def max_pool(part, y, x):
    """The largest sample of each bin, and its position on both axes; each (C, bins, bins).

    The compiled operator starts its search at -10000 and at position -1, and so do we.
    """
    samples = y.matrix @ part @ x.matrix.T
    samples = samples.view(len(part), y.bins, y.grid, x.bins, x.grid).transpose(2, 3).flatten(3)
    start = samples.new_full((*samples.shape[:3], 1), -10000)
    best, index = torch.cat([start, samples], 3).max(3)
    found, index = index > 0, (index - 1).clamp(min=0)
    row = torch.arange(y.bins)[:, None] * y.grid + index // max(x.grid, 1)
    column = torch.arange(x.bins) * x.grid + index % max(x.grid, 1)
    if not found.any():  # an empty region has no positions to look up
        return best, -1, -1
    nowhere = best.new_tensor(-1)
    return (best, torch.where(found, y.position[row], nowhere),
            torch.where(found, x.position[column], nowhere))


def roi_align_backward(grad_output, rois, argmax_y, argmax_x, grad_input, aligned_height,
                       aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned):
    """Add the gradient of `roi_align_forward` to `grad_input`."""
    grads, regions, argmax_y, argmax_x = on_cpu(grad_output, rois, argmax_y, argmax_x)
    total = grads.new_zeros(grad_input.shape)
    if pool_mode == 0:
        scatter_max(total, grads, regions[:, 0].long(), argmax_y, argmax_x)
    else:
        for roi, grad in zip(regions, grads, strict=True):
            y, x = axes(roi, *total.shape[2:], (aligned_height, aligned_width), spatial_scale,
                        sampling_ratio, aligned)
            part = total[int(roi[0]), :, y.lo:y.hi, x.lo:x.hi]
            part += y.mean().T @ grad @ x.mean()
    grad_input += total.to(grad_input)


def scatter_max(total, grads, images, argmax_y, argmax_x):
    """Add each gradient to the four cells around the position of its maximum; -1 means none."""
    channels, height, width = total.shape[1:]
    plane = (images[:, None] * channels + torch.arange(channels))[:, :, None, None]
    y_low, y_high, y_weight, y_inside = bilinear(argmax_y, height)
    x_low, x_high, x_weight, x_inside = bilinear(argmax_x, width)
    grads = grads * ((argmax_y != -1) & y_inside & x_inside)
    for rows, row_weight in ((y_low, 1 - y_weight), (y_high, y_weight)):
        for columns, column_weight in ((x_low, 1 - x_weight), (x_high, x_weight)):
            cell = (plane * height + rows) * width + columns
            share = grads * row_weight * column_weight
            total.view(-1).index_add_(0, cell.view(-1), share.view(-1))
