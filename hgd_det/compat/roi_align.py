"""`roi_align_forward` and `roi_align_backward` of mmcv's extension, on the device of the map: torchvision's
operator where there is one for it, else PyTorch.

All samples of all regions are one list, however many a region takes; a bin is a bag of their cells. With a
`sampling_ratio` of 0 the length of the list depends on the regions: only then the device is waited for.
"""
import torch

from hgd_det.compat.sampling import as_compiled, cells_of, gradients, single, torchvision_op


def bilinear(position, size):
    """Lower and upper neighbour of each position along an axis, weight of the upper, validity.

    Positions up to one cell outside the map are pulled to its border; beyond, they sample nothing.
    """
    inside = (position >= -1) & (position <= size)
    position = torch.where(inside, position, 0).clamp(0, size - 1)
    low = position.floor().clamp(max=max(size - 2, 0))
    high = (low + 1).clamp(max=size - 1)
    return low.long(), high.long(), position - low, inside


class Samples:
    """Where regions (image, x1, y1, x2, y2) are sampled: `y`, `x` (S,), bin by bin; bin k has `counts[k]`."""

    def __init__(self, rois, pooled, spatial_scale, sampling_ratio, aligned):
        bins = pooled[0] * pooled[1]
        x1, y1, x2, y2 = (rois[:, 1:] * spatial_scale - (0.5 if aligned else 0)).unbind(1)
        extents = [y2 - y1, x2 - x1]
        if not aligned:
            extents = [extent.clamp(min=1) for extent in extents]  # the legacy rule: at least one cell
        elif rois.device.type == 'cpu':  # another device would be waited for
            for start, extent in zip((y1, x1), extents, strict=True):
                for wrong in (~(extent >= 0)).nonzero()[:1].flatten().tolist():
                    first = float(start[wrong])
                    raise ValueError(f'roi_align: region {wrong} ends before it starts, at '
                                     f'{first + float(extent[wrong]):g} and {first:g} of the feature map')
        steps = [extent / count for extent, count in zip(extents, pooled, strict=True)]
        if sampling_ratio > 0:
            grids = [torch.full_like(step, sampling_ratio, dtype=torch.long) for step in steps]
            total = len(rois) * bins * sampling_ratio ** 2
        else:
            grids = [step.ceil().long().clamp(min=0) for step in steps]
            total = int((grids[0] * grids[1]).sum()) * bins
        self.counts = (grids[0] * grids[1])[:, None].expand(-1, bins).reshape(-1)
        self.starts = self.counts.cumsum(0) - self.counts
        number = torch.arange(len(self.counts), device=rois.device)
        self.bin = number.repeat_interleave(self.counts, output_size=total)
        within = torch.arange(total, device=rois.device) - self.starts[self.bin]
        region, place = self.bin // bins, self.bin % bins
        places = place // pooled[1], place % pooled[1]
        steps, grids = ([table[region] for table in pair] for pair in (steps, grids))
        turns = within // grids[1], within % grids[1]
        self.y, self.x = (
            start[region] + place * step + (turn + 0.5) * step / grid
            for start, place, step, turn, grid in zip((y1, x1), places, steps, turns, grids, strict=True))
        self.image = rois[:, 0].long()[region]

    def cells(self, height, width):
        """The four cells of each sample and their weights, both (S, 4)."""
        y_low, y_high, y_weight, y_inside = bilinear(self.y, height)
        x_low, x_high, x_weight, x_inside = bilinear(self.x, width)
        rows = torch.stack([y_low, y_low, y_high, y_high], 1)
        columns = torch.stack([x_low, x_high, x_low, x_high], 1)
        weight = torch.stack([(1 - y_weight) * (1 - x_weight), (1 - y_weight) * x_weight,
                              y_weight * (1 - x_weight), y_weight * x_weight], 1)
        index = (self.image[:, None] * height + rows) * width + columns
        return index, weight * (y_inside & x_inside)[:, None]


def mean_pool(maps, samples, bins):
    """(B, C, H, W) -> (R, C, *bins), the mean of the samples of each bin; zero where there are none."""
    index, weight = samples.cells(*maps.shape[2:])
    weight = weight / samples.counts[samples.bin, None]
    means = torch.nn.functional.embedding_bag(index.view(-1), cells_of(maps), samples.starts * 4, mode='sum',
                                              per_sample_weights=weight.view(-1))
    return means.view(-1, *bins, maps.shape[1]).permute(0, 3, 1, 2)


