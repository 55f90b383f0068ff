import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgd_det.distill.adapters import Adapter, SameChannels
from hgd_det.distill.terms.fsp import FSP, flow_matrix
from hgd_det.errors import UserError
from hgd_det.testing import make_lesson, make_spec

STUDENT = {'early': (2, 16), 'body': (3, 8), 'neck[0]': (4, 4), 'neck[1]': (2, 2), 'neck[2]': (3, 1)}
TEACHER = {'early': (3, 16), 'body': (3, 8), 'neck[0]': (5, 4), 'neck[1]': (4, 2), 'neck[2]': (3, 1)}
HEADS = ['neck[0]', 'neck[1]', 'neck[2]']


def set_up(student=STUDENT, teacher=TEACHER, sources=HEADS, **options) -> FSP:
    torch.manual_seed(0)
    term = FSP(**options)
    term.setup(make_spec(student, teacher, sources=sources))
    return term


def maps(spec: dict, batch: int = 2, seed: int = 0, dtype=torch.float32) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {tap: torch.randn(batch, c, s, s, generator=generator).to(dtype).requires_grad_()
            for tap, (c, s) in spec.items()}


def slow_matrix(first: Tensor, second: Tensor, pool: str) -> Tensor:
    """Of one image, (C1, C2), entry by entry; the first map is an exact multiple of the second."""
    side = second.shape[-1]
    step = first.shape[-1] // side
    matrix = torch.zeros(len(first), len(second))
    for a in range(len(first)):
        for b in range(len(second)):
            for y in range(side):
                for x in range(side):
                    window = first[a, y * step:(y + 1) * step, x * step:(x + 1) * step]
                    value = window.max() if pool == 'max' else window.mean()
                    matrix[a, b] += value * second[b, y, x] / side ** 2
    return matrix


def slow_fsp(term: FSP, student: dict, teacher: dict, pool: str) -> list[float]:
    taps, values = list(TEACHER)[1:], []
    adapted = {}
    for tap, adapter in zip(taps, term.adapters.values(), strict=True):
        adapted[tap] = student[tap] if isinstance(adapter, SameChannels) else torch.einsum(
            'oc,bchw->bohw', adapter.weight[:, :, 0, 0], student[tap]) + adapter.bias[:, None, None]
    for first, second in zip(taps, taps[1:], strict=False):
        squares = [(slow_matrix(adapted[first][b], adapted[second][b], pool)
                    - slow_matrix(teacher[first][b], teacher[second][b], pool)) ** 2 for b in range(2)]
        values.append(torch.stack(squares).mean().item())
    return values


def test_the_closed_form_of_two_channels_on_two_cells():
    first, second = torch.tensor([[1., 2], [3, 4]]).view(1, 2, 1, 2), torch.eye(2).view(1, 2, 1, 2)
    assert flow_matrix(first, second).tolist() == [[[.5, 1], [1.5, 2]]]
    taps = {'a': (2, 2), 'b': (2, 1)}
    term = set_up(taps, taps, list(taps))
    loss = term(make_lesson(dict(a=first, b=second), dict(a=first * 2, b=second)))['loss']
    assert loss.item() == pytest.approx((.25 + 1 + 2.25 + 4) / 4)
    # against a flow of 0 the value is the mean square of the matrix itself: 7.5 / 4
    assert term(make_lesson(dict(a=first, b=second), dict(a=first * 0, b=second)))['loss'] == 1.875


def test_scaling_a_map_scales_the_matrix_and_a_map_with_itself_is_symmetric_and_positive():
    x, y = maps({'x': (3, 6), 'y': (4, 6)}).values()
    assert torch.allclose(flow_matrix(5 * x, y), 5 * flow_matrix(x, y), atol=1e-5)
    own = flow_matrix(x, x)
    assert torch.allclose(own, own.transpose(1, 2)) and torch.linalg.eigvalsh(own).min() > 0


@pytest.mark.parametrize('sizes', [(8, 4), (38, 19), (19, 10), (4, 8)])
def test_the_matrices_are_torchdistills(sizes):
    losses = pytest.importorskip('torchdistill.losses.mid_level')
    x, y = maps({'x': (3, sizes[0]), 'y': (4, sizes[1])}).values()
    matrices = [make(x, y) for make in (flow_matrix, losses.FSPLoss.compute_fsp_matrix)]
    assert torch.allclose(*matrices, atol=1e-6)
    gradients = [torch.autograd.grad(matrix.square().sum(), (x, y)) for matrix in matrices]
    assert all(torch.allclose(*both, atol=1e-6) for both in zip(*gradients, strict=True))


