import math

import pytest
import torch
from torch import Tensor

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.registry import TERMS
from hgd_det.distill.terms.logit_kd import LogitKD
from hgd_det.distill.terms.logit_l2 import LogitL2
from hgd_det.errors import UserError
from hgd_det.testing import make_head_spec, make_lesson, make_spec

BIG = 1e4


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


def one_anchor(student, teacher, **options) -> float:
    """Two classes, background last, in float64."""
    rows = [torch.tensor([[row]], dtype=torch.float64) for row in (student, teacher)]
    return LogitKD(**options)(lesson_of(*rows, torch.tensor([[0]])))['loss'].item()


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
    student, teacher, labels = scores(dtype=torch.float64)
    lesson = lesson_of(student, teacher, labels)
    limit = LogitL2(center=True)(lesson)['loss'] / 4        # per anchor of the region, over 4 classes
    limit = limit * lesson.region('hard').sum() / lesson.targets.num_positive
    assert LogitKD(temperature=1e4)(lesson)['loss'].item() == pytest.approx(limit.item(), rel=1e-3)


def test_a_constant_added_to_all_logits_of_an_anchor_changes_nothing():
    student, teacher, labels = scores(dtype=torch.float64)
    one = LogitKD()(lesson_of(student, teacher, labels))['loss']
    other = LogitKD()(lesson_of(student + 7, teacher - 3, labels))['loss']
    assert other.item() == pytest.approx(one.item(), rel=1e-12)


@pytest.mark.parametrize('sigmoid', [False, True])
@pytest.mark.parametrize('region, temperature', [('hard', 1), ('hard', 4), ('pos', 3), ('all', 2)])
def test_it_equals_a_loop_over_anchors_and_classes(region, temperature, sigmoid):
    student, teacher, labels = scores(dtype=torch.float64)
    if sigmoid:
        student, teacher = student[..., :3], teacher[..., :3]
    lesson = lesson_of(student, teacher, labels, num_classes=3)
    value = LogitKD(temperature=temperature, region=region)(lesson)['loss'].item()
    assert value == pytest.approx(slow_kd(student, teacher, labels, temperature, region, sigmoid), rel=1e-6)


def test_mmdets_kl_loss_is_the_same_but_for_a_mean_over_the_classes():
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss
    student, teacher, labels = scores()
    lesson = lesson_of(student, teacher, labels)
    ours = LogitKD(temperature=4)(lesson)['loss']
    chosen = lesson.region('hard')
    theirs = KnowledgeDistillationKLDivLoss(reduction='sum', T=4)(student[chosen], teacher[chosen].detach())
    theirs = theirs * 4 / lesson.targets.num_positive
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    gradients = [torch.autograd.grad(x, student)[0] for x in (ours, theirs)]
    assert torch.allclose(*gradients, atol=1e-6)


def test_torchdistills_loss_is_the_same_without_the_factor():
    losses = pytest.importorskip('torchdistill.losses.mid_level')
    student, teacher, labels = scores()
    lesson = lesson_of(student, teacher, labels)
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
    student, teacher, labels = scores()
    student, teacher = student[..., :columns], teacher[..., :columns]
    same = LogitKD()(lesson_of(student, student.detach().clone(), labels, num_classes=3))
    assert same['loss'].item() == pytest.approx(0, abs=1e-6) and same['agreement'] == 1
    other = LogitKD()(lesson_of(student, teacher, labels, num_classes=3))
    assert other['loss'] > .1 and other['agreement'] < 1


@pytest.mark.parametrize('region', ['pos', 'hard', 'all'])
def test_its_gradient_reaches_the_chosen_anchors_of_the_student_only(region):
    student, teacher, labels = scores()
    lesson, term = lesson_of(student, teacher, labels), LogitKD(region=region)
    term(lesson)['loss'].backward()
    assert torch.equal(student.grad.abs().sum(-1) > 0, lesson.region(region)) and teacher.grad is None
    assert not term.state_dict()        # nothing that a checkpoint could carry


