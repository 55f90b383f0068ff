import math

import pytest
import torch
from mmdet.registry import MODELS
from torch import Tensor

import hgd_det.registered  # noqa: F401
from hgd_det.distill.stages import survey
from hgd_det.distill.term import Spec
from hgd_det.distill.terms.attention_transfer import MODES, AttentionTransfer
from hgd_det.errors import UserError
from hgd_det.testing import make_lesson, make_maps, make_spec, tiny_ssd

SIZES = (4, 3, 2)


def taps(channels: int, sizes=SIZES) -> dict:
    return {f'neck[{i}]': (channels, size) for i, size in enumerate(sizes)}


def set_up(student: int = 3, teacher: int = 5, sizes=SIZES, **options) -> AttentionTransfer:
    term = AttentionTransfer(**options)
    term.setup(make_spec(taps(student, sizes), taps(teacher, sizes)))
    return term


def slow_attention(x: Tensor) -> list[float]:
    """Of one image's map (C, H, W), cell by cell."""
    activity = [sum(v * v for v in x[:, i, j].tolist()) for i in range(x.shape[1])
                for j in range(x.shape[2])]
    length = math.sqrt(sum(v * v for v in activity))
    return [v / length for v in activity] if length else activity


def slow_value(student: Tensor, teacher: Tensor, mode: str) -> float:
    total = 0.0
    for s, z in zip(student, teacher, strict=True):
        squares = [(a - b) ** 2 for a, b in zip(slow_attention(s), slow_attention(z), strict=True)]
        total += dict(code=sum(squares) / len(squares), sum=sum(squares),
                      paper=math.sqrt(sum(squares)) / 2)[mode]
    return total / len(student)


@pytest.mark.parametrize('mode, expected', [('code', .529412), ('sum', 2 * .529412), ('paper', 1.028992 / 2)])
def test_one_channel_and_two_cells_give_the_closed_form(mode, expected):
    row = {'neck[0]': torch.tensor([1., 2.]).view(1, 1, 1, 2)}
    turned = {'neck[0]': torch.tensor([2., 1.]).view(1, 1, 1, 2)}
    term = set_up(1, 1, (2,), mode=mode)
    assert term(make_lesson(row, turned))['loss'].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('mode', MODES)
def test_it_equals_a_loop_over_cells(mode):
    student, teacher = make_maps(3), make_maps(5, seed=1)
    out = set_up(mode=mode)(make_lesson(student, teacher))
    each = {f'd_s{size}': slow_value(student[tap], teacher[tap], mode)
            for size, tap in zip(SIZES, student, strict=True)}
    assert out.pop('loss').item() == pytest.approx(sum(each.values()), rel=1e-5)
    assert {k: v.item() for k, v in out.items()} == pytest.approx(each, rel=1e-5)


@pytest.mark.parametrize('mode', ['code', 'paper'])
def test_it_is_torchdistills_loss(mode):
    losses = pytest.importorskip('torchdistill.losses.mid_level')
    student, teacher = make_maps(3), make_maps(5, seed=1)
    pairs = {tap: {side: dict(io='output', path=tap) for side in ('student', 'teacher')} for tap in student}
    theirs = losses.ATLoss(pairs, mode=mode)(*({tap: dict(output=x) for tap, x in side.items()}
                                               for side in (student, teacher)))
    ours = set_up(mode=mode)(make_lesson(student, teacher))['loss']
    # the factor 1/2 is in the paper's equation, and in torchdistill's weight
    theirs = theirs / 2 if mode == 'paper' else theirs
    assert torch.allclose(ours, theirs)
    gradients = [torch.autograd.grad(x, list(student.values())) for x in (ours, theirs)]
    assert all(torch.allclose(*both, rtol=1e-4, atol=1e-7) for both in zip(*gradients, strict=True))


@pytest.mark.parametrize('mode', MODES)
def test_equal_maps_cost_nothing_and_have_a_gradient_of_zero(mode):
    student = make_maps(4)
    loss = set_up(4, 4, mode=mode)(make_lesson(student, {k: v.detach() for k, v in student.items()}))['loss']
    loss.backward()
    assert loss.item() == 0 and all(v.grad.abs().max() == 0 for v in student.values())


