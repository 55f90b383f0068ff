"""The stand-in's RoIAlign against sample-by-sample loops, and its gradient against differences."""

from math import ceil, floor

import pytest
import torch

import hgd_det  # noqa: F401  (provides mmcv._ext)

mmcv_ops = pytest.importorskip('mmcv.ops')


def sample(plane, y, x):
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = floor(y), floor(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    ly, lx = y - y0, x - x0
    return ((1 - ly) * ((1 - lx) * plane[y0, x0] + lx * plane[y0, x1])
            + ly * ((1 - lx) * plane[y1, x0] + lx * plane[y1, x1]))


def roi_align_by_loops(maps, rois, size, scale, ratio, mode, aligned):
    out = torch.zeros(len(rois), maps.shape[1], *size, dtype=maps.dtype)
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0) for c in corners)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        bin_h, bin_w = height / size[0], width / size[1]
        grid_h, grid_w = (ratio, ratio) if ratio > 0 else (ceil(bin_h), ceil(bin_w))
        for c, plane in enumerate(maps[int(image)].tolist()):
            plane = torch.tensor(plane, dtype=maps.dtype)
            for i in range(size[0]):
                for j in range(size[1]):
                    values = [float(sample(plane, y1 + (i + (a + 0.5) / grid_h) * bin_h,
                                           x1 + (j + (b + 0.5) / grid_w) * bin_w))
                              for a in range(grid_h) for b in range(grid_w)]
                    if mode == 'max':
                        out[r, c, i, j] = max(values, default=-10000)
                    else:
                        out[r, c, i, j] = sum(values) / max(len(values), 1)
    return out


MAPS = torch.randn(2, 3, 7, 9, dtype=torch.float64, generator=torch.manual_seed(0))
ROIS = torch.tensor([[0, 1.3, 2.1, 11.7, 9.2], [1, -9, -6, 4, 5.5], [1, 9.1, 6.4, 40, 30],
                     [0, 3, 3, 3.2, 3.4], [1, 60, 60, 70, 70], [0, 0, 0, 17.9, 13.7]],
                    dtype=torch.float64)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 1, 2])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_equals_loops_over_samples(device, mode, ratio, aligned):
    """Regions inside, across and outside the border, and smaller than a cell."""
    args = ((3, 2), 0.5, ratio, mode, aligned)
    torch.testing.assert_close(mmcv_ops.roi_align(MAPS.to(device), ROIS.to(device), *args).cpu(),
                               roi_align_by_loops(MAPS, ROIS, *args))


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_torchvisions_roi_align_gives_the_same_values_and_gradients(torchvision, monkeypatch, ratio, aligned):
    results = []
    for plain in (('cpu',), ()):
        monkeypatch.setattr('hgd_det.compat.sampling.PLAIN', plain)
        maps = MAPS.clone().requires_grad_()
        out = mmcv_ops.roi_align(maps, ROIS, (3, 2), 0.5, ratio, 'avg', aligned)
        results.append([out, *torch.autograd.grad(out.square().sum(), maps)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_gradient_passes_gradcheck(device, mode, ratio, aligned):
    maps, rois = MAPS[:, :1, :5, :6].to(device, copy=True).requires_grad_(), ROIS.to(device)
    assert torch.autograd.gradcheck(
        lambda x: mmcv_ops.roi_align(x, rois, (2, 3), 0.5, ratio, mode, aligned), maps)


@pytest.mark.parametrize('mode, value', [('avg', 0), ('max', -10000)])
def test_roi_align_of_an_empty_region_samples_nothing(mode, value):
    maps = torch.ones(1, 2, 4, 4, requires_grad=True)
    out = mmcv_ops.roi_align(maps, torch.tensor([[0., 2, 2, 2, 2]]), (2, 2), 1.0, 0, mode, True)
    assert (out == value).all()
    out.sum().backward()
    assert (maps.grad == 0).all()


def test_roi_align_without_regions_is_empty():
    maps = torch.ones(1, 2, 4, 4, requires_grad=True)
    out = mmcv_ops.roi_align(maps, torch.zeros(0, 5), (2, 2), 1.0, 0, 'avg', True)
    assert out.shape == (0, 2, 2, 2)
    out.sum().backward()
    assert (maps.grad == 0).all()


def test_roi_align_refuses_a_region_that_ends_before_it_starts():
    with pytest.raises(ValueError, match='ends before it starts'):
        mmcv_ops.roi_align(MAPS, torch.tensor([[0., 5, 5, 1, 9]]).double(), (2, 2))


@pytest.mark.parametrize('dtype, tolerance', [(torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_in_half_precision_is_close_and_stays_half(device, mode, dtype, tolerance):
    maps, rois = (tensor.to(device, dtype).requires_grad_() for tensor in (MAPS, ROIS))
    exact = maps.detach().double().requires_grad_()
    out = mmcv_ops.roi_align(maps, rois, (2, 2), 0.5, 2, mode, True)
    assert out.dtype == dtype
    wanted = mmcv_ops.roi_align(exact, rois.double(), (2, 2), 0.5, 2, mode, True)
    torch.testing.assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)
    out.sum().backward()
    wanted.sum().backward()
    assert maps.grad.dtype == dtype
    if mode == 'avg':  # another rounding of equal maxima is another cell
        torch.testing.assert_close(maps.grad.double(), exact.grad, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize('place', [float('nan'), float('-inf')])
def test_a_region_that_is_nowhere_samples_nothing(device, place):
    rois = ROIS[:2].float().to(device, copy=True)
    rois[0, 1:] = place
    maps = MAPS.float().to(device).requires_grad_()
    out = mmcv_ops.roi_align(maps, rois, (2, 2), 0.5, 2, 'avg', False)
    assert (out[0] == 0).all() and out[1].any()
    out.sum().backward()
    assert torch.isfinite(maps.grad).all()


def test_roi_align_module_of_mmcv_works_in_a_two_stage_head():
    pytest.importorskip('mmdet')
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
    extractor = SingleRoIExtractor(dict(type='RoIAlign', output_size=3, sampling_ratio=0),
                                   out_channels=3, featmap_strides=[4])
    out = extractor((MAPS.float(),), ROIS[:2].float())
    assert out.shape == (2, 3, 3, 3) and out.abs().sum() > 0
