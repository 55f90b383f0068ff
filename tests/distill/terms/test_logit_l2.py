import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.registry import TERMS
from hgd_det.distill.terms.logit_l2 import LogitL2
from hgd_det.errors import UserError
from hgd_det.testing import make_head_spec, make_lesson, make_spec

BIG = 1e4
OPTIONS = (dict(), dict(center=True), dict(space='prob'))


def lesson_of(student: Tensor, teacher: Tensor, labels: Tensor, **more):
    reg = torch.zeros(*student.shape[:2], 4)
    return make_lesson(student_head=(student, reg), teacher_head=(teacher, reg), labels=labels, **more)


def scores(batch: int = 2, anchors: int = 40, classes: int = 3, seed: int = 0, dtype=torch.float32):
    """Student and teacher logits, and labels with a few objects in every image."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, batch, anchors, classes + 1, generator=generator).to(dtype) * 2
    labels = torch.full((batch, anchors), classes)
    for image in range(batch):
        labels[image, 5 * image:5 * image + 2 + image] = torch.arange(2 + image) % classes
    return logits[0].requires_grad_(), logits[1].requires_grad_(), labels


def probabilities(row: list[float], sigmoid: bool) -> list[float]:
    if sigmoid:
        return [1 / (1 + math.exp(-v)) for v in row]
    powers = [math.exp(v - max(row)) for v in row]
    return [p / sum(powers) for p in powers]


def slow_l2(lesson, region: str, space: str = 'logit', center: bool = False, sigmoid=False) -> float:
    """The docstring's formula, one number at a time."""
    values = []
    for image, a in lesson.region(region).nonzero().tolist():
        mine, theirs = (side.head.cls[image, a].tolist() for side in (lesson.student, lesson.teacher))
        if space == 'prob':
            mine, theirs = probabilities(mine, sigmoid), probabilities(theirs, sigmoid)
        gaps = [s - t for s, t in zip(mine, theirs, strict=True)]
        middle = sum(gaps) / len(gaps) if center else 0.0
        values.append(sum((gap - middle) ** 2 for gap in gaps))
    return (1.0 if space == 'prob' else 0.5) * sum(values) / max(1, len(values))


@pytest.mark.parametrize('options, value', list(zip(OPTIONS, (2.5, 2.25, .125957), strict=True)))
def test_the_lectures_cat_and_dog_have_their_closed_form(options, value):
    student, teacher = torch.tensor([[[3., 2]]]), torch.tensor([[[5., 1]]])
    loss = LogitL2(**options)(lesson_of(student, teacher, torch.tensor([[0]])))['loss']
    assert loss.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('region', ['hard', 'pos', 'all'])
def test_it_equals_a_loop_over_anchors_and_classes(region, options):
    lesson = lesson_of(*scores(dtype=torch.float64))
    value = LogitL2(region=region, **options)(lesson)['loss'].item()
    assert value == pytest.approx(slow_l2(lesson, region, **options), rel=1e-9)


@pytest.mark.parametrize('space', ['logit', 'prob'])
def test_a_sigmoid_head_is_compared_class_by_class(space):
    student, teacher, labels = scores(dtype=torch.float64)
    lesson = lesson_of(student[..., :3], teacher[..., :3], labels, num_classes=3)
    value = LogitL2(space=space)(lesson)['loss'].item()
    assert value == pytest.approx(slow_l2(lesson, 'hard', space, sigmoid=True), rel=1e-9)


def test_it_is_half_of_mmdets_squared_error_times_the_number_of_classes():
    from mmdet.models.losses import MSELoss
    student, teacher, labels = scores()
    lesson = lesson_of(student, teacher, labels)
    chosen = lesson.region('hard')
    theirs = MSELoss(reduction='mean', loss_weight=.5 * 4)(student[chosen], teacher[chosen].detach())
    ours = LogitL2()(lesson)['loss']
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    gradients = [torch.autograd.grad(x, student)[0] for x in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-7)


def test_a_constant_added_to_all_logits_of_an_anchor_counts_only_where_nothing_is_centred():
    student, teacher, labels = scores(dtype=torch.float64)
    for options, ignores in zip(OPTIONS, (False, True, True), strict=True):
        values = [LogitL2(**options)(lesson_of(student, teacher + c, labels))['loss'].item() for c in (0, 5)]
        assert (values[1] == pytest.approx(values[0], rel=1e-9)) is ignores


