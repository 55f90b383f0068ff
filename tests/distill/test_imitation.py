"""The tiled imitation equals the obvious one, in value and in every gradient."""
from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d

from hgd_det.distill import functional
from hgd_det.distill.imitation import imitation

LAYOUTS = {'nchw': torch.contiguous_format, 'nhwc': torch.channels_last}
# one tile; whole images; some rows of one image
BUDGETS = {'one': 2 ** 19, 'images': 100, 'rows': 30}


def obvious(S, Z, weight, bias, w, scale, distance, l2_reduce):
    V = S if weight is None else conv2d(S, weight, bias)
    ell = functional.cosine_distance(V, Z) if distance == 'cosine' else \
        functional.l2_distance(V, Z, l2_reduce)
    D = (w * ell).sum((1, 2))
    return (scale * D).sum(), D


def problem(shape=(3, 4, 6, 5, 4), dtype=torch.float32, student='nchw', teacher='nchw', seed=0):
    """S, Z, weight, bias, w, scale with some dead teacher cells and a patch of weights."""
    B, c, C, H, W = shape
    g = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype)

    S = draw(B, c, H, W).contiguous(memory_format=LAYOUTS[student])
    Z = draw(B, C, H, W)
    Z[:, :, H // 2, W // 2] = 0
    Z = Z.contiguous(memory_format=LAYOUTS[teacher])
    w = draw(B, H, W).abs()
    w[0, :, :1] = 0
    w[-1] = 0
    return S, Z, draw(C, c, 1, 1), draw(C), w, draw(B).abs()


def gradients(function, S, Z, weight, bias, w, scale, wanted, **options):
    leaves = {name: value.detach().clone().requires_grad_(name in wanted) for name, value in
              dict(S=S, weight=weight, bias=bias, w=w, scale=scale).items() if value is not None}
    value, D = function(leaves['S'], Z, leaves.get('weight'), leaves.get('bias'), leaves['w'],
                        leaves['scale'], **options)
    (value * 3).backward()
    return value.detach(), D.detach(), {name: leaves[name].grad for name in wanted}


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('distance', [('cosine', 'sum'), ('l2', 'sum'), ('l2', 'mean')])
@pytest.mark.parametrize('budget', BUDGETS)
@pytest.mark.parametrize('layouts', [('nchw', 'nchw'), ('nhwc', 'nhwc'), ('nhwc', 'nchw'),
                                     ('nchw', 'nhwc')])
@pytest.mark.parametrize('wants_w', [False, True])
def test_value_and_gradients_equal_the_obvious_way(monkeypatch, dtype, distance, budget, layouts,
                                                   wants_w):
    monkeypatch.setattr(functional, 'TILE', BUDGETS[budget])
    options = dict(distance=distance[0], l2_reduce=distance[1])
    inputs = problem(dtype=dtype, student=layouts[0], teacher=layouts[1])
    wanted = ['S', 'weight', 'bias', 'scale'] + ['w'] * wants_w
    mine = gradients(imitation, *inputs, wanted, **options)
    theirs = gradients(obvious, *inputs, wanted, **options)
    torch.testing.assert_close(
        mine, theirs, **(dict(rtol=1e-10, atol=1e-12) if dtype == torch.float64 else
                         dict(rtol=1e-5, atol=1e-5)))
    assert mine[0].dtype == dtype


@pytest.mark.parametrize('shape', [(1, 4, 4, 1, 1), (4, 3, 3, 1, 1), (2, 3, 3, 30, 20)])
def test_without_an_adapter_the_map_is_compared_as_it_is(monkeypatch, shape):
    monkeypatch.setattr(functional, 'TILE', 200)
    S, Z, _, _, w, scale = problem(shape)
    w += 0.1
    Z = Z + 0.1
    before = S.clone()
    for distance in ('cosine', 'l2'):
        options = dict(distance=distance, l2_reduce='sum')
        mine = gradients(imitation, S, Z, None, None, w, scale, ['S'], **options)
        theirs = gradients(obvious, S, Z, None, None, w, scale, ['S'], **options)
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert torch.equal(S, before)


@pytest.mark.parametrize('distance', ['cosine', 'l2'])
@pytest.mark.parametrize('constant_w', [False, True])
def test_gradcheck(monkeypatch, distance, constant_w):
    monkeypatch.setattr(functional, 'TILE', 30)
    S, Z, weight, bias, w, scale = problem((2, 2, 3, 4, 3), torch.float64)
    leaves = [x.requires_grad_() for x in (S, weight, bias, scale)]
    w.requires_grad_(not constant_w)

    def value(S, weight, bias, scale, w):
        return imitation(S, Z, weight, bias, w, scale, distance=distance)[0]
    assert torch.autograd.gradcheck(value, (*leaves, w))


def test_the_bias_and_the_scale_may_be_left_out():
    S, Z, weight, _, w, _ = problem()
    value, D = imitation(S, Z, weight, None, w)
    zero, mean = torch.zeros(len(weight)), torch.full((len(S),), 1 / len(S))
    torch.testing.assert_close((value, D), obvious(S, Z, weight, zero, w, mean, 'cosine', 'sum'))


def test_only_what_wants_a_gradient_gets_one():
    S, Z, weight, bias, w, scale = problem()
    weight.requires_grad_()
    Z.requires_grad_()
    imitation(S, Z, weight, bias, w, scale)[0].backward()
    assert weight.grad is not None
    assert (S.grad, Z.grad, bias.grad, w.grad, scale.grad) == (None,) * 5
    with torch.no_grad():
        value, D = imitation(S, Z, weight, bias, w, scale)
    assert not value.requires_grad and not D.requires_grad


def test_backward_may_run_twice_where_the_graph_is_kept():
    S, Z, *rest = problem()
    S.requires_grad_()
    value, _ = imitation(S, Z, *rest)
    once, = torch.autograd.grad(value, S, retain_graph=True)
    again, = torch.autograd.grad(value * 2, S)
    torch.testing.assert_close(again, 2 * once)


@pytest.mark.parametrize('budget', BUDGETS)
def test_cells_without_weight_get_no_gradient(monkeypatch, budget):
    monkeypatch.setattr(functional, 'TILE', BUDGETS[budget])
    S, Z, weight, bias, w, scale = problem()
    S.requires_grad_()
    value, D = imitation(S, Z, weight, bias, w, scale)
    value.backward()
    assert D[-1] == 0
    assert (S.grad[-1] == 0).all()
    assert (S.grad[0, :, :, 0] == 0).all()


def test_a_batch_without_any_weight_gives_zero_and_a_whole_graph():
    S, Z, weight, bias, w, _ = problem()
    leaves = [x.requires_grad_() for x in (S, weight, bias)]
    value, D = imitation(*leaves[:1], Z, *leaves[1:], w * 0)
    value.backward()
    assert value == 0 and (D == 0).all()
    assert all((x.grad == 0).all() for x in leaves)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_half_precision_maps_are_computed_in_float32(dtype, layout):
    S, Z, weight, bias, w, scale = problem((2, 4, 6, 20, 20), student=layout, teacher=layout)
    S, Z = S.to(dtype), Z.to(dtype)
    wanted = ['S', 'weight', 'bias']
    options = dict(distance='cosine', l2_reduce='sum')
    value, D, grad = gradients(imitation, S, Z, weight, bias, w, scale, wanted, **options)
    exact = gradients(obvious, S.float(), Z.float(), weight, bias, w, scale, wanted, **options)
    assert value.dtype == D.dtype == grad['weight'].dtype == torch.float32
    assert grad['S'].dtype == dtype
    torch.testing.assert_close(value, exact[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad['weight'], exact[2]['weight'], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad['S'].float(), exact[2]['S'], rtol=2e-2, atol=1e-2)


def test_a_loss_scale_saves_small_float16_gradients():
    S, Z, weight, bias, _, scale = problem((1, 4, 6, 20, 20))
    w = torch.full((1, 20, 20), 1e-9)  # below float16's smallest number
    S = S.half().requires_grad_()
    value, _ = imitation(S, Z.half(), weight, bias, w, scale)
    (value * 2 ** 20).backward()
    assert (S.grad != 0).float().mean() > 0.9


@pytest.mark.parametrize('distance', ['cosine', 'l2'])
def test_identical_maps_through_an_identity_adapter_cost_nothing(distance):
    Z = torch.rand(2, 5, 4, 4) + 0.1
    value, D = imitation(Z.clone().requires_grad_(), Z, torch.eye(5), None,
                         torch.full((2, 4, 4), 1 / 16), distance=distance)
    assert value.abs() < 1e-6 and D.abs().max() < 1e-6


@pytest.mark.parametrize('distance', ['cosine', 'l2'])
def test_no_large_tensor_but_the_gradient_is_kept(distance):
    S, Z, weight, bias, w, scale = problem((2, 4, 64, 40, 40))
    S.requires_grad_()
    weight.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        value, _ = imitation(S, Z, weight, bias, w, scale, distance=distance)
    assert sum(t.numel() for t in kept) < S.numel() + 2 * weight.numel() + 100
    value.backward()


@pytest.mark.parametrize('distance', ['cosine', 'l2'])
def test_only_the_gradient_of_cells_with_weight_is_kept(distance):
    S, Z, weight, bias, w, scale = problem((2, 4, 6, 40, 40), student='nhwc', teacher='nhwc')
    w = torch.zeros_like(w)
    w[1, 3:7, 5:30] = 0.01
    S.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        value, _ = imitation(S, Z, weight, bias, w, scale, distance=distance)
    assert sum(t.numel() for t in kept) < 100 * (4 + 1) + 50
    value.backward()
    assert S.grad.stride() == S.stride() and ((S.grad != 0).any(1) == (w > 0)).all()
