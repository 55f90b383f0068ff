import math

import pytest
import torch

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.terms.soft import SoftLoss
from hgd_det.errors import UserError
from hgd_det.testing import make_scores, score_lesson

BIG = 1e4


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp(v - top) for v in row))
    return [v - top - total for v in row]


def slow_soft(student, teacher, labels, weight: float, temperature: float = 1.0) -> float:
    """L_soft over SSD's own set of anchors, one number at a time."""
    classes = student.shape[-1] - 1
    total = positives = 0
    for image in range(len(student)):
        rows, wanted = student[image].tolist(), labels[image].tolist()
        objects = [a for a, label in enumerate(wanted) if label < classes]
        hardest = sorted((a for a, label in enumerate(wanted) if label == classes),
                         key=lambda a, rows=rows: log_softmax(rows[a])[classes])
        positives += len(objects)
        for a in objects + hardest[:3 * len(objects)]:
            mine = log_softmax([v / temperature for v in rows[a]])
            theirs = log_softmax([v / temperature for v in teacher[image, a].tolist()])
            for c in range(classes + 1):
                total -= (weight if c == classes else 1.0) * math.exp(theirs[c]) * mine[c]
    return temperature ** 2 * total / max(1, positives)


def test_one_positive_anchor_gives_the_closed_form():
    teacher, student = torch.tensor([[[.2, .8]]]).log(), torch.tensor([[[.5, .5]]]).log()
    lesson = score_lesson(student, teacher, torch.tensor([[0]]))
    assert SoftLoss(mu=0.0)(lesson)['loss'].item() == pytest.approx(.970406, abs=1e-6)
    assert SoftLoss(mu=0.25)(lesson)['loss'].item() == pytest.approx(.75 * .970406, abs=1e-6)


def test_the_background_weight_goes_to_the_last_class():
    teacher, student = torch.tensor([[[.8, .2]]]).log(), torch.tensor([[[.5, .5]]]).log()
    lesson = score_lesson(student, teacher, torch.tensor([[0]]))
    expected = (.8 + 1.5 * .2) * math.log(2)
    assert SoftLoss(mu=0.0)(lesson)['loss'].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('weight, temperature', [(1.5, 1.0), (1.0, 1.0), (2.0, 3.0)])
def test_it_equals_a_loop_over_anchors_and_classes(weight, temperature):
    student, teacher, labels = make_scores()
    term = SoftLoss(mu=0.5, background_weight=weight, temperature=temperature)
    loss = term(score_lesson(student, teacher, labels))['loss']
    expected = 0.5 * slow_soft(student, teacher, labels, weight, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_an_equal_student_leaves_the_teachers_entropy_and_no_gradient():
    student, _, labels = make_scores()
    teacher = student.detach().clone()
    lesson = score_lesson(student, teacher, labels)
    out = SoftLoss(mu=0.0, background_weight=1.0)(lesson)
    chosen = teacher[lesson.region('hard')].softmax(-1)
    entropy = -(chosen * chosen.log()).sum() / lesson.targets.num_positive
    assert torch.allclose(out['loss'], entropy) and out['agreement'] == 1
    out['loss'].backward()
    assert student.grad.abs().max() < 1e-7


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_without_background_weight_it_is_mmdets_kl_loss_plus_the_teachers_entropy(temperature):
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss
    student, teacher, labels = make_scores()
    lesson = score_lesson(student, teacher, labels)
    SoftLoss(mu=0.0, background_weight=1.0, temperature=temperature)(lesson)['loss'].backward()
    ours, student.grad = student.grad, None
    chosen = lesson.region('hard')
    KnowledgeDistillationKLDivLoss(reduction='sum', T=temperature)(
        student[chosen], teacher[chosen].detach()).backward()
    # mmdet averages over the classes and knows no count of objects; the entropy has no gradient
    theirs = student.grad * student.shape[-1] / lesson.targets.num_positive
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_one_sigmoid_class_is_the_same_as_softmax_over_it_and_a_background_of_zero():
    student, teacher, _ = make_scores(classes=1)
    labels = torch.ones(2, 40, dtype=torch.long)
    labels[:, :3] = 0
    one = [x[..., :1] for x in (student, teacher)]
    two = [torch.cat([x, torch.zeros_like(x)], -1) for x in one]
    softmax = SoftLoss()(score_lesson(*two, labels))['loss']
    term = SoftLoss()
    term.sigmoid = True
    sigmoid = term(score_lesson(*one, labels, num_classes=1))['loss']
    assert torch.allclose(softmax, sigmoid)


def test_it_asks_for_mu_times_the_students_own_classification_loss():
    assert SoftLoss(mu=0.3).scales_detection == {'loss_cls': 0.3}
    assert SoftLoss(mu=0.3, detection_key='loss_rpn_cls').scales_detection == {'loss_rpn_cls': 0.3}


@pytest.mark.parametrize('wrong', [dict(mu=1.5), dict(mu=-.1), dict(background_weight=-1),
                                   dict(temperature=0), dict(region='easy')])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        SoftLoss(**wrong)
