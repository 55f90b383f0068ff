import math

import pytest
import torch
from torch import Tensor

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.terms.logit_kd import LogitKD
from hgd_det.distill.terms.logit_l2 import LogitL2
from hgd_det.errors import UserError
from hgd_det.testing import make_scores, score_lesson

BIG = 1e4


def one_anchor(student, teacher, **options) -> float:
    """Two classes, background last, in float64."""
    rows = [torch.tensor([[row]], dtype=torch.float64) for row in (student, teacher)]
    return LogitKD(**options)(score_lesson(*rows, torch.tensor([[0]])))['loss'].item()


def soft(row: list[float]) -> list[float]:
    powers = [math.exp(v - max(row)) for v in row]
    return [p / sum(powers) for p in powers]


def chosen_anchors(student: Tensor, labels: Tensor, region: str, sigmoid: bool):
    """(image, anchor) of a region, by sorting each image's background anchors."""
    classes = student.shape[-1] - (not sigmoid)
    for image, wanted in enumerate(labels.tolist()):
        objects = [a for a, label in enumerate(wanted) if label < classes]
        background = [math.prod(1 / (1 + math.exp(v)) for v in row) if sigmoid else soft(row)[-1]
                      for row in student[image].tolist()]
        hardest = sorted(set(range(len(wanted))) - set(objects), key=background.__getitem__)
        taken = {'pos': [], 'hard': hardest[:3 * len(objects)], 'all': hardest}[region]
        yield from ((image, a) for a in objects + taken)


def slow_kd(student, teacher, labels, temperature: float, region: str, sigmoid: bool) -> float:
    """The docstring's formula, one probability at a time."""
    total = 0.0
    for image, a in chosen_anchors(student, labels, region, sigmoid):
        mine, theirs = ([v / temperature for v in z[image, a].tolist()] for z in (student, teacher))
        if sigmoid:
            for s, t in zip(mine, theirs, strict=True):
                p, q = 1 / (1 + math.exp(-t)), 1 / (1 + math.exp(-s))
                total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        else:
            total += sum(p * math.log(p / q) for p, q in zip(soft(theirs), soft(mine), strict=True))
    positives = sum(label < student.shape[-1] - (not sigmoid) for row in labels.tolist() for label in row)
    return temperature ** 2 * total / max(1, positives)


def test_the_lectures_cat_and_dog_have_their_closed_form():
    # probabilities (.982, .018) and (.731, .269) at T=1, (.599, .401) for the teacher at T=10
    assert torch.tensor([5., 1]).div(10).softmax(0).tolist() == pytest.approx([.598688, .401312], abs=1e-6)
    assert one_anchor([3, 2], [5, 1], temperature=1) == pytest.approx(.241153, abs=1e-6)
    assert one_anchor([3, 2], [5, 1], temperature=10) == pytest.approx(1.0987706, abs=1e-7)
    assert one_anchor([3, 2], [5, 1], temperature=10, t2=False) == pytest.approx(.010987706, abs=1e-9)


def test_a_large_temperature_compares_centred_logits():
    # differences (-2, 1), centred (-1.5, 1.5): (2.25 + 2.25) / (2 * 2 classes)
    assert one_anchor([3, 2], [5, 1], temperature=1e4) == pytest.approx(1.125, rel=1e-4)
    student, teacher, labels = make_scores(dtype=torch.float64)
    lesson = score_lesson(student, teacher, labels)
    limit = LogitL2(center=True)(lesson)['loss'] / 4        # per anchor of the region, over 4 classes
    limit = limit * lesson.region('hard').sum() / lesson.targets.num_positive
    assert LogitKD(temperature=1e4)(lesson)['loss'].item() == pytest.approx(limit.item(), rel=1e-3)


def test_a_constant_added_to_all_logits_of_an_anchor_changes_nothing():
    student, teacher, labels = make_scores(dtype=torch.float64)
    one = LogitKD()(score_lesson(student, teacher, labels))['loss']
    other = LogitKD()(score_lesson(student + 7, teacher - 3, labels))['loss']
    assert other.item() == pytest.approx(one.item(), rel=1e-12)


@pytest.mark.parametrize('sigmoid', [False, True])
@pytest.mark.parametrize('region, temperature', [('hard', 1), ('hard', 4), ('pos', 3), ('all', 2)])
def test_it_equals_a_loop_over_anchors_and_classes(region, temperature, sigmoid):
    student, teacher, labels = make_scores(dtype=torch.float64)
    if sigmoid:
        student, teacher = student[..., :3], teacher[..., :3]
    lesson = score_lesson(student, teacher, labels, num_classes=3)
    term = LogitKD(temperature=temperature, region=region)
    term.sigmoid = sigmoid
    value = term(lesson)['loss'].item()
    assert value == pytest.approx(slow_kd(student, teacher, labels, temperature, region, sigmoid), rel=1e-6)


def test_mmdets_kl_loss_is_the_same_but_for_a_mean_over_the_classes():
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss
    student, teacher, labels = make_scores()
    lesson = score_lesson(student, teacher, labels)
    ours = LogitKD(temperature=4)(lesson)['loss']
    chosen = lesson.region('hard')
    theirs = KnowledgeDistillationKLDivLoss(reduction='sum', T=4)(student[chosen], teacher[chosen].detach())
    theirs = theirs * 4 / lesson.targets.num_positive
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = [torch.autograd.grad(x, student)[0] for x in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-6)


def test_torchdistills_loss_is_the_same_without_the_factor():
    losses = pytest.importorskip('torchdistill.losses.mid_level')
    student, teacher, labels = make_scores()
    lesson = score_lesson(student, teacher, labels)
    chosen = lesson.region('hard')
    theirs = losses.KDLoss('s', 'output', 't', 'output', temperature=4, reduction='sum', alpha=0)(
        dict(s=dict(output=student[chosen])), dict(t=dict(output=teacher[chosen].detach())))
    ours = LogitKD(temperature=4, t2=False)(lesson)['loss']
    theirs = theirs / lesson.targets.num_positive
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = [torch.autograd.grad(x, student)[0] for x in (ours, theirs)]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('columns', [4, 3])     # softmax and sigmoid over three classes
def test_an_equal_student_costs_nothing_and_a_different_one_something(columns):
    student, teacher, labels = make_scores()
    student, teacher = student[..., :columns], teacher[..., :columns]
    term = LogitKD()
    term.sigmoid = columns == 3
    same = term(score_lesson(student, student.detach().clone(), labels, num_classes=3))
    assert same['loss'].item() == pytest.approx(0, abs=1e-6) and same['agreement'] == 1
    other = term(score_lesson(student, teacher, labels, num_classes=3))
    assert other['loss'] > .1 and other['agreement'] < 1


def test_a_step_along_the_gradient_brings_the_student_nearer_to_the_teacher():
    student, teacher, labels = make_scores()
    term = LogitKD(region='all')
    value = term(score_lesson(student, teacher, labels))['loss']
    value.backward()
    nearer = (student - .1 * student.grad).detach()
    assert term(score_lesson(nearer, teacher, labels))['loss'] < value
    assert (nearer.softmax(-1) - teacher.softmax(-1)).abs().sum() < \
        (student.softmax(-1) - teacher.softmax(-1)).abs().sum()


@pytest.mark.parametrize('wrong', [dict(temperature=0), dict(temperature=-1), dict(region='easy')])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        LogitKD(**wrong)
