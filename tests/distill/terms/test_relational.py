import math

import pytest
import torch
from torch import Tensor

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.boxes import crops
from hgd_det.distill.registry import TERMS
from hgd_det.distill.terms.relational import Relational, differences, psi
from hgd_det.errors import UserError
from hgd_det.testing import make_lesson, make_spec

SIZES = (8, 4, 2, 1)
STUDENT, TEACHER = ({f'neck[{i}]': (c, s) for i, s in enumerate(SIZES)} for c in (3, 5))
BOXES = [[[0., 0., 14., 14.], [20., 24., 60., 63.]], [[2., 2., 62., 60.]], [],
         [[5., 30., 25., 44.], [33., 1., 50., 60.]]]
E_TEACHER, E_STUDENT = [[0., 0], [3, 4], [6, 8]], [[0., 0], [3, 4], [3, -4]]


def set_up(student=STUDENT, teacher=TEACHER, **options) -> Relational:
    term = TERMS.build(dict(type='Relational', **options))
    term.setup(make_spec(student, teacher, input_size=64))
    return term


def maps(of: dict, batch: int = len(BOXES), seed: int = 0, dtype=torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {tap: torch.rand(batch, c, s, s, generator=generator, dtype=dtype).requires_grad_()
            for tap, (c, s) in of.items()}


def lesson_of(student: dict, teacher: dict, boxes=BOXES, **more):
    return make_lesson(student, teacher, boxes=boxes, input_shape=(64, 64), **more)


def related(student, teacher, **options) -> dict[str, Tensor]:
    """The term on embeddings (N, C), given as maps of one cell."""
    student, teacher = (torch.as_tensor(e) for e in (student, teacher))
    term = set_up(*({'neck[0]': (e.shape[1], 1)} for e in (student, teacher)), unit='image', **options)
    return term(make_lesson({'neck[0]': student[..., None, None]}, {'neck[0]': teacher[..., None, None]}))


def smooth_l1(gap: float) -> float:
    return gap * gap / 2 if abs(gap) < 1 else abs(gap) - .5


def slow_relations(embeddings: list[list[float]], squared=False, normalize=False) -> tuple[dict, dict]:
    """All N^2 relative distances and N^3 cosines, one at a time."""
    if normalize:
        embeddings = [[v / math.hypot(*e) for v in e] for e in embeddings]
    count = range(len(embeddings))

    def towards(i, j):
        return [b - a for a, b in zip(embeddings[i], embeddings[j], strict=True)]
    lengths = {(i, j): math.hypot(*towards(i, j)) for i in count for j in count}
    d = {key: length ** 2 if squared else length for key, length in lengths.items()}
    above = [v for v in d.values() if v > 0]
    angles = {}
    for i in count:
        for j in count:
            for k in count:
                dot = sum(a * b for a, b in zip(towards(i, j), towards(i, k), strict=True))
                both = lengths[i, j] * lengths[i, k]
                angles[i, j, k] = dot / both if both else 0.0
    return {key: v * len(above) / sum(above) for key, v in d.items()}, angles


def slow_parts(student, teacher, **options) -> tuple[float, float]:
    mine, theirs = (slow_relations(e.tolist(), **options) for e in (student, teacher))
    return tuple(sum(smooth_l1(m[key] - t[key]) for key in m) / len(m)
                 for m, t in zip(mine, theirs, strict=True))


def test_three_points_have_their_closed_form():
    out = related(E_STUDENT, E_TEACHER)
    assert out['distance'].item() == pytest.approx(.087963, abs=1e-6)
    assert out['angle'].item() == pytest.approx(.155555, abs=1e-6)
    assert out['loss'].item() == pytest.approx(25 * .0879630 + 50 * .1555554, abs=1e-4)
    assert out['samples'] == 3


def test_the_lectures_psi_lists_the_squared_distances_of_all_pairs():
    assert psi(differences(torch.tensor(E_STUDENT))).tolist() == [25, 25, 64]
    squared = related(E_STUDENT, E_TEACHER, squared=True)['distance'].item()
    # (25, 25, 64) / 38 against (25, 100, 25) / 50, every pair twice among nine
    gaps = [25 / 38 - .5, 25 / 38 - 2, 64 / 38 - .5]
    assert squared == pytest.approx(2 * sum(map(smooth_l1, gaps)) / 9, rel=1e-5)


@pytest.mark.parametrize('options', [dict(), dict(squared=True), dict(normalize=True)])
def test_it_equals_a_loop_over_pairs_and_triples(options):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(6, c, generator=generator, dtype=torch.float64) for c in (3, 5))
    out = related(student, teacher, distance_weight=2., angle_weight=3., **options)
    distance, angle = slow_parts(student, teacher, **options)
    assert out['distance'].item() == pytest.approx(distance, rel=1e-9)
    assert out['angle'].item() == pytest.approx(angle, rel=1e-9)
    assert out['loss'].item() == pytest.approx(2 * distance + 3 * angle, rel=1e-9)