def test_a_step_along_the_gradient_brings_the_student_nearer_to_the_teacher():
    student, teacher, labels = scores()
    term = LogitKD(region='all')
    value = term(lesson_of(student, teacher, labels))['loss']
    value.backward()
    nearer = (student - .1 * student.grad).detach()
    assert term(lesson_of(nearer, teacher, labels))['loss'] < value
    assert (nearer.softmax(-1) - teacher.softmax(-1)).abs().sum() < \
        (student.softmax(-1) - teacher.softmax(-1)).abs().sum()


@pytest.mark.parametrize('region', ['pos', 'hard', 'all'])
def test_the_order_of_the_images_does_not_matter(region):
    student, teacher, labels = scores(batch=3)
    term, turned = LogitKD(region=region), [2, 0, 1]
    one = term(lesson_of(student, teacher, labels))['loss']
    other = term(lesson_of(student[turned], teacher[turned], labels[turned]))['loss']
    assert torch.allclose(one, other)


@pytest.mark.parametrize('columns', [4, 3])
def test_gradcheck(columns):
    student, teacher, labels = scores(anchors=12, dtype=torch.float64)
    for region in ('pos', 'all'):      # the mined set itself jumps with the scores
        term = LogitKD(region=region)
        assert torch.autograd.gradcheck(lambda s, term=term: term(lesson_of(
            s[..., :columns], teacher[..., :columns], labels, num_classes=3))['loss'], student)


@pytest.mark.parametrize('columns', [4, 3])
@pytest.mark.parametrize('region', ['pos', 'hard'])
def test_a_batch_of_background_costs_exactly_nothing(region, columns):
    student, teacher, labels = scores()
    lesson = lesson_of(student[..., :columns], teacher[..., :columns], torch.full_like(labels, 3),
                       num_classes=3)
    out = LogitKD(region=region)(lesson)
    out['loss'].backward()
    assert out['loss'].item() == 0 and student.grad.abs().max() == 0 and out['agreement'] == 0


def test_ignored_anchors_take_no_part():
    student, teacher, labels = scores(batch=1)
    lesson = lesson_of(student, teacher, labels, label_weights=torch.zeros(1, 40))
    loss = LogitKD()(lesson)['loss']
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().max() == 0


def test_an_image_without_objects_adds_no_anchor():
    student, teacher, labels = scores()
    labels[1] = 3
    both = LogitKD()(lesson_of(student, teacher, labels))['loss']
    first = LogitKD()(lesson_of(student[:1], teacher[:1], labels[:1]))['loss']
    assert torch.allclose(both, first)


@pytest.mark.parametrize('columns', [4, 3])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_scores_in_any_precision_stay_finite(dtype, columns):
    _, _, labels = scores(batch=1)
    student = torch.full((1, 40, columns), -BIG, dtype=dtype)
    student[..., 0] = BIG
    teacher = -student
    student.requires_grad_()
    loss = LogitKD()(lesson_of(student, teacher, labels, num_classes=3))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss > 0
    assert student.grad.isfinite().all() and student.grad.abs().max() > 0


def test_differing_detectors_are_refused_at_build_time():
    maps = {'neck[0]': (8, 38)}
    same = torch.rand(6, 4)
    term = TERMS.build(dict(type='LogitKD'))
    term.setup(make_spec(maps, maps, head=make_head_spec(same)))
    for theirs, message in ((make_head_spec(torch.rand(5, 4)), 'student has 6 anchors and the teacher 5'),
                            (make_head_spec(same + 3), 'differ by up to 3 pixels'),
                            (make_head_spec(same, num_classes=4), '3 classes, the teacher 4')):
        with pytest.raises(UserError, match=f"'LogitKD'.*{message}"):
            term.setup(make_spec(maps, maps, head=make_head_spec(same), teacher_head=theirs))


@pytest.mark.parametrize('wrong', [dict(temperature=0), dict(temperature=-1), dict(region='easy')])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        LogitKD(**wrong)
