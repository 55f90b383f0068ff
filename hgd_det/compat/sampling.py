"""What RoIAlign, deformable convolution, deformable attention and CARAFE have in common: each output is a
weighted sum of a few cells of a map.

`bags` is that sum as one call of PyTorch on any device: nothing is stored per cell taken, and its gradients,
for cells and weights, are PyTorch's own. Nothing here waits for the device.
"""
import functools

import torch
from torch.nn import functional as F


def single(*tensors):
    """The tensors without their graph, all of the first one's precision, single at least."""
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return [tensor.detach().to(dtype) for tensor in tensors]


def as_compiled(op):
    """An operator of an extension: it knows no autocast, and writes its buffers without a graph."""
    @functools.wraps(op)
    def called(first, *args, **kwargs):
        with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
            return op(first, *args, **kwargs)

    return called


def gradients(function, inputs, grad_output):
    """Of sum(grad_output * function(*inputs)), for each of the inputs, in single precision at least."""
    with torch.enable_grad():
        inputs = [tensor.requires_grad_() for tensor in single(*inputs)]
        output = function(*inputs)
    return torch.autograd.grad(output, inputs, grad_output.to(output))


def cells_of(maps, groups=1):
    """(B, C, H, W) -> (B * H * W * groups, C / groups): what `bags` chooses from."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1] // groups)


def bags(cells, index, weight):
    """Sum over the last axis of `weight` * `cells[index]`: (N, C), (..., K), (..., K) -> (..., C)."""
    *shape, size = index.shape
    if not index.numel():
        return cells.new_zeros(*shape, cells.shape[1]) + cells[:0].sum() + weight.sum()
    total = F.embedding_bag(index.reshape(-1, size), cells, mode='sum',
                            per_sample_weights=weight.reshape(-1, size))
    return total.view(*shape, cells.shape[1])


def corners(y, x, height, width):
    """The four cells around each position: rows, columns and bilinear weights, each (..., 4).

    What lies outside the map is zero. At a cell's very centre the gradient is the one towards higher
    positions, as in mmcv's operators: the offsets of a new deformable convolution are all 0, so it matters.
    """
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y, x = (torch.where(inside, position, -1) for position in (y, x))  # nan and inf leave no gradient either
    low_y, low_x = y.floor(), x.floor()
    up_y, up_x = y - low_y, x - low_x
    rows = torch.stack([low_y, low_y, low_y + 1, low_y + 1], -1)
    columns = torch.stack([low_x, low_x + 1, low_x, low_x + 1], -1)
    weight = torch.stack([(1 - up_y) * (1 - up_x), (1 - up_y) * up_x, up_y * (1 - up_x), up_y * up_x], -1)
    if isinstance(height, torch.Tensor):
        height, width = height[..., None], width[..., None]
    there = inside[..., None] & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = (torch.where(there, position, 0).long() for position in (rows, columns))
    return rows, columns, weight * there


# Where torchvision is not asked: a CPU's results are the same with and without it.
PLAIN = ('cpu',)


def torchvision_op(name, device):
    """An operator of torchvision with a kernel for the device, or None: none, or a build without."""
    return None if device.type in PLAIN else _torchvision_op(name, device.type.upper())


@functools.cache
def _torchvision_op(name, key):
    try:
        import torchvision  # noqa: F401
        has = torch._C._dispatch_has_kernel_for_dispatch_key(f'torchvision::{name}', key)
    except (ImportError, OSError, RuntimeError):  # absent, or built for another torch
        return None
    return getattr(torch.ops.torchvision, name) if has else None