@pytest.mark.parametrize('pool', ['max', 'avg'])
def test_it_equals_a_loop_over_channels_and_cells(pool):
    term, student, teacher = set_up(pool=pool), maps(STUDENT), maps(TEACHER, seed=1)
    out = term(make_lesson(student, teacher))
    expected = slow_fsp(term, student, teacher, pool)
    assert out.pop('loss').item() == pytest.approx(sum(expected), rel=1e-5)
    assert list(out) == ['d_s8_s4', 'd_s4_s2', 'd_s2_s1']
    assert [v.item() for v in out.values()] == pytest.approx(expected, rel=1e-5)


def test_the_stages_are_the_last_before_the_heads_and_the_first_three_that_heads_read():
    ssd = {'a': (4, 300), 'b': (4, 150), 'c': (4, 75), **{
        f'neck[{i}]': (4, size) for i, size in enumerate((38, 19, 10, 5, 3, 1))}}
    sizes = [row['name'] for row in set_up(ssd, ssd, [f'neck[{i}]' for i in range(6)]).describe()]
    assert sizes == ['s75', 's38', 's19', 's10']
    assert [row['name'] for row in set_up().describe()] == ['s8', 's4', 's2', 's1']
    assert set_up(sizes=(16, 4)).student_taps == ['early', 'neck[0]']
    first_read = set_up(sources=['early', *HEADS])
    assert first_read.teacher_taps == ['early', 'body', 'neck[0]']


def test_only_stages_of_unequal_channels_get_an_adapter_and_two_flows_share_it():
    term = set_up()
    assert [type(a) for a in term.adapters.values()] == [SameChannels, Adapter, Adapter, SameChannels]
    assert [row['adapter'] for row in term.describe()] == ['none', '1x1 conv 4->5', '1x1 conv 2->4', 'none']
    assert all(isinstance(a, Adapter) for a in set_up(adapter='always').adapters.values())
    with pytest.raises(UserError, match='needs equal channels'):
        set_up(adapter='none')


def test_equal_maps_through_identity_adapters_cost_nothing():
    term, same = set_up(TEACHER, adapter='always'), maps(TEACHER)
    for adapter in term.adapters.values():
        nn.init.dirac_(adapter.weight)
    assert term(make_lesson(same, same))['loss'].item() == 0


def test_the_gradient_reaches_student_and_adapters_but_never_the_teacher():
    term, student, teacher = set_up(), maps(STUDENT), maps(TEACHER, seed=1)
    term(make_lesson(student, teacher))['loss'].backward()
    assert all(student[tap].grad.abs().sum() > 0 for tap in term.student_taps)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in term.parameters())
    assert all(v.grad is None for v in teacher.values())


@pytest.mark.parametrize('pool', ['max', 'avg'])
def test_gradcheck(pool):
    spec, other = {'a': (2, 2), 'b': (3, 1)}, {'a': (3, 2), 'b': (2, 1)}
    term = set_up(spec, other, list(spec), pool=pool).double()
    student, teacher = maps(spec, dtype=torch.float64), maps(other, dtype=torch.float64, seed=1)
    assert torch.autograd.gradcheck(lambda a, b: term(make_lesson(dict(a=a, b=b), teacher))['loss'],
                                    tuple(student.values()))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_maps_in_any_precision_stay_finite(dtype):
    term = set_up()
    student = {k: torch.full_like(v, 1e4, dtype=dtype).requires_grad_() for k, v in maps(STUDENT).items()}
    teacher = {k: torch.full_like(v, -1e4, dtype=dtype) for k, v in maps(TEACHER).items()}
    loss = term(make_lesson(student, teacher))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in term.parameters())


def test_a_teacher_that_sees_larger_images_is_compared_without_resizing():
    term, student, teacher = set_up(pool='avg'), maps(STUDENT), maps(TEACHER, seed=1)
    larger = {k: F.interpolate(v, scale_factor=2, mode='nearest') for k, v in teacher.items()}
    assert torch.allclose(term(make_lesson(student, larger))['loss'],
                          term(make_lesson(student, teacher))['loss'], rtol=1e-5)


def test_it_reads_neither_boxes_nor_heads():
    lesson = make_lesson(maps(STUDENT, batch=1), maps(TEACHER, batch=1))
    lesson.samples = [None]
    assert set_up()(lesson)['loss'] > 0


def test_one_stage_makes_no_flow():
    with pytest.raises(UserError, match='a flow needs two stages, but there is only'):
        set_up(sizes=(4,))
    with pytest.raises(UserError, match=r'stages \[5\] do not exist'):
        set_up(sizes=(5, 4))


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match='pool'):
        FSP(pool='min')
    with pytest.raises(UserError, match='adapter'):
        FSP(adapter='sometimes')
