"""Deformable attention through mmcv's own Function, as CUDA calls it, against mmcv's form for CPUs."""
import pytest
import torch

mmcv_ops = pytest.importorskip('mmcv.ops.multi_scale_deform_attn')
SHAPES = torch.tensor([[5, 7], [3, 4], [1, 2]])
STARTS = torch.tensor([0, 35, 47])


def inputs(device, dtype=torch.float64, batch=2, queries=6, heads=3, points=4):
    draw = torch.manual_seed(0)
    value = torch.randn(batch, 49, heads, 8, generator=draw)
    locations = torch.rand(batch, queries, heads, 3, points, 2, generator=draw) * 1.6 - 0.3
    weights = torch.rand(batch, queries, heads, 3, points, generator=draw)
    return [part.to(device, dtype).requires_grad_() for part in (value, locations, weights)]


def compiled(value, locations, weights):
    return mmcv_ops.MultiScaleDeformableAttnFunction.apply(
        value, SHAPES.to(value.device), STARTS.to(value.device), locations, weights, 64)


def reference(value, locations, weights):
    return mmcv_ops.multi_scale_deformable_attn_pytorch(value, SHAPES.to(value.device), locations, weights)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 2e-5),
                                              (torch.float16, 3e-2), (torch.bfloat16, 2e-1)])
def test_values_and_all_gradients_equal_mmcvs_python_form(device, dtype, tolerance):
    mine, theirs = inputs(device, dtype), inputs(device)
    for tensor, rounded in zip(theirs, mine, strict=True):  # the same numbers
        tensor.data.copy_(rounded.data)
    got, wanted = compiled(*mine), reference(*theirs)
    assert got.dtype == dtype and got.shape == wanted.shape
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)
    upstream = torch.linspace(-1, 1, got.numel(), device=device, dtype=dtype).view_as(got)
    got = torch.autograd.grad(got, mine, upstream)
    wanted = torch.autograd.grad(wanted, theirs, upstream.double())
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == dtype
        torch.testing.assert_close(g.double(), w, rtol=tolerance, atol=tolerance)


def test_locations_of_another_precision_than_the_value_come_back_in_their_own(device):
    """What AMP brings: half values, single locations."""
    value, locations, weights = inputs(device, torch.float32)
    got = compiled(value.half(), locations, weights)
    assert got.dtype == torch.float16
    grads = torch.autograd.grad(got.float().sum(), (value, locations, weights))
    assert all(grad.dtype == torch.float32 and torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize('place', [float('nan'), float('inf'), -float('inf'), 1e30])
def test_a_location_that_is_nowhere_samples_nothing_and_gets_no_gradient(device, place):
    value, locations, weights = inputs(device)
    with torch.no_grad():
        locations[0, 0] = place
    out = compiled(value, locations, weights)
    grads = torch.autograd.grad(out.sum(), (value, locations, weights))
    assert (out[0, 0] == 0).all() and (grads[1][0, 0] == 0).all()
    assert all(torch.isfinite(part).all() for part in (out, *grads))


def test_without_queries_there_is_no_output(device):
    parts = inputs(device, queries=0)
    out = compiled(*parts)
    assert out.shape == (2, 0, 24)
    out.sum().backward()
    assert (parts[0].grad == 0).all()