def max_pool(maps, samples, bins):
    """The largest sample of each bin, and its position on both axes; each (R, C, *bins).

    The compiled operator starts its search at -10000 and at position -1, and so do we.
    """
    index, weight = samples.cells(*maps.shape[2:])
    count, channels = len(index), maps.shape[1]
    values = (cells_of(maps)[index] * weight[..., None]).sum(1)
    to = samples.bin[:, None].expand(-1, channels)
    best = values.new_full((len(samples.counts), channels), -10000).scatter_reduce(0, to, values, 'amax')
    number = torch.arange(count, device=maps.device)[:, None]
    number = torch.where((values == best[samples.bin]) & (values > -10000), number, count)
    first = torch.full_like(best, count, dtype=torch.long).scatter_reduce(0, to, number, 'amin')
    found = (best, *(torch.cat([axis, axis.new_tensor([-1])])[first] for axis in (samples.y, samples.x)))
    return [table.view(-1, *bins, channels).permute(0, 3, 1, 2) for table in found]


@as_compiled
def roi_align_forward(input, rois, output, argmax_y, argmax_x, aligned_height, aligned_width,
                      spatial_scale, sampling_ratio, pool_mode, aligned):
    """Write `output` (R, C, aligned_height, aligned_width); for `pool_mode` 0 (max; 1 is mean)
    also write the positions of the maxima."""
    bins = aligned_height, aligned_width
    maps, regions = single(input, rois)
    op = torchvision_op('roi_align', input.device)
    if op and pool_mode == 1:
        output.copy_(op(maps, regions, spatial_scale, *bins, sampling_ratio, aligned))
        return
    if not len(rois):
        return
    samples = Samples(regions, bins, spatial_scale, sampling_ratio, aligned)
    if pool_mode == 1:
        output.copy_(mean_pool(maps, samples, bins))
        return
    for buffer, table in zip((output, argmax_y, argmax_x), max_pool(maps, samples, bins), strict=True):
        buffer.copy_(table)


@as_compiled
def roi_align_backward(grad_output, rois, argmax_y, argmax_x, grad_input, aligned_height,
                       aligned_width, spatial_scale, sampling_ratio, pool_mode, aligned):
    """Add the gradient of `roi_align_forward` to `grad_input`."""
    bins = aligned_height, aligned_width
    grads, regions, argmax_y, argmax_x = single(grad_output, rois, argmax_y, argmax_x)
    op = torchvision_op('_roi_align_backward', grad_output.device)
    if op and pool_mode == 1:
        grad_input += op(grads, regions, spatial_scale, *bins, *grad_input.shape, sampling_ratio, aligned)
    elif pool_mode == 0:
        total = grads.new_zeros(grad_input.shape)
        scatter_max(total, grads, regions[:, 0].long(), argmax_y, argmax_x)
        grad_input += total
    elif len(rois):
        samples = Samples(regions, bins, spatial_scale, sampling_ratio, aligned)
        # linear in the map: its gradient is the same at any map
        grad, = gradients(lambda maps: mean_pool(maps, samples, bins), (torch.zeros_like(grad_input),), grads)
        grad_input += grad


def scatter_max(total, grads, images, argmax_y, argmax_x):
    """Add each gradient to the four cells around the position of its maximum; -1 means none."""
    channels, height, width = total.shape[1:]
    plane = (images[:, None] * channels + torch.arange(channels, device=total.device))[:, :, None, None]
    y_low, y_high, y_weight, y_inside = bilinear(argmax_y, height)
    x_low, x_high, x_weight, x_inside = bilinear(argmax_x, width)
    grads = grads * ((argmax_y != -1) & y_inside & x_inside)
    for rows, row_weight in ((y_low, 1 - y_weight), (y_high, y_weight)):
        for columns, column_weight in ((x_low, 1 - x_weight), (x_high, x_weight)):
            cell = (plane * height + rows) * width + columns
            share = grads * row_weight * column_weight
            total.view(-1).index_add_(0, cell.view(-1), share.view(-1))
