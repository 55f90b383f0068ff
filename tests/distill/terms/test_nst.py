import math

import pytest
import torch
from torch import Tensor

from hgd_det.distill.terms.nst import KERNELS, NST
from hgd_det.errors import UserError
from hgd_det.testing import make_lesson, make_maps, make_spec

SIZES = (4, 3, 2)


def taps(channels: int, sizes=SIZES) -> dict:
    return {f'neck[{i}]': (channels, size) for i, size in enumerate(sizes)}


def set_up(student: int = 3, teacher: int = 5, sizes=SIZES, **options) -> NST:
    term = NST(**options)
    term.setup(make_spec(taps(student, sizes), taps(teacher, sizes)))
    return term


def value_of(student: list, teacher: list, **options) -> float:
    """Of channels written as lists of cells; further cells of 0 make 2x2 maps of them."""
    made = [torch.zeros(1, len(channels), 4) for channels in (student, teacher)]
    for x, channels in zip(made, (student, teacher), strict=True):
        x[0, :, :len(channels[0])] = torch.tensor(channels)
    made = [{'neck[0]': x.view(1, -1, 2, 2)} for x in made]
    return set_up(len(student), len(teacher), (2,), **options)(make_lesson(*made))['loss'].item()


def slow_nst(student: Tensor, teacher: Tensor, kernel: str) -> float:
    """One image and map: (C, N) each; channel by channel, cell by cell."""
    def unit(row: list[float]) -> list[float]:
        length = math.sqrt(sum(v * v for v in row))
        return [v / length for v in row] if length else row

    def apart(x, y) -> float:
        return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))

    def mean(xs, ys) -> float:
        return sum(k(x, y) for x in xs for y in ys) / (len(xs) * len(ys))
    s, z = ([unit(row) for row in x.tolist()] for x in (student, teacher))
    variance = sum(apart(x, y) for x in s for y in z) / (len(s) * len(z))

    def k(x, y) -> float:
        product = sum(a * b for a, b in zip(x, y, strict=True))
        return dict(linear=product, poly=product ** 2,
                    gaussian=math.exp(-apart(x, y) / (2 * variance)))[kernel]
    return mean(s, s) + mean(z, z) - 2 * mean(s, z)


def test_one_channel_against_one_gives_the_closed_forms():
    one, other = [[1., 0.]], [[0., 1.]]
    assert value_of(one, other, kernel='linear') == pytest.approx(2)
    assert value_of(one, other, kernel='poly') == pytest.approx(2)
    assert value_of(one, other, kernel='gaussian', variance=1.0) == pytest.approx(1.264241, abs=1e-6)
    assert value_of(one, other, kernel='gaussian') == pytest.approx(2 - 2 * math.exp(-.5), abs=1e-6)
    assert value_of(one, other, kernel='poly', degree=3, offset=1.) == pytest.approx(8 + 8 - 2)


@pytest.mark.parametrize('kernel', ['linear', 'poly'])
def test_one_channel_against_two_gives_a_half(kernel):
    assert value_of([[1., 0.]], [[1., 0.], [0., 1.]], kernel=kernel) == pytest.approx(.5)


@pytest.mark.parametrize('kernel', KERNELS)
def test_it_equals_a_loop_over_pairs_of_channels(kernel):
    student, teacher = make_maps(3), make_maps(5, seed=1)
    student['neck[0]'].data[0, 1] = 0
    out = set_up(kernel=kernel)(make_lesson(student, teacher))
    each = {f'd_s{size}': sum(slow_nst(student[tap][b].flatten(1), teacher[tap][b].flatten(1), kernel)
                              for b in range(2)) / 2
            for size, tap in zip(SIZES, student, strict=True)}
    assert out.pop('loss').item() == pytest.approx(sum(each.values()) / 3, rel=1e-4)
    assert {k: v.item() for k, v in out.items()} == pytest.approx(each, rel=1e-4)


@pytest.mark.parametrize('kernel', KERNELS)
def test_equal_maps_cost_nothing(kernel):
    same = make_maps(4)
    assert set_up(4, 4, kernel=kernel)(make_lesson(same, same))['loss'].item() == 0


@pytest.mark.parametrize('kernel', KERNELS)
def test_the_order_of_the_channels_and_the_scale_of_each_do_not_matter(kernel):
    term, student, teacher = set_up(kernel=kernel), make_maps(3), make_maps(5, seed=1)
    turned = {k: v[:, [2, 0, 1]] * torch.tensor([3., .1, 40.])[:, None, None] for k, v in student.items()}
    assert torch.allclose(term(make_lesson(student, teacher))['loss'],
                          term(make_lesson(turned, teacher))['loss'], atol=1e-6)


