import pytest
import torch
from torch import Tensor, nn

from hgd_det.distill.adapters import SameChannels
from hgd_det.distill.terms.fine_grained import FineGrained, near_cells
from hgd_det.errors import UserError
from hgd_det.testing import make_head_spec, make_lesson, make_spec

LEVELS = ((4, 4, 2), (2, 2, 3), (1, 1, 1))      # H, W and anchors per cell for 64-pixel images
BOXES = [[[0., 0., 14., 14.], [20., 24., 60., 63.]], [[2., 2., 62., 60.]]]


def grid() -> Tensor:
    """(M, 4) anchors of LEVELS, cell by cell: squares of 3/4, 1 and 5/4 of the stride."""
    made = []
    for height, width, count in LEVELS:
        for y in range(height):
            for x in range(width):
                for scale in (.75, 1., 1.25)[:count]:
                    cy, cx = (y + .5) * 64 / height, (x + .5) * 64 / width
                    half = 32 * scale / height
                    made.append([cx - half, cy - half, cx + half, cy + half])
    return torch.tensor(made)


def taps(channels: int) -> dict:
    return {f'neck[{i}]': (channels, h) for i, (h, _, _) in enumerate(LEVELS)}


def set_up(student: int = 2, teacher: int = 3, anchors=True, **options) -> FineGrained:
    torch.manual_seed(0)
    term = FineGrained(**options)
    head = make_head_spec(grid()) if anchors else make_head_spec(None)
    term.setup(make_spec(taps(student), taps(teacher), input_size=64, head=head))
    for adapter in term.adapters.values():
        if isinstance(adapter, nn.Sequential):
            nn.init.normal_(adapter[0].weight, std=0.3)     # 1e-4 would hide an error in a rounding
    return term


def maps(channels: int, batch: int = 2, seed: int = 0, dtype=torch.float32) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {f'neck[{i}]': torch.rand(batch, channels, h, w, generator=generator).to(dtype)
            .requires_grad_() for i, (h, w, _) in enumerate(LEVELS)}


def lesson_of(student: dict, teacher: dict, boxes=BOXES):
    head = (torch.zeros(len(boxes), len(grid()), 4), torch.zeros(len(boxes), len(grid()), 4))
    return make_lesson(student, teacher, boxes=boxes, input_shape=(64, 64), student_head=head,
                       levels=LEVELS, anchors=grid())


def slow_iou(a, b) -> float:
    area = lambda r: max(0., r[2] - r[0]) * max(0., r[3] - r[1])  # noqa: E731
    both = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    return both / (area(a) + area(b) - both)


