import math

import pytest
import torch
from torch import Tensor

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.terms.soft import SoftLoss
from hgd_det.errors import UserError
from hgd_det.testing import make_head_spec, make_lesson, make_spec

BIG = 1e4


def lesson_of(student: Tensor, teacher: Tensor, labels: Tensor, **more):
    reg = torch.zeros(*student.shape[:2], 4)
    return make_lesson(student_head=(student, reg), teacher_head=(teacher, reg), labels=labels,
                       **more)


def scores(batch: int = 2, anchors: int = 40, classes: int = 3, seed: int = 0, dtype=torch.float32):
    """Student and teacher logits, and labels with a few objects in every image."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, batch, anchors, classes + 1, generator=generator).to(dtype) * 2
    labels = torch.full((batch, anchors), classes)
    for image in range(batch):
        labels[image, 5 * image:5 * image + 2 + image] = torch.arange(2 + image) % classes
    return logits[0].requires_grad_(), logits[1].requires_grad_(), labels


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
    lesson = lesson_of(student, teacher, torch.tensor([[0]]))
    assert SoftLoss(mu=0.0)(lesson)['loss'].item() == pytest.approx(.970406, abs=1e-6)
    assert SoftLoss(mu=0.25)(lesson)['loss'].item() == pytest.approx(.75 * .970406, abs=1e-6)


def test_the_background_weight_goes_to_the_last_class():
    teacher, student = torch.tensor([[[.8, .2]]]).log(), torch.tensor([[[.5, .5]]]).log()
    lesson = lesson_of(student, teacher, torch.tensor([[0]]))
    expected = (.8 + 1.5 * .2) * math.log(2)
    assert SoftLoss(mu=0.0)(lesson)['loss'].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('weight, temperature', [(1.5, 1.0), (1.0, 1.0), (2.0, 3.0)])
def test_it_equals_a_loop_over_anchors_and_classes(weight, temperature):
    student, teacher, labels = scores()
    term = SoftLoss(mu=0.5, background_weight=weight, temperature=temperature)
    loss = term(lesson_of(student, teacher, labels))['loss']
    expected = 0.5 * slow_soft(student, teacher, labels, weight, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_an_equal_student_leaves_the_teachers_entropy_and_no_gradient():
    student, _, labels = scores()
    teacher = student.detach().clone()
    lesson = lesson_of(student, teacher, labels)
    out = SoftLoss(mu=0.0, background_weight=1.0)(lesson)
    chosen = teacher[lesson.region('hard')].softmax(-1)
    entropy = -(chosen * chosen.log()).sum() / lesson.targets.num_positive
    assert torch.allclose(out['loss'], entropy) and out['agreement'] == 1
    out['loss'].backward()
    assert student.grad.abs().max() < 1e-7


def test_its_gradient_reaches_the_chosen_anchors_of_the_student_only():
    student, teacher, labels = scores()
    lesson = lesson_of(student, teacher, labels)
    SoftLoss()(lesson)['loss'].backward()
    touched = student.grad.abs().sum(-1) > 0
    assert torch.equal(touched, lesson.region('hard')) and teacher.grad is None


@pytest.mark.parametrize('region', ['pos', 'hard', 'all'])
def test_the_order_of_the_images_does_not_matter(region):
    student, teacher, labels = scores(batch=3)
    term, turned = SoftLoss(region=region), [2, 0, 1]
    one = term(lesson_of(student, teacher, labels))['loss']
    other = term(lesson_of(student[turned], teacher[turned], labels[turned]))['loss']
    assert torch.allclose(one, other)


def test_gradcheck():
    student, teacher, labels = scores(anchors=16, dtype=torch.float64)
    for region in ('pos', 'all'):      # the mined set itself jumps with the scores
        term = SoftLoss(region=region)
        assert torch.autograd.gradcheck(
            lambda s, term=term: term(lesson_of(s, teacher, labels))['loss'], student)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_without_background_weight_it_is_mmdets_kl_loss_plus_the_teachers_entropy(temperature):
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss
    student, teacher, labels = scores()
    lesson = lesson_of(student, teacher, labels)
    SoftLoss(mu=0.0, background_weight=1.0, temperature=temperature)(lesson)['loss'].backward()
    ours, student.grad = student.grad, None
    chosen = lesson.region('hard')
    KnowledgeDistillationKLDivLoss(reduction='sum', T=temperature)(
        student[chosen], teacher[chosen].detach()).backward()
    # mmdet averages over the classes and knows no count of objects; the entropy has no gradient
    theirs = student.grad * student.shape[-1] / lesson.targets.num_positive
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_one_sigmoid_class_is_the_same_as_softmax_over_it_and_a_background_of_zero():
    student, teacher, _ = scores(classes=1)
    labels = torch.ones(2, 40, dtype=torch.long)
    labels[:, :3] = 0
    one = [x[..., :1] for x in (student, teacher)]
    two = [torch.cat([x, torch.zeros_like(x)], -1) for x in one]
    softmax = SoftLoss()(lesson_of(*two, labels))['loss']
    sigmoid = SoftLoss()(lesson_of(*one, labels, num_classes=1))['loss']
    assert torch.allclose(softmax, sigmoid)


@pytest.mark.parametrize('columns', [4, 3])     # softmax and sigmoid over three classes
@pytest.mark.parametrize('region', ['pos', 'hard'])
def test_a_batch_of_background_costs_exactly_nothing(region, columns):
    student, teacher, labels = scores()
    lesson = lesson_of(student[..., :columns], teacher[..., :columns], torch.full_like(labels, 3),
                       num_classes=3)
    loss = SoftLoss(region=region)(lesson)['loss']
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().max() == 0


def test_an_image_without_objects_adds_no_anchor():
    student, teacher, labels = scores()
    labels[1] = 3
    both = SoftLoss()(lesson_of(student, teacher, labels))['loss']
    first = SoftLoss()(lesson_of(student[:1], teacher[:1], labels[:1]))['loss']
    assert torch.allclose(both, first)


@pytest.mark.parametrize('columns', [4, 3])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_scores_in_any_precision_stay_finite(dtype, columns):
    _, _, labels = scores(batch=1)
    student = torch.full((1, 40, columns), -BIG, dtype=dtype)
    student[..., 0] = BIG
    teacher = -student
    student.requires_grad_()
    loss = SoftLoss()(lesson_of(student, teacher, labels, num_classes=3))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss > 0
    assert student.grad.isfinite().all() and student.grad.abs().max() > 0


def test_differing_anchors_are_refused_at_build_time():
    maps = {'neck[0]': (8, 38)}
    same, fewer = torch.rand(6, 4), torch.rand(5, 4)
    moved = same + 3
    SoftLoss().setup(make_spec(maps, maps, head=make_head_spec(same)))
    with pytest.raises(UserError, match='student has 6 anchors and the teacher 5'):
        SoftLoss().setup(make_spec(maps, maps, head=make_head_spec(same),
                                   teacher_head=make_head_spec(fewer)))
    with pytest.raises(UserError, match='differ by up to 3 pixels'):
        SoftLoss().setup(make_spec(maps, maps, head=make_head_spec(same),
                                   teacher_head=make_head_spec(moved)))
    with pytest.raises(UserError, match='3 classes, the teacher 4'):
        SoftLoss().setup(make_spec(maps, maps, head=make_head_spec(same),
                                   teacher_head=make_head_spec(same, num_classes=4)))


def test_it_asks_for_mu_times_the_students_own_classification_loss():
    assert SoftLoss(mu=0.3).scales_detection == {'loss_cls': 0.3}
    assert SoftLoss(mu=0.3, detection_key='loss_rpn_cls').scales_detection == {'loss_rpn_cls': 0.3}


@pytest.mark.parametrize('wrong', [dict(mu=1.5), dict(mu=-.1), dict(background_weight=-1),
                                   dict(temperature=0), dict(region='easy')])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        SoftLoss(**wrong)
