"""CARAFE and masked convolution through mmcv's own layers, against unfolding and plain convolution."""
import pytest
import torch
from torch.nn import functional as F

mmcv_ops = pytest.importorskip('mmcv.ops')


def by_unfolding(features, masks, kernel, groups, scale):
    batch, channels, height, width = features.shape
    windows = F.unfold(features, kernel, padding=kernel // 2)
    windows = windows.view(batch, groups, channels // groups, kernel ** 2, height, width)
    windows = windows.repeat_interleave(scale, 4).repeat_interleave(scale, 5)
    masks = masks.view(batch, groups, 1, kernel ** 2, height * scale, width * scale)
    return (windows * masks).sum(3).flatten(1, 2)


@pytest.mark.parametrize('kernel, groups, scale', [(5, 1, 2), (3, 2, 3), (1, 4, 1)])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 2e-5),
                                              (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_carafe_equals_unfolding_in_values_and_gradients(device, dtype, tolerance, kernel, groups, scale):
    draw = torch.manual_seed(0)
    features = torch.randn(2, 4, 3, 5, generator=draw).to(device, dtype).requires_grad_()
    masks = torch.rand(2, groups * kernel ** 2, 3 * scale, 5 * scale, generator=draw)
    masks = masks.to(device, dtype).requires_grad_()
    got = mmcv_ops.carafe(features, masks, kernel, groups, scale)
    exact = [tensor.detach().double().requires_grad_() for tensor in (features, masks)]
    wanted = by_unfolding(*exact, kernel, groups, scale)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)
    upstream = torch.linspace(-1, 1, got.numel(), device=device, dtype=dtype).view_as(got)
    for g, w in zip(torch.autograd.grad(got, (features, masks), upstream),
                    torch.autograd.grad(wanted, exact, upstream.double()), strict=True):
        torch.testing.assert_close(g.double(), w, rtol=tolerance, atol=tolerance)


def test_masked_convolution_is_a_convolution_where_the_mask_is_set_and_zero_elsewhere(device):
    layer = mmcv_ops.MaskedConv2d(3, 5, (3, 5), padding=(1, 2)).to(device)
    maps = torch.randn(1, 3, 6, 7, generator=torch.manual_seed(0)).to(device)
    mask = torch.rand(1, 6, 7, generator=torch.manual_seed(1)).to(device) > 0.6
    with torch.no_grad():
        got, wanted = layer(maps, mask), F.conv2d(maps, layer.weight, layer.bias, padding=(1, 2))
    assert 0 < mask.sum() < mask.numel()
    torch.testing.assert_close(got, wanted * mask[:, None])