def slow_fine_grained(term: FineGrained, student: dict, teacher: dict, boxes, psi, scope) -> float:
    """Anchor by anchor and cell by cell; the 3x3 convolution neighbour by neighbour."""
    anchors, on, first = grid().tolist(), set(), 0
    spans = []
    for h, w, count in LEVELS:
        spans.append(range(first, first := first + h * w * count))
    for b, objects in enumerate(boxes):
        for g in objects:
            ious = [slow_iou(a, g) for a in anchors]
            for level, (_, w, count) in enumerate(LEVELS):
                best = max(ious) if scope == 'global' else max(ious[i] for i in spans[level])
                for i in spans[level]:
                    if ious[i] > psi * best:
                        cell = (i - spans[level].start) // count
                        on.add((level, b, cell // w, cell % w))
    total = 0.0
    for level, b, y, x in on:
        s, z = student[f'neck[{level}]'], teacher[f'neck[{level}]']
        conv = term.adapters[term.pairs[level].name][0]
        for c in range(z.shape[1]):
            value = conv.bias[c].item()
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    if 0 <= y + dy < s.shape[2] and 0 <= x + dx < s.shape[3]:
                        kernel = conv.weight[c, :, dy + 1, dx + 1]
                        value += (kernel @ s[b, :, y + dy, x + dx]).item()
            total += (max(0.0, value) - z[b, c, y, x].item()) ** 2
    return total / (2 * max(1, len(on)))


def test_squared_errors_4_and_9_on_two_cells_give_3_25():
    term = FineGrained()
    term.setup(make_spec({'neck[0]': (1, 2)}, {'neck[0]': (1, 2)}, head=make_head_spec(grid())))
    term.adapters['s2'] = SameChannels()
    anchors = torch.tensor([[0., 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])
    head = (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4))
    lesson = make_lesson({'neck[0]': torch.zeros(1, 1, 2, 2)},
                         {'neck[0]': torch.tensor([[[[2., 7.], [3., 7.]]]])},
                         boxes=[anchors[[0, 2]].tolist()], input_shape=(16, 16), student_head=head,
                         levels=((2, 2, 1),), anchors=anchors)
    out = term(lesson)
    assert out['loss'].item() == 3.25 and out['cells'].item() == 2


def test_only_ious_strictly_above_the_share_of_the_best_pass():
    # IoUs of .8, .4 and .41 with the box; half of the best is .4
    anchors = torch.tensor([[0., 0, 10, 8], [0, 0, 10, 4], [0, 0, 10, 4.1]]).view(1, 3, 1, 4)
    box = torch.tensor([[0., 0, 10, 10]])
    assert near_cells([anchors], box, 0.5, 'global')[0].tolist() == [[True, False, True]]
    assert not near_cells([anchors], box + 50, 0.5, 'global')[0].any()      # best IoU is 0


def test_coarse_maps_join_for_large_objects_only_unless_each_level_has_its_own_best():
    term = set_up()
    small, large = [[[1., 1., 13., 13.]]], [[[2., 2., 62., 60.]]]
    sizes = [level[:2] for level in LEVELS]

    def on(term, boxes):
        return [int(m.sum()) for m in term.masks(lesson_of(maps(2, 1), maps(3, 1), boxes), sizes)]
    assert on(term, small) == [1, 0, 0] and on(term, large) == [0, 0, 1]
    assert min(on(set_up(scope='level'), small)) >= 1


@pytest.mark.parametrize('scope', ['global', 'level'])
@pytest.mark.parametrize('psi', [0.5, 0.2])
def test_it_equals_a_loop_over_anchors_and_cells(scope, psi):
    term, student, teacher = set_up(psi=psi, scope=scope), maps(2), maps(3, seed=1)
    out = term(lesson_of(student, teacher))
    expected = slow_fine_grained(term, student, teacher, BOXES, psi, scope)
    assert out['loss'].item() == pytest.approx(expected, rel=1e-5)


def test_equal_maps_through_an_identity_adapter_cost_nothing():
    term, same = set_up(3, 3), maps(3)
    for adapter in term.adapters.values():
        nn.init.dirac_(adapter[0].weight)
    assert term(lesson_of(same, same))['loss'].item() == 0


def test_the_gradient_reaches_student_and_adapters_but_never_the_teacher():
    term, student, teacher = set_up(scope='level'), maps(2), maps(3, seed=1)
    term(lesson_of(student, teacher))['loss'].backward()
    assert all(v.grad.abs().sum() > 0 for v in student.values())
    assert all(p.grad.abs().sum() > 0 for p in term.parameters())
    assert all(v.grad is None for v in teacher.values())


def test_adapters_start_as_truncated_normal_of_1e_4_and_zero_bias():
    term = FineGrained()
    term.setup(make_spec({'neck[0]': (64, 5)}, {'neck[0]': (128, 5)}, head=make_head_spec(grid())))
    conv, relu = term.adapters['s5']
    assert conv.weight.shape == (128, 64, 3, 3) and isinstance(relu, nn.ReLU)
    assert conv.weight.abs().max() <= 2e-4 and 0.7e-4 < conv.weight.std() < 1e-4
    assert conv.bias.abs().max() == 0
    assert FineGrained.schedule == dict(weight=0.01, warmup=400)


def test_the_order_of_the_images_does_not_matter_and_cells_count_over_the_batch():
    term, student, teacher = set_up(), maps(2), maps(3, seed=1)

    def value(index: list[int]) -> dict:
        return term(lesson_of({k: v[index] for k, v in student.items()},
                              {k: v[index] for k, v in teacher.items()}, [BOXES[i] for i in index]))
    one, other, a, b = value([0, 1]), value([1, 0]), value([0]), value([1])
    assert torch.allclose(one['loss'], other['loss'])
    joined = (a['loss'] * a['cells'] + b['loss'] * b['cells']) / (a['cells'] + b['cells'])
    assert torch.allclose(one['loss'], joined)


def test_gradcheck():
    term = set_up(scope='level').double()
    student, teacher = maps(2, dtype=torch.float64), maps(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *s: term(lesson_of(
        dict(zip(student, s, strict=True)), teacher))['loss'], tuple(student.values()))


@pytest.mark.parametrize('anchors', [True, False])
def test_without_objects_or_with_ignored_ones_only_it_costs_exactly_nothing(anchors):
    term, student = set_up(anchors=anchors), maps(2)
    lesson = lesson_of(student, maps(3), [[], []])
    lesson.samples[0].ignored_instances.bboxes = torch.tensor(BOXES[0])
    out = term(lesson)
    out['loss'].backward()
    assert out['loss'].item() == 0 and out['cells'].item() == 0
    assert all(v.grad.abs().max() == 0 for v in student.values())
    assert all(p.grad.abs().max() == 0 for p in term.parameters())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_saturated_maps_in_half_precision_stay_finite(dtype):
    term = set_up(scope='level')
    student = {k: torch.full_like(v, 1e4, dtype=dtype).requires_grad_() for k, v in maps(2).items()}
    teacher = {k: torch.full_like(v, -1e4, dtype=dtype) for k, v in maps(3).items()}
    loss = term(lesson_of(student, teacher))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in term.parameters())


def test_without_anchors_the_cells_whose_centre_lies_in_an_object_are_on():
    masks = set_up(anchors=False).masks(lesson_of(maps(2), maps(3)), [(4, 4), (1, 1)])
    # centres at 8, 24, 40 and 56; the second box, (20, 24) to (60, 63), begins right on one
    assert masks[0][0].int().tolist() == [[1, 0, 0, 0]] + 3 * [[0, 1, 1, 1]]
    assert masks[1].flatten().tolist() == [True, True]


def test_a_teacher_with_larger_maps_gets_the_mask_at_its_resolution():
    term = set_up(scope='level')
    teacher = {k: nn.functional.interpolate(v, scale_factor=2) for k, v in maps(3).items()}
    student = maps(2)
    assert term(lesson_of(student, teacher))['cells'] == \
        4 * term(lesson_of(student, maps(3)))['cells']


def test_impossible_set_ups_are_refused():
    with pytest.raises(UserError, match='psi=1'):
        FineGrained(psi=1)
    with pytest.raises(UserError, match='scope'):
        FineGrained(scope='image')
    wrong = {k: torch.rand(2, 2, 7, 7) for k in maps(2)}
    with pytest.raises(UserError, match='is 7x7, but the head predicts on 4x4, 2x2, 1x1'):
        set_up()(lesson_of(wrong, maps(3)))