@pytest.mark.parametrize('kernel', ['linear', 'poly'])
def test_gradcheck(kernel):
    student, teacher = (make_maps(c, (2,), dtype=torch.float64, seed=c) for c in (2, 3))
    term = set_up(2, 3, (2,), kernel=kernel)
    assert torch.autograd.gradcheck(
        lambda s: term(make_lesson({'neck[0]': s}, teacher))['loss'], student['neck[0]'])


def test_the_gaussian_kernels_own_variance_is_a_constant_to_the_gradient():
    student, z = (make_maps(c, (2,), batch=1, dtype=torch.float64, seed=c) for c in (2, 3))
    x = student['neck[0]']
    fixed = set_up(2, 3, (2,), kernel='gaussian', variance=.9)
    assert torch.autograd.gradcheck(lambda s: fixed(make_lesson({'neck[0]': s}, z))['loss'], x)

    units = [torch.nn.functional.normalize(m.detach().flatten(2), dim=2)[0] for m in (x, z['neck[0]'])]
    fixed.variance = torch.cdist(*units).square().mean().item()
    measured = set_up(2, 3, (2,), kernel='gaussian')
    grads = [torch.autograd.grad(t(make_lesson({'neck[0]': x}, z))['loss'], x)[0] for t in (fixed, measured)]
    assert torch.allclose(*grads)


@pytest.mark.parametrize('kernel', KERNELS)
def test_dead_channels_and_dead_maps_stay_finite(kernel):
    term, student, teacher = set_up(kernel=kernel), make_maps(3, batch=1), make_maps(5, batch=1, seed=1)
    for dead in (student, teacher):
        for x in dead.values():
            x.data.zero_()
        out = term(make_lesson(student, teacher))
        out['loss'].backward()
        assert out['loss'].isfinite() and all(v.grad.isfinite().all() for v in student.values())
    assert out['loss'] == 0


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_maps_in_any_precision_stay_finite(dtype, kernel):
    student = {k: torch.full_like(v, 1e4, dtype=dtype).requires_grad_() for k, v in make_maps(3).items()}
    teacher = {k: torch.full_like(v, -1e4, dtype=dtype) for k, v in make_maps(5).items()}
    loss = set_up(kernel=kernel)(make_lesson(student, teacher))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(v.grad.isfinite().all() for v in student.values())


def test_one_nearly_equal_channel_does_not_let_rounding_decide():
    student = (1 + 1e-4 * make_maps(1, (8,), 1)['neck[0]'].detach()).requires_grad_()
    term = set_up(1, 1, (8,), kernel='gaussian')
    loss = term(make_lesson({'neck[0]': student}, {'neck[0]': torch.ones(1, 1, 8, 8)}))['loss']
    loss.backward()
    assert 0 <= loss < 1e-2 and student.grad.abs().max() < 1


def test_of_maps_of_unequal_size_the_larger_is_averaged():
    term, small, large = set_up(3, 3, (4,)), make_maps(3, (2,)), make_maps(3, (4,), seed=1)
    pooled = {'neck[0]': torch.nn.functional.avg_pool2d(large['neck[0]'], 2)}
    expected = term(make_lesson(small, pooled))['loss']
    assert torch.allclose(term(make_lesson(small, large))['loss'], expected)
    assert torch.allclose(term(make_lesson(large, small))['loss'], expected)


def test_maps_below_four_cells_are_left_out():
    term = set_up(sizes=(3, 2, 1))
    assert [row['size'] for row in term.describe()] == [[3, 3], [2, 2]]
    assert term.student_taps == ['neck[0]', 'neck[1]']
    with pytest.raises(UserError, match=r'no pair has 4 of them \(sizes \[1\]\)'):
        NST(sizes=(1,)).setup(make_spec(taps(3, (3, 1)), taps(5, (3, 1))))


def test_it_reads_neither_boxes_nor_heads():
    lesson = make_lesson(make_maps(3, batch=1), make_maps(5, batch=1))
    lesson.samples = [None]
    assert set_up()(lesson)['loss'] > 0


@pytest.mark.parametrize('wrong', [dict(kernel='rbf'), dict(degree=0), dict(degree=1.5), dict(offset=-1.),
                                   dict(variance=0.)])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        NST(**wrong)