def test_torchdistills_loss_and_gradient_are_the_same():
    losses = pytest.importorskip('torchdistill.losses.mid_level')
    student, teacher = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(2)).double().unbind()
    student.requires_grad_()
    theirs = losses.RKDLoss('s', 't', 25.0, 50.0, 'mean')(dict(s=dict(output=student)),
                                                         dict(t=dict(output=teacher)))
    ours = related(student, teacher)['loss']
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    gradients = [torch.autograd.grad(x, student)[0] for x in (ours, theirs)]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-8)


def test_objects_are_compared_by_their_mean_crops_on_the_three_largest_maps():
    term, student, teacher = set_up(), maps(STUDENT), maps(TEACHER, seed=1)
    out = term(lesson_of(student, teacher))
    parts = []
    for tap in ('neck[0]', 'neck[1]', 'neck[2]'):
        embeddings = [torch.stack([crops(x[tap][image:image + 1], [torch.tensor([box])], (64, 64))[0]
                                   .mean((1, 2)) for image, boxes in enumerate(BOXES) for box in boxes])
                      for x in (student, teacher)]
        parts.append(slow_parts(*embeddings))
    distance, angle = (sum(values) / 3 for values in zip(*parts, strict=True))
    assert out['distance'].item() == pytest.approx(distance, rel=1e-4)
    assert out['angle'].item() == pytest.approx(angle, rel=1e-4)
    assert out['samples'] == 5
    assert [row['name'] for row in term.describe()] == ['s8', 's4', 's2']


def test_images_are_compared_by_the_mean_of_the_second_largest_map_without_boxes():
    term, student, teacher = set_up(unit='image'), maps(STUDENT), maps(TEACHER, seed=1)
    assert term.needs == {'maps'} and set_up().needs == {'maps', 'boxes'}
    assert term.student_taps == term.teacher_taps == ['neck[1]']
    out = term(make_lesson(student, teacher))
    distance, angle = slow_parts(*(x['neck[1]'].mean((2, 3)) for x in (student, teacher)))
    assert [out['distance'].item(), out['angle'].item()] == pytest.approx([distance, angle], rel=1e-4)
    assert out['samples'] == len(BOXES)


def test_the_maps_can_be_chosen_and_a_detector_with_one_map_is_enough():
    assert [p.name for p in set_up(sizes=[8, 1]).pairs] == ['s8', 's1']
    one = {'neck[0]': (3, 8)}
    assert [p.name for unit in ('image', 'instance') for p in set_up(one, one, unit=unit).pairs] == 2 * ['s8']


def test_turning_scaling_and_moving_the_embeddings_changes_nothing():
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64)).Q
    one = related(student, teacher)['loss'].item()
    assert related(7 * student @ turn + 5, teacher)['loss'].item() == pytest.approx(one, rel=1e-9)
    assert related(teacher @ turn * .1 - 2, teacher)['loss'].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('unit', ['instance', 'image'])
def test_equal_maps_cost_nothing_and_others_teach_the_student_only(unit):
    term, student, teacher = set_up(unit=unit), maps(STUDENT), maps(TEACHER, seed=1)
    same = {tap: x.detach().clone() for tap, x in student.items()}
    assert term(lesson_of(student, same))['loss'].item() == 0
    term(lesson_of(student, teacher))['loss'].backward()
    assert all(student[tap].grad.abs().max() > 0 for tap in term.student_taps)
    assert all(x.grad is None for x in teacher.values())
    assert not term.state_dict()        # nothing that a checkpoint could carry


@pytest.mark.parametrize('unit', ['instance', 'image'])
def test_the_order_of_the_images_does_not_matter(unit):
    term, student, teacher = set_up(unit=unit), maps(STUDENT), maps(TEACHER, seed=1)
    turned = [2, 0, 3, 1]
    one = term(lesson_of(student, teacher))['loss']
    other = term(lesson_of(*({tap: x[turned] for tap, x in m.items()} for m in (student, teacher)),
                           boxes=[BOXES[i] for i in turned]))['loss']
    assert torch.allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize('options', [dict(), dict(squared=True), dict(normalize=True), dict(unit='image')])
def test_gradcheck(options):
    shapes = [{'neck[0]': (c, 3)} for c in (2, 3)]
    term = set_up(*shapes, **options)
    student, teacher = (maps(s, dtype=torch.float64, seed=i) for i, s in enumerate(shapes))
    assert torch.autograd.gradcheck(
        lambda x: term(lesson_of({'neck[0]': x}, teacher))['loss'], student['neck[0]'])


@pytest.mark.parametrize('unit, boxes', [
    ('instance', [[], [], []]), ('instance', [BOXES[1], [], []]), ('instance', [BOXES[0]]),
    ('instance', [BOXES[0], [[9., 9., 9., 30.]], [[9., 9., 9.5, 30.]]]), ('image', [[]]),
    ('image', [[], []])],
    ids=['no objects', 'one', 'two in one image', 'two and two without width', 'one image', 'two images'])
