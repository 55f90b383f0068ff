"""Pure functions against per-cell loops and against numbers worked out by hand."""
from __future__ import annotations

import math

import pytest
import torch

from hgd_det.distill import functional as F
from hgd_det.errors import UserError
from hgd_det.testing import make_lesson

BOX = (30., 30., 90., 140.)
SIZES = (300, 150, 75, 38, 19, 10, 5, 3, 1)


def column(*values):
    """A 1x1 map with one vector."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)


def test_unit_vectors_have_length_one_and_one_without_direction_is_zero_without_gradient():
    x = torch.tensor([[3., 4.], [0., 0.], [1e-9, 0.], [3e4, -4e4]], requires_grad=True)
    unit = F.unit_vectors(x)
    assert torch.allclose(unit, torch.tensor([[.6, .8], [0., 0.], [0., 0.], [.6, -.8]]))
    unit[:, 0].sum().backward()
    assert x.grad[1:3].abs().max() == 0 and x.grad[0].tolist() == pytest.approx([.128, -.096])


@pytest.mark.parametrize(('v', 'z', 'cosine', 'l2'), [
    ((3, 4), (4, 3), 0.04, 2), ((1, 0), (0, 1), 1, 2), ((1, 0), (-1, 0), 2, 4),
    ((9, 12), (4, 3), 0.04, 106), ((0, 0), (4, 3), 1, 25), ((3, 4), (0, 0), 1, 25)])
def test_distances_have_the_values_worked_out_by_hand(v, z, cosine, l2):
    assert F.cosine_distance(column(*v), column(*z)).item() == pytest.approx(cosine, abs=1e-6)
    assert F.l2_distance(column(*v), column(*z)).item() == pytest.approx(l2, abs=1e-6)
    assert F.l2_distance(column(*v), column(*z), 'mean').item() == pytest.approx(l2 / 2, abs=1e-6)


def test_the_cosine_of_ordinary_vectors_is_pytorchs():
    V, Z = torch.randn(2, 7, 3, 4), torch.randn(2, 7, 3, 4)
    torch.testing.assert_close(F.cosine_distance(V, Z), 1 - torch.cosine_similarity(V, Z, dim=1))


@pytest.mark.parametrize('dead', ['v', 'z', 'both'])
def test_a_vector_without_direction_has_no_gradient(dead):
    V = torch.ones(1, 3, 1, 2)
    Z = torch.ones(1, 3, 1, 2)
    if dead != 'z':
        V[..., 0] = 0
    if dead != 'v':
        Z[..., 0] = 0
    V.requires_grad_()
    F.cosine_distance(V, Z).sum().backward()
    assert torch.isfinite(V.grad).all()
    assert (V.grad[..., 0] == 0).all()


def test_weighted_means_have_the_values_worked_out_by_hand():
    ell = torch.tensor([[[.1, .2], [.3, .4]]])
    ones = torch.ones_like(ell)
    assert F.weighted_mean(ell, ones).item() == pytest.approx(.25, abs=1e-6)
    assert 0.5 * F.weighted_mean(ell, torch.eye(2)[None]).item() == pytest.approx(.125, abs=1e-6)
    assert F.weighted_mean(ell, 7 * torch.eye(2)[None]).item() == pytest.approx(.25, abs=1e-6)
    assert F.weighted_mean(ell, 0 * ones).item() == 0


def test_statistics_are_over_channels_and_of_the_population():
    S = torch.tensor([[0., 2.], [1., 1.]]).T.view(1, 2, 1, 2)
    variance = F.channel_statistic(S, 'variance').sigmoid()
    torch.testing.assert_close(variance, torch.tensor([[[.731059, .5]]]), atol=1e-6, rtol=0)
    assert variance.mean().item() == pytest.approx(.615529, abs=1e-6)
    mean = F.channel_statistic(S, 'mean').sigmoid()
    torch.testing.assert_close(mean, torch.full((1, 1, 2), .731059), atol=1e-6, rtol=0)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('grad', [False, True])
@pytest.mark.parametrize('kind', ['mean', 'variance'])
@pytest.mark.parametrize('norm', ['none', 'rms'])
def test_statistics_equal_the_plain_formula(monkeypatch, layout, grad, kind, norm):
    monkeypatch.setattr(F, 'TILE', 64)
    S = (torch.randn(3, 5, 6, 7) * 10).contiguous(memory_format=layout).requires_grad_(grad)
    scaled = S.detach()
    if norm == 'rms':
        scaled = scaled / scaled.square().mean((1, 2, 3), keepdim=True).sqrt()
    wanted = scaled.mean(1) if kind == 'mean' else scaled.var(1, unbiased=False)
    torch.testing.assert_close(F.channel_statistic(S, kind, norm).detach(), wanted)


def test_the_statistic_of_a_map_of_zeros_is_finite():
    for kind in ('mean', 'variance'):
        assert (F.channel_statistic(torch.zeros(2, 3, 2, 2), kind, 'rms') == 0).all()


@pytest.mark.parametrize(('mode', 'wanted'), [('paper', .75), ('intent', 1.75)])
def test_focal_factors_have_the_values_worked_out_by_hand(mode, wanted):
    losses = torch.tensor([1., 3.])
    value = (F.focal_factors(losses, 2.0, mode) * losses).sum()
    assert value.item() == pytest.approx(wanted, abs=1e-6)


def test_focal_factors_of_nine_equal_losses_and_of_none():
    nine = torch.ones(9)
    assert F.focal_factors(nine).sum().item() == pytest.approx(7.1111, abs=1e-4)
    assert torch.isfinite(F.focal_factors(0 * nine)).all()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_norms_equal_the_plain_formula_where_cells_are_active(monkeypatch, layout):
    monkeypatch.setattr(F, 'TILE', 64)
    Z = torch.randn(3, 5, 9, 8).contiguous(memory_format=layout)
    torch.testing.assert_close(F.channel_norm(Z), Z.norm(dim=1))
    active = torch.zeros(3, 9, 8, dtype=torch.bool)
    active[1, 2:4, 1:3] = True
    torch.testing.assert_close(F.channel_norm(Z, active)[active], Z.norm(dim=1)[active])


@pytest.mark.parametrize('budget', [1, 64, 10 ** 6])
def test_tiles_cover_every_active_cell_once(monkeypatch, budget):
    monkeypatch.setattr(F, 'TILE', budget)
    x = torch.zeros(5, 3, 7, 6)
    active = torch.rand(5, 7, 6) < 0.15
    active[2] = False
    for wanted in (None, active):
        seen = torch.zeros_like(x)
        for where in F.tiles(x, wanted):
            seen[where] += 1
        assert seen.max() <= 1
        assert (seen[:, 0][active if wanted is not None else ...] == 1).all()
    if budget < 64:
        assert (seen[2] == 0).all()


def loop_mask(boxes, size, input_size, rule):
    """Cell by cell, as the rules are written."""
    mask = torch.zeros(size, size, dtype=torch.bool)

    def inside(low, high, i):
        low, high = low * size / input_size, high * size / input_size
        if rule == 'center':
            return low <= i + 0.5 < high
        if rule == 'area':
            return max(0., min(high, i + 1) - max(low, i))
        first = min(max(math.floor(low + 1e-4), 0), size - 1)
        return first <= i < max(min(math.ceil(high - 1e-4), size), first + 1)

    for x1, y1, x2, y2 in boxes:
        for y in range(size):
            for x in range(size):
                mask[y, x] |= inside(x1, x2, x) * inside(y1, y2, y) >= 0.5
    return mask


@pytest.mark.parametrize(('rule', 'counts'), [
    ('overlap', (6600, 1650, 448, 135, 40, 8, 6, 2, 1)),
    ('center', (6600, 1650, 420, 98, 28, 8, 2, 1, 0))])
def test_masks_count_the_cells_worked_out_by_hand(rule, counts):
    made = [int(F.box_mask([torch.tensor([BOX])], (n, n), (300, 300), rule).sum()) for n in SIZES]
    assert tuple(made) == counts


@pytest.mark.parametrize('rule', F.MASKS)
@pytest.mark.parametrize('size', [1, 3, 10, 19])
def test_masks_equal_the_loop_over_cells(rule, size):
    generator = torch.Generator().manual_seed(size)
    corners = torch.rand(4, 2, generator=generator) * 250
    several = torch.cat([corners, corners + torch.rand(4, 2, generator=generator) * 120], 1)
    special = torch.tensor([[290., 0, 300, 300], [0, 0, 0, 0], [299.9, 299.9, 320, 330],
                            [-20, 150, 7, 160.5], [30, 30, 30, 60]])
    boxes = [several, several[:0], *special[:, None]]
    made = F.box_mask(boxes, (size, size), (300, 300), rule)
    for mask, box in zip(made, boxes, strict=True):
        assert torch.equal(mask, loop_mask(box.tolist(), size, 300, rule))


def test_a_mask_is_not_square_when_the_input_is_not():
    mask = F.box_mask([torch.tensor([[50., 10., 100., 20.]])], (4, 8), (40, 200))
    assert mask.shape == (1, 4, 8)
    assert mask[0].nonzero().tolist() == [[1, 2], [1, 3]]


def test_every_box_marks_a_cell_of_every_size_by_overlap():
    for size in SIZES:
        box = torch.tensor([[200.2, 117.3, 200.4, 117.4]])
        assert F.box_mask([box], (size, size), (300, 300)).sum() == 1


def test_no_boxes_give_an_empty_mask_under_every_rule():
    for rule in F.MASKS:
        assert not F.box_mask([torch.zeros(0, 4)] * 2, (3, 3), (9, 9), rule).any()
        assert F.box_mask([], (3, 3), (9, 9), rule).shape == (0, 3, 3)


def test_a_lesson_computes_a_mask_once(monkeypatch):
    lesson = make_lesson({'a': torch.zeros(1, 1, 3, 3)}, boxes=[[BOX]])
    first = F.shared_box_mask(lesson, (3, 3))
    monkeypatch.setattr(F, 'box_mask', None)
    assert F.shared_box_mask(lesson, torch.Size((3, 3))) is first


def test_an_unknown_rule_names_the_known_ones():
    with pytest.raises(UserError, match="rule='inside'.*'overlap', 'center', 'area'"):
        F.box_mask([], (1, 1), (1, 1), 'inside')
