"""CARAFE and masked convolution of mmcv's extension, in PyTorch: the upsampling of CARAFE's necks, and what
Guided Anchoring's heads call when they predict.
"""
import torch
from torch.nn import functional as F

from hgd_det.compat.sampling import as_compiled, bags, cells_of, gradients, single


def reassembled(features, masks, kernel_size, group_size, scale_factor):
    """Each cell of the larger map is the `masks`-weighted sum of the `kernel_size` square window below it."""
    batch, _, height, width = features.shape
    device, reach = features.device, kernel_size // 2
    step = torch.arange(-reach, reach + 1, device=device)
    y = torch.arange(height * scale_factor, device=device)[:, None] // scale_factor + step
    x = torch.arange(width * scale_factor, device=device)[:, None] // scale_factor + step
    there = ((y >= 0) & (y < height))[:, None, :, None] & ((x >= 0) & (x < width))[None, :, None, :]
    cell = y.clamp(0, height - 1)[:, None, :, None] * width + x.clamp(0, width - 1)[None, :, None, :]
    # (B, H, W, groups, window)
    there, cell = (table.flatten(2)[None, :, :, None] for table in (there, cell))
    image = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1)
    group = torch.arange(group_size, device=device).view(-1, 1)
    index = (image * height * width + cell) * group_size + group
    weight = masks.view(batch, group_size, -1, *masks.shape[2:]).permute(0, 3, 4, 1, 2) * there
    return bags(cells_of(features, group_size), index, weight).flatten(3).permute(0, 3, 1, 2)


@as_compiled
def carafe_forward(features, masks, rfeatures, routput, rmasks, output, *, kernel_size, group_size,
                   scale_factor):
    """Write the larger map into `output`. Of the scratch only `rfeatures` is used: the backward gets it in
    place of the features."""
    rfeatures.copy_(features)
    features, masks = single(features, masks)
    output.copy_(reassembled(features, masks, kernel_size, group_size, scale_factor))


@as_compiled
def carafe_backward(top_grad, rfeatures, masks, rtop_grad, rbottom_grad_hs, rbottom_grad, rmask_grad,
                    bottom_grad, mask_grad, *, kernel_size, group_size, scale_factor):
    """Add the gradients to `bottom_grad` and `mask_grad`."""
    grads = gradients(lambda *inputs: reassembled(*inputs, kernel_size, group_size, scale_factor),
                      (rfeatures, masks), top_grad)
    for buffer, grad in zip((bottom_grad, mask_grad), grads, strict=True):
        buffer += grad


@as_compiled
def masked_im2col_forward(im, mask_h_idx, mask_w_idx, col, *, kernel_h, kernel_w, pad_h, pad_w):
    """Write the window of each position of the mask into `col` (C * kernel_h * kernel_w, positions)."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = torch.arange(kernel_h, device=im.device)[:, None, None] + mask_h_idx
    columns = torch.arange(kernel_w, device=im.device)[:, None] + mask_w_idx
    col.copy_(padded[:, rows, columns].view(col.shape))


@as_compiled
def masked_col2im_forward(col, mask_h_idx, mask_w_idx, im, *, height, width, channels):
    """Write `col` (channels, positions) to the positions of the mask in `im` (1, channels, height, width)."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im)
