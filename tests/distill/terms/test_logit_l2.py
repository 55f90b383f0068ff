import math
from dataclasses import replace

import pytest
import torch

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.terms.logit_l2 import LogitL2
from hgd_det.errors import UserError
from hgd_det.testing import make_head_spec, make_scores, make_spec, score_lesson

BIG = 1e4
OPTIONS = (dict(), dict(center=True), dict(space='prob'))


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
    loss = LogitL2(**options)(score_lesson(student, teacher, torch.tensor([[0]])))['loss']
    assert loss.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('region', ['hard', 'pos', 'all'])
def test_it_equals_a_loop_over_anchors_and_classes(region, options):
    lesson = score_lesson(*make_scores(dtype=torch.float64))
    value = LogitL2(region=region, **options)(lesson)['loss'].item()
    assert value == pytest.approx(slow_l2(lesson, region, **options), rel=1e-9)


@pytest.mark.parametrize('space', ['logit', 'prob'])
def test_a_sigmoid_head_is_compared_class_by_class(space):
    student, teacher, labels = make_scores(dtype=torch.float64)
    lesson = score_lesson(student[..., :3], teacher[..., :3], labels, num_classes=3)
    term = LogitL2(space=space)
    term.sigmoid = True
    value = term(lesson)['loss'].item()
    assert value == pytest.approx(slow_l2(lesson, 'hard', space, sigmoid=True), rel=1e-9)


def test_it_is_half_of_mmdets_squared_error_times_the_number_of_classes():
    from mmdet.models.losses import MSELoss
    student, teacher, labels = make_scores()
    lesson = score_lesson(student, teacher, labels)
    chosen = lesson.region('hard')
    theirs = MSELoss(reduction='mean', loss_weight=.5 * 4)(student[chosen], teacher[chosen].detach())
    ours = LogitL2()(lesson)['loss']
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    gradients = [torch.autograd.grad(x, student)[0] for x in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-7)


def test_a_constant_added_to_all_logits_of_an_anchor_counts_only_where_nothing_is_centred():
    student, teacher, labels = make_scores(dtype=torch.float64)
    for options, ignores in zip(OPTIONS, (False, True, True), strict=True):
        values = [LogitL2(**options)(score_lesson(student, teacher + c, labels))['loss'].item()
                  for c in (0, 5)]
        assert (values[1] == pytest.approx(values[0], rel=1e-9)) is ignores


@pytest.mark.parametrize('options', OPTIONS)
def test_an_equal_student_costs_nothing_and_a_different_one_something(options):
    student, teacher, labels = make_scores()
    same = LogitL2(**options)(score_lesson(student, student.detach().clone(), labels))
    assert same['loss'].item() == 0 and same['agreement'] == 1
    other = LogitL2(**options)(score_lesson(student, teacher, labels))
    assert other['loss'] > .1 and other['agreement'] < 1


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