def test_fewer_than_three_samples_cost_exactly_nothing(unit, boxes):
    term, student = set_up(unit=unit), maps(STUDENT, len(boxes))
    out = term(lesson_of(student, maps(TEACHER, len(boxes), seed=1), boxes))
    out['loss'].backward()
    assert out['loss'].item() == 0 and out['samples'] < 3
    assert all(student[tap].grad.abs().max() == 0 for tap in term.student_taps)


def test_ignored_objects_are_no_samples():
    lesson = lesson_of(maps(STUDENT, 2), maps(TEACHER, 2), [BOXES[0], []])
    lesson.samples[1].ignored_instances.bboxes = torch.tensor(BOXES[3])
    assert set_up()(lesson)['samples'] == 2


@pytest.mark.parametrize('flat', ['student', 'teacher', 'both'])
@pytest.mark.parametrize('value', [0., .3, 1e4])
def test_embeddings_that_coincide_up_to_rounding_stay_finite_and_do_not_blow_up(flat, value):
    term, student, teacher = set_up(), maps(STUDENT), maps(TEACHER, seed=1)
    for side, which in ((student, 'student'), (teacher, 'teacher')):
        for tap, x in side.items():
            if flat in (which, 'both'):
                side[tap] = torch.full_like(x, value).requires_grad_()
    out = term(lesson_of(student, teacher))
    out['loss'].backward()
    gradient = torch.stack([student[tap].grad.abs().max() for tap in term.student_taps])
    assert out['loss'].isfinite() and gradient.isfinite().all()
    if flat == 'teacher':
        assert out['loss'] > 0 and gradient.max() > 0
    else:
        assert gradient.max() == 0 and (out['loss'] == 0) == (flat == 'both')


def test_objects_of_one_image_on_a_map_of_one_cell_coincide():
    term = set_up(sizes=[1])
    student, teacher = maps(STUDENT), maps(TEACHER, seed=1)
    out = term(lesson_of(student, teacher))      # five objects in three images
    embeddings = [x['neck[3]'][[0, 0, 1, 3, 3], :, 0, 0] for x in (student, teacher)]
    assert [out['distance'].item(), out['angle'].item()] == pytest.approx(slow_parts(*embeddings), rel=1e-4)
    out['loss'].backward()
    assert student['neck[3]'].grad.isfinite().all() and student['neck[3]'].grad.abs().max() > 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('unit', ['instance', 'image'])
def test_large_values_in_half_precision_are_computed_in_single(unit, dtype):
    term = set_up(unit=unit)
    student, teacher = ({tap: (6e4 * x.detach()).to(dtype).requires_grad_()
                         for tap, x in maps(shape, seed=seed).items()}
                        for shape, seed in ((STUDENT, 0), (TEACHER, 1)))
    loss = term(lesson_of(student, teacher))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss > 0
    assert all(student[tap].grad.isfinite().all() for tap in term.student_taps)


def test_of_many_objects_some_are_drawn_the_same_in_every_run():
    boxes = [(torch.rand(9, 4, generator=torch.Generator().manual_seed(i)) * 30
              + torch.tensor([0., 0, 31, 31])).tolist() for i in range(4)]
    term, student, teacher = set_up(max_samples=10), maps(STUDENT), maps(TEACHER, seed=1)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    outs = [term(lesson_of(student, teacher, boxes, iteration=i)) for i in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(out['samples'] == 10 for out in outs)
    values = [out['loss'].item() for out in outs]
    assert values[0] == values[1] != values[2]
    everything = set_up(max_samples=64)(lesson_of(student, teacher, boxes))
    assert everything['samples'] == 36


def test_a_teacher_with_larger_maps_is_cropped_at_the_same_places():
    term, student, teacher = set_up(), maps(STUDENT), maps(TEACHER, seed=1)
    flat = {tap: x.detach().mean((2, 3), keepdim=True).expand_as(x) for tap, x in teacher.items()}
    larger = {tap: x[..., :1, :1].expand(*x.shape[:2], 13, 13) for tap, x in flat.items()}
    one, other = (term(lesson_of(student, x))['loss'] for x in (flat, larger))
    assert torch.allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize('wrong, word', [
    (dict(unit='pixel'), 'unit'), (dict(distance_weight=-1), 'distance_weight=-1'),
    (dict(distance_weight=0, angle_weight=0), 'one must be above 0'),
    (dict(max_samples=2), 'max_samples=2'), (dict(crop=0), 'crop=0')])
def test_impossible_options_are_refused(wrong, word):
    with pytest.raises(UserError, match=word):
        Relational(**wrong)


def test_sizes_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match=r'stages \[38\] do not exist; there are \[8, 4, 2, 1\]'):
        set_up(sizes=[38])
