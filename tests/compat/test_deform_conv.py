"""Both deformable convolutions through mmcv's own layers, against loops and plain convolution."""
from math import floor

import pytest
import torch
from torch.nn import functional as F

from hgd_det.compat import deform_conv

pytestmark = pytest.mark.thorough

mmcv_ops = pytest.importorskip('mmcv.ops')

# stride, padding, dilation, groups, deform groups; height before width
SETTINGS = [((1, 1), (1, 1), (1, 1), 1, 1), ((2, 1), (0, 2), (1, 2), 2, 1), ((1, 2), (2, 1), (2, 1), 1, 2),
            ((1, 1), (1, 1), (1, 1), 2, 4)]


def inputs(settings, device='cpu', dtype=torch.float64, spread=1.5):
    stride, padding, dilation, groups, deform = settings
    draw = torch.manual_seed(0)
    maps, kernel = torch.randn(2, 4, 6, 7, generator=draw), torch.randn(6, 4 // groups, 3, 2, generator=draw)
    size = F.conv2d(maps, kernel, None, stride, padding, dilation, groups).shape[2:]
    offset = torch.randn(2, deform * 12, *size, generator=draw) * spread
    mask = torch.rand(2, deform * 6, *size, generator=draw)
    bias = torch.randn(6, generator=draw)
    return [part.to(device, dtype).requires_grad_() for part in (maps, offset, mask, kernel, bias)]


def version_1(maps, offset, mask, kernel, bias, settings):
    return mmcv_ops.deform_conv2d(maps, offset, kernel, *settings, False)


def version_2(maps, offset, mask, kernel, bias, settings):
    return mmcv_ops.modulated_deform_conv2d(maps, offset, mask, kernel, bias, *settings)


def by_loops(maps, offset, mask, kernel, bias, settings):
    stride, padding, dilation, groups, deform = settings
    height, width = maps.shape[2:]
    out = bias.new_zeros(len(maps), len(kernel), *offset.shape[2:]) + bias.view(-1, 1, 1)

    def cell(image, channel, y, x):
        return float(maps[image, channel, y, x]) if 0 <= y < height and 0 <= x < width else 0.0

    part, out_part, share = kernel.shape[1], len(kernel) // groups, maps.shape[1] // deform
    for image, o, i, j in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
        for p, k, m in torch.cartesian_prod(*map(torch.arange, kernel.shape[1:])).tolist():
            channel = o // out_part * part + p
            place = channel // share * kernel.shape[2] * kernel.shape[3] + k * kernel.shape[3] + m
            y = i * stride[0] - padding[0] + k * dilation[0] + float(offset[image, 2 * place, i, j])
            x = j * stride[1] - padding[1] + m * dilation[1] + float(offset[image, 2 * place + 1, i, j])
            low, left = floor(y), floor(x)
            value = sum(cell(image, channel, low + a, left + b)
                        * (y - low if a else 1 - y + low) * (x - left if b else 1 - x + left)
                        for a in (0, 1) for b in (0, 1))
            out[image, o, i, j] += float(kernel[o, p, k, m]) * float(mask[image, place, i, j]) * value
    return out


@pytest.mark.parametrize('settings', SETTINGS)
def test_both_versions_equal_loops_over_samples(device, settings):
    parts = [part.detach() for part in inputs(settings)]
    moved = [part.to(device) for part in parts]
    torch.testing.assert_close(version_2(*moved, settings).cpu(), by_loops(*parts, settings))
    parts[2].fill_(1)
    parts[4].fill_(0)
    torch.testing.assert_close(version_1(*moved, settings).cpu(), by_loops(*parts, settings))


@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('version', [version_1, version_2])
def test_gradients_pass_gradcheck(device, version, settings):
    parts = inputs(settings, device)
    unused = (2, 4) if version is version_1 else ()
    parts = [part.detach() if number in unused else part for number, part in enumerate(parts)]
    torch.autograd.gradcheck(lambda *parts: version(*parts, settings), parts, fast_mode=True)


@pytest.mark.parametrize('settings', SETTINGS)
def test_without_offsets_it_is_a_convolution_in_values_and_gradients(device, settings):
    maps, offset, mask, kernel, bias = inputs(settings, device, spread=0)
    got = version_2(maps, offset, torch.ones_like(mask), kernel, bias, settings)
    stride, padding, dilation, groups, _ = settings
    wanted = F.conv2d(maps, kernel, bias, stride, padding, dilation, groups)
    torch.testing.assert_close(got, wanted)
    upstream = torch.linspace(-1, 1, got.numel(), device=device, dtype=got.dtype).view_as(got)
    for g, w in zip(torch.autograd.grad(got, (maps, kernel, bias), upstream),
                    torch.autograd.grad(wanted, (maps, kernel, bias), upstream), strict=True):
        torch.testing.assert_close(g, w)


def test_at_offsets_of_zero_the_gradient_is_the_one_towards_higher_positions(device):
    """Where every deformable layer begins: its offsets are 0, and a position has a slope on either side."""
    settings, step = SETTINGS[0], 1e-6
    maps, offset, mask, kernel, bias = inputs(settings, device, spread=0)
    grad, = torch.autograd.grad(version_2(maps, offset, mask, kernel, bias, settings).sum(), offset)
    for place in [(0, 0, 2, 3), (1, 7, 0, 5), (0, 5, 4, 3)]:
        moved = offset.detach().clone()
        moved[place] += step
        rise = (version_2(maps, moved, mask, kernel, bias, settings)
                - version_2(maps, offset, mask, kernel, bias, settings)).sum()
        assert abs(grad[place] - rise / step) < 1e-4


@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-4), (torch.float16, 1e-1),
                                              (torch.bfloat16, 6e-1)])
