import math

import pytest
import torch

from hgd_det.distill.terms.pkd import PKD
from hgd_det.errors import UserError
from hgd_det.testing import make_lesson, make_maps, make_spec


def set_up(student=3, teacher=3, sizes=(4, 3), **options):
    term = PKD(**options)
    term.setup(make_spec(*({f'neck[{i}]': (c, s) for i, s in enumerate(sizes)} for c in (student, teacher))))
    return term


def value_of(student, teacher):
    """Of one channel whose three cells are these; the maps are 1 wide and 3 high."""
    term = PKD()
    maps = [torch.tensor(cells).view(1, 1, 3, 1) for cells in (student, teacher)]
    return term.distance(*maps, None).mean().item()


def slow_pkd(V, Z):
    """``(n-1)/n`` times the mean over channels of 1 - r, cell by cell."""
    total = 0.0
    for c in range(V.shape[1]):
        v, z = ([x[b, c, i, j].item() for b in range(len(x)) for i in range(x.shape[2])
                 for j in range(x.shape[3])] for x in (V, Z))
        n, mv, mz = len(v), sum(v) / len(v), sum(z) / len(z)
        cov = sum((a - mv) * (b - mz) for a, b in zip(v, z, strict=True))
        spread = math.sqrt(sum((a - mv) ** 2 for a in v) * sum((b - mz) ** 2 for b in z))
        total += (n - 1) / n * (1 - cov / spread)
    return total / V.shape[1]


def test_three_cells_have_their_closed_form():
    assert value_of((1., 2., 3.), (3., 2., 1.)) == pytest.approx(4 / 3, abs=1e-5)
    assert value_of((1., 2., 3.), (1., 3., 2.)) == pytest.approx(1 / 3, abs=1e-5)


def test_scale_and_offset_of_a_channel_play_no_part():
    assert value_of((1., 2., 3.), (13., 33., 23.)) == pytest.approx(1 / 3, abs=1e-5)
    assert value_of((-7., 1., 9.), (1., 3., 2.)) == pytest.approx(1 / 3, abs=1e-5)


def test_it_equals_a_loop_over_channels_and_cells():
    student, teacher = make_maps(3, (4, 3), seed=1), make_maps(3, (4, 3), seed=2)
    found = set_up()(make_lesson(student, teacher))
    expected = {k: slow_pkd(student[k], teacher[k]) for k in student}
    assert found['loss'].item() == pytest.approx(sum(expected.values()), rel=1e-5)
    assert found['d_s4'].item() == pytest.approx(expected['neck[0]'], rel=1e-5)


def test_a_channel_that_never_changes_is_finite():
    term = set_up(sizes=(2,))
    maps = [make_maps(3, (2,), batch=1, seed=seed) for seed in (1, 2)]
    with torch.no_grad():
        maps[0]['neck[0]'][:, 0] = 1.0
    found = term(make_lesson(*maps))
    found['loss'].backward()
    assert torch.isfinite(found['loss'])
    assert all(torch.isfinite(x.grad).all() for x in maps[0].values())


def test_maps_of_a_single_cell_are_left_out():
    assert [pair.name for pair in set_up(sizes=(2, 1)).pairs] == ['s2']
    with pytest.raises(UserError, match='no pair has 2 of them'):
        set_up(sizes=(1,))
