import pytest
import torch
from torch import Tensor, nn

from hgd_det.distill.adapters import SameChannels
from hgd_det.distill.terms.hint import Hint
from hgd_det.errors import UserError
from hgd_det.testing import make_lesson, make_spec

SIZES = (38, 19, 10, 5, 3, 1)


def taps(channels: int, sizes=SIZES) -> dict:
    return {f'neck[{i}]': (channels, size) for i, size in enumerate(sizes)}


def set_up(student: int = 3, teacher: int = 4, sizes=SIZES, teacher_sizes=None, **options) -> Hint:
    term = Hint(**options)
    term.setup(make_spec(taps(student, sizes), taps(teacher, teacher_sizes or sizes)))
    return term


def maps(channels: int, sizes=SIZES, batch: int = 2, seed: int = 0, dtype=torch.float32) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {f'neck[{i}]': torch.randn(batch, channels, s, s, generator=generator).to(dtype)
            .requires_grad_() for i, s in enumerate(sizes)}


def slow_hint(term: Hint, student: dict, teacher: dict, divide: bool) -> float:
    """Eq. 1 and 3 cell by cell: the 1x1 convolution is a matrix on each cell's vector."""
    total = 0.0
    for i, adapter in enumerate(term.adapters.values()):
        s, z = student[f'neck[{i}]'], teacher[f'neck[{i}]']
        matrix, bias = adapter.weight[:, :, 0, 0], adapter.bias
        batch, channels, height, width = z.shape
        for b in range(batch):
            for y in range(height):
                for x in range(width):
                    error = matrix @ s[b, :, y, x] + bias - z[b, :, y, x]
                    value = sum(e.item() ** 2 for e in error)
                    total += value / (height * width * batch) / (channels if divide else 1)
    return total


def test_ones_against_zeros_cost_the_number_of_channels_on_every_level():
    term = set_up(4, 4, adapter='none')
    assert all(isinstance(a, SameChannels) for a in term.adapters.values())
    ones = {k: torch.ones_like(v) for k, v in maps(4).items()}
    zeros = {k: torch.zeros_like(v) for k, v in ones.items()}
    out = term(make_lesson(ones, zeros))
    assert out.pop('loss').item() == 24
    assert {k: v.item() for k, v in out.items()} == {f'd_s{size}': 4.0 for size in SIZES}
    assert set_up(4, 4, adapter='none', normalize='channels')(make_lesson(ones, zeros))['loss'] == 6


@pytest.mark.parametrize('normalize', ['none', 'channels'])
def test_it_equals_a_loop_over_cells(normalize):
    sizes = (4, 2, 1)
    term = set_up(sizes=sizes, normalize=normalize)
    student, teacher = maps(3, sizes), maps(4, sizes, seed=1)
    out = term(make_lesson(student, teacher))
    expected = slow_hint(term, student, teacher, normalize == 'channels')
    assert out['loss'].item() == pytest.approx(expected, rel=1e-5)
    assert sum(v.item() for k, v in out.items() if k != 'loss') == pytest.approx(expected, rel=1e-5)


def test_it_is_hgd_with_l2_on_the_heads_maps_and_no_weights():
    from hgd_det.distill.terms.hgd import HGD
    term = set_up()
    hgd = HGD(distance='l2', macro='none', micro='none', zero='keep', select='heads')
    hgd.setup(make_spec(taps(3), taps(4)))
    for own, other in zip(term.adapters.values(), hgd.adapters.values(), strict=True):
        other.load_state_dict(own.state_dict())
    lesson = make_lesson(maps(3), maps(4, seed=1))
    assert torch.allclose(term(lesson)['loss'], hgd(lesson)['loss'])


def test_equal_maps_through_an_identity_adapter_cost_nothing():
    term = set_up(4, 4)
    for adapter in term.adapters.values():
        nn.init.dirac_(adapter.weight)
    same = maps(4)
    assert term(make_lesson(same, same))['loss'].item() == 0


def test_the_gradient_reaches_student_and_adapters_but_never_the_teacher():
    term, student, teacher = set_up(), maps(3), maps(4, seed=1)
    term(make_lesson(student, teacher))['loss'].backward()
    assert all(v.grad.abs().sum() > 0 for v in student.values())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in term.parameters())
    assert all(v.grad is None for v in teacher.values())


def test_a_batch_is_the_mean_of_its_images_in_any_order():
    term, student, teacher = set_up(), maps(3), maps(4, seed=1)

    def value(index: list[int]) -> Tensor:
        return term(make_lesson({k: v[index] for k, v in student.items()},
                                {k: v[index] for k, v in teacher.items()}))['loss']
    assert torch.allclose(value([0, 1]), value([1, 0]))
    assert torch.allclose(value([0, 1]), (value([0]) + value([1])) / 2)


def test_gradcheck():
    term = set_up(2, 3, (2, 1)).double()
    student, teacher = maps(2, (2, 1), dtype=torch.float64), maps(3, (2, 1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *s: term(make_lesson(
        dict(zip(student, s, strict=True)), teacher))['loss'], tuple(student.values()))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_maps_in_any_precision_stay_finite(dtype):
    term = set_up()
    student = {k: torch.full_like(v, 1e4, dtype=dtype).requires_grad_() for k, v in maps(3).items()}
    teacher = {k: torch.full_like(v, -1e4, dtype=dtype) for k, v in maps(4).items()}
    loss = term(make_lesson(student, teacher))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in term.parameters())


def test_it_reads_neither_boxes_nor_heads():
    lesson = make_lesson(maps(3, batch=1), maps(4, batch=1))
    lesson.samples = [None]
    assert set_up()(lesson)['loss'] > 0


def test_the_student_is_resized_to_a_teacher_that_sees_larger_images():
    term = Hint()
    term.setup(make_spec(taps(3, (4, 2)), taps(4, (4, 2))))
    out = term(make_lesson(maps(3, (4, 2)), maps(4, (8, 4))))
    assert out['loss'].isfinite()


def test_only_maps_that_a_head_reads_are_imitated_unless_others_are_named():
    student, teacher = {'early': (3, 76), **taps(3)}, {'early': (6, 76), **taps(4)}
    spec = make_spec(student, teacher, sources=list(taps(3)))
    term = Hint()
    term.setup(spec)
    assert term.student_taps == list(taps(3)) and len(term.adapters) == 6
    named = Hint(taps=[dict(student='early', teacher='early')])
    named.setup(spec)
    assert named.describe() == [dict(size=[76, 76], student='early', teacher='early',
                                     channels=[3, 6], name='s76', adapter='1x1 conv 3->6')]
    few = Hint(sizes=[19, 5])
    few.setup(spec)
    assert [row['size'] for row in few.describe()] == [[19, 19], [5, 5]]


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match='normalize'):
        Hint(normalize='mean')
    with pytest.raises(UserError, match='adapter'):
        Hint(adapter='sometimes')
    with pytest.raises(UserError, match='needs equal channels'):
        set_up(3, 4, adapter='none')