@pytest.mark.parametrize('version', [version_1, version_2])
def test_every_precision_gives_values_and_gradients_of_its_own(device, version, dtype, tolerance):
    settings = SETTINGS[3]
    parts, exact = inputs(settings, device, dtype), inputs(settings, device)
    for tensor, rounded in zip(exact, parts, strict=True):
        tensor.data.copy_(rounded.data)
    got, wanted = version(*parts, settings), version(*exact, settings)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance / 4, atol=tolerance / 4)
    upstream = torch.linspace(-1, 1, got.numel(), device=device, dtype=dtype).view_as(got)
    which = (0, 1, 3) if version is version_1 else range(5)
    for number in which:
        g, = torch.autograd.grad(got, parts[number], upstream, retain_graph=True)
        w, = torch.autograd.grad(wanted, exact[number], upstream.double(), retain_graph=True)
        assert g.dtype == dtype
        torch.testing.assert_close(g.double(), w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('version', [version_1, version_2])
def test_torchvisions_operator_gives_the_same_values_and_gradients(
        torchvision, monkeypatch, version, settings):
    results = []
    for plain in (('cpu',), ()):
        monkeypatch.setattr('hgd_det.compat.sampling.PLAIN', plain)
        assert (deform_conv.torchvision_op('deform_conv2d', torch.device('cpu')) is None) == bool(plain)
        parts = inputs(settings)
        out = version(*parts, settings)
        results.append([out, *torch.autograd.grad(out.square().sum(), parts, allow_unused=True)])
    for plain, theirs in zip(*results, strict=True):
        assert (plain is None) == (theirs is None)
        if plain is not None:
            torch.testing.assert_close(plain, theirs)


@pytest.mark.parametrize('kind', ['DCN', 'DCNv2'])
def test_layers_of_mmcv_train_under_autocast(device, kind):
    from mmcv.cnn import build_conv_layer
    layer = build_conv_layer(dict(type=kind, deform_groups=1), 4, 6, 3, padding=1, bias=False).to(device)
    maps = torch.randn(2, 4, 8, 8, device=device, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        out = layer(maps)
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    for tensor in (maps, *layer.parameters()):
        assert tensor.grad.dtype == torch.float32 and torch.isfinite(tensor.grad).all() and tensor.grad.any()