@pytest.mark.parametrize('options', OPTIONS)
def test_an_equal_student_costs_nothing_and_a_different_one_something(options):
    student, teacher, labels = scores()
    same = LogitL2(**options)(lesson_of(student, student.detach().clone(), labels))
    assert same['loss'].item() == 0 and same['agreement'] == 1
    other = LogitL2(**options)(lesson_of(student, teacher, labels))
    assert other['loss'] > .1 and other['agreement'] < 1


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('region', ['pos', 'hard', 'all'])
def test_its_gradient_reaches_the_chosen_anchors_of_the_student_only(region, options):
    student, teacher, labels = scores()
    lesson, term = lesson_of(student, teacher, labels), LogitL2(region=region, **options)
    term(lesson)['loss'].backward()
    assert torch.equal(student.grad.abs().sum(-1) > 0, lesson.region(region)) and teacher.grad is None
    assert not term.state_dict()        # nothing that a checkpoint could carry


@pytest.mark.parametrize('region', ['pos', 'hard', 'all'])
def test_the_order_of_the_images_does_not_matter(region):
    student, teacher, labels = scores(batch=3)
    term, turned = LogitL2(region=region), [2, 0, 1]
    one = term(lesson_of(student, teacher, labels))['loss']
    other = term(lesson_of(student[turned], teacher[turned], labels[turned]))['loss']
    assert torch.allclose(one, other)


@pytest.mark.parametrize('options', OPTIONS)
def test_gradcheck(options):
    student, teacher, labels = scores(anchors=12, dtype=torch.float64)
    for region in ('pos', 'all'):      # the mined set itself jumps with the scores
        term = LogitL2(region=region, **options)
        assert torch.autograd.gradcheck(
            lambda s, term=term: term(lesson_of(s, teacher, labels))['loss'], student)


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('region', ['pos', 'hard'])
def test_a_batch_of_background_costs_exactly_nothing(region, options):
    student, teacher, labels = scores()
    out = LogitL2(region=region, **options)(lesson_of(student, teacher, torch.full_like(labels, 3)))
    out['loss'].backward()
    assert out['loss'].item() == 0 and student.grad.abs().max() == 0 and out['agreement'] == 0


def test_ignored_anchors_take_no_part():
    student, teacher, labels = scores(batch=1)
    loss = LogitL2()(lesson_of(student, teacher, labels, label_weights=torch.zeros(1, 40)))['loss']
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().max() == 0


def test_an_image_without_objects_adds_no_anchor():
    student, teacher, labels = scores()
    labels[1] = 3
    both = LogitL2()(lesson_of(student, teacher, labels))['loss']
    first = LogitL2()(lesson_of(student[:1], teacher[:1], labels[:1]))['loss']
    assert torch.allclose(both, first)


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_scores_in_any_precision_stay_finite(dtype, options):
    _, _, labels = scores(batch=1)
    student = torch.full((1, 40, 4), -BIG, dtype=dtype)
    student[..., 0] = BIG
    teacher = -student
    student.requires_grad_()
    loss = LogitL2(**options)(lesson_of(student, teacher, labels))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss > 0
    assert student.grad.isfinite().all()


def test_differing_detectors_are_refused_at_build_time():
    maps = {'neck[0]': (8, 38)}
    same = torch.rand(6, 4)
    term = TERMS.build(dict(type='LogitL2'))
    term.setup(make_spec(maps, maps, head=make_head_spec(same)))
    for theirs, message in ((make_head_spec(torch.rand(5, 4)), 'student has 6 anchors and the teacher 5'),
                            (make_head_spec(same + 3), 'differ by up to 3 pixels'),
                            (make_head_spec(same, num_classes=4), '3 classes, the teacher 4')):
        with pytest.raises(UserError, match=f"'LogitL2'.*{message}"):
            term.setup(make_spec(maps, maps, head=make_head_spec(same), teacher_head=theirs))


def test_centring_is_refused_where_it_would_be_wrong_or_idle():
    maps = {'neck[0]': (8, 38)}
    sigmoid = make_spec(maps, maps, head=replace(make_head_spec(torch.rand(6, 4)), use_sigmoid=True))
    LogitL2().setup(sigmoid)
    with pytest.raises(UserError, match='center=True, but SSDHead scores with sigmoid'):
        LogitL2(center=True).setup(sigmoid)
    with pytest.raises(UserError, match="center=True with space='prob' changes nothing"):
        LogitL2(center=True, space='prob')


@pytest.mark.parametrize('wrong', [dict(space='log'), dict(region='easy')])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        LogitL2(**wrong)