@pytest.mark.parametrize('mode', MODES)
def test_the_scale_of_a_map_does_not_matter_nor_do_signs_and_order_of_channels(mode):
    term, student, teacher = set_up(mode=mode), make_maps(3), make_maps(5, seed=1)
    other = {k: -7 * v[:, [1, 2, 0]] for k, v in student.items()}
    assert torch.allclose(term(make_lesson(student, teacher))['loss'],
                          term(make_lesson(other, teacher))['loss'], atol=1e-6)


@pytest.mark.parametrize('mode', MODES)
def test_gradcheck(mode):
    student, teacher = (make_maps(c, (2,), dtype=torch.float64, seed=c) for c in (2, 3))
    term = set_up(2, 3, (2,), mode=mode)
    assert torch.autograd.gradcheck(
        lambda s: term(make_lesson({'neck[0]': s}, teacher))['loss'], student['neck[0]'])


@pytest.mark.parametrize('mode', MODES)
def test_dead_maps_stay_finite(mode):
    term, student, teacher = set_up(mode=mode), make_maps(3, batch=1), make_maps(5, batch=1, seed=1)
    for dead in (student, teacher):
        for x in dead.values():
            x.data.zero_()
        loss = term(make_lesson(student, teacher))['loss']
        loss.backward()
        assert loss.isfinite() and all(v.grad.abs().max() == 0 for v in student.values())
    assert loss == 0


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_maps_in_any_precision_stay_finite(dtype, mode):
    student = {k: torch.full_like(v, 6e4, dtype=dtype) for k, v in make_maps(3).items()}
    for x in student.values():
        x[..., 0] = 0
        x.requires_grad_()
    teacher = {k: torch.full_like(v, -6e4, dtype=dtype) for k, v in make_maps(5).items()}
    loss = set_up(mode=mode)(make_lesson(student, teacher))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss > 0
    assert all(v.grad.isfinite().all() for v in student.values())


def test_with_sum_every_pair_is_bounded_by_two():
    one, other = torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    one[..., 0, 0] = other[..., 5, 5] = 1
    term = set_up(1, 1, (6,), mode='sum')
    assert term(make_lesson({'neck[0]': one}, {'neck[0]': other}))['loss'] == 2


def test_a_student_map_of_another_size_is_resized_to_the_teachers():
    term, student, teacher = set_up(3, 5, (2,)), make_maps(3, (2,)), make_maps(5, (4,), seed=1)
    resized = torch.nn.functional.interpolate(student['neck[0]'], (4, 4), mode='bilinear')
    assert torch.allclose(term(make_lesson(student, teacher))['loss'],
                          term(make_lesson({'neck[0]': resized}, teacher))['loss'])


def test_maps_of_one_cell_are_left_out():
    term = set_up(sizes=(3, 2, 1))
    assert [row['size'] for row in term.describe()] == [[3, 3], [2, 2]]
    assert term.student_taps == term.teacher_taps == ['neck[0]', 'neck[1]']
    with pytest.raises(UserError, match=r'no pair has 2 of them \(sizes \[1\]\)'):
        set_up(sizes=(1,))


def test_it_looks_at_the_map_before_ssds_l2norm():
    views = [survey(MODELS.build(tiny_ssd(width)), (96, 96)) for width in (1 / 16, 1 / 8)]
    spec = Spec(*views, None, None, lambda: (None, None))
    term, behind = AttentionTransfer(), AttentionTransfer(l2norm='post')
    term.setup(spec)
    behind.setup(spec)
    assert behind.student_taps[0] == 'neck[0]' and term.student_taps[0].startswith('backbone')
    assert term.student_taps[1:] == behind.student_taps[1:] == ['neck[1]', 'neck[2]']


def test_it_reads_neither_boxes_nor_heads():
    lesson = make_lesson(make_maps(3, batch=1), make_maps(5, batch=1))
    lesson.samples = [None]
    assert set_up()(lesson)['loss'] > 0


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match="mode='norm'; choose one of 'code', 'sum', 'paper'"):
        AttentionTransfer(mode='norm')
    with pytest.raises(UserError, match='select'):
        set_up(select='some')
