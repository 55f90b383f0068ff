import pytest
import torch
from torch import Tensor

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.terms.bounded import BoundedRegression
from hgd_det.errors import UserError
from hgd_det.testing import make_batch, make_head_spec, make_lesson, make_spec

MAPS = {'neck[0]': (8, 38)}


def lesson_of(student: Tensor, teacher: Tensor, wanted: Tensor, labels: Tensor):
    cls = torch.zeros(*labels.shape, 4)
    return make_lesson(student_head=(cls, student), teacher_head=(cls, teacher), labels=labels,
                       box_targets=wanted)


def deltas(batch: int = 2, anchors: int = 30, dtype=torch.float32, seed: int = 0):
    """Student and teacher deltas, encoded targets, and labels with objects in every image."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(3, batch, anchors, 4, generator=generator).to(dtype)
    labels = torch.full((batch, anchors), 3)
    for image in range(batch):
        labels[image, 3 * image:3 * image + 5 + image] = image
    return made[0].requires_grad_(), made[1].requires_grad_(), made[2], labels


def slow_bounded(student, teacher, wanted, labels, margin: float) -> float:
    total = positives = 0
    for image in range(len(labels)):
        for a in range(labels.shape[1]):
            if labels[image, a] == 3:
                continue
            positives += 1
            e_student = e_teacher = 0.0
            for k in range(4):
                e_student += (student[image, a, k] - wanted[image, a, k]).item() ** 2
                e_teacher += (teacher[image, a, k] - wanted[image, a, k]).item() ** 2
            if e_student + margin > e_teacher:
                total += e_student
    return total / max(1, positives)


@pytest.mark.parametrize('teacher_off, margin, expected', [
    (2., 0., 0.),       # the student's error 1 is within the teacher's 4
    (2., 4., 1.),       # but not by a margin of 4
    (0., 0., 1.),       # a perfect teacher
    (1., 0., 0.),       # equal errors: the comparison is strict
])
def test_closed_forms(teacher_off, margin, expected):
    wanted = torch.tensor([[[.3, -.2, .1, .5]]])
    step = torch.tensor([1., 0, 0, 0])
    lesson = lesson_of(wanted + step, wanted + teacher_off * step, wanted, torch.tensor([[0]]))
    loss = BoundedRegression(margin=margin)(lesson)['loss']
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('margin', [0., 1.5, -1.])
def test_it_equals_a_loop_over_anchors(margin):
    student, teacher, wanted, labels = deltas()
    out = BoundedRegression(margin=margin)(lesson_of(student, teacher, wanted, labels))
    expected = slow_bounded(student, teacher, wanted, labels, margin)
    assert out['loss'].item() == pytest.approx(expected, rel=1e-5) and 0 < out['active'] < 1


def test_an_equal_student_costs_nothing():
    student, _, wanted, labels = deltas()
    lesson = lesson_of(student, student.detach().clone(), wanted, labels)
    assert BoundedRegression()(lesson)['loss'].item() == 0


def test_the_gradient_pulls_to_the_target_where_the_student_is_worse_and_nowhere_else():
    student, teacher, wanted, labels = deltas()
    BoundedRegression()(lesson_of(student, teacher, wanted, labels))['loss'].backward()
    error = lambda x: (x - wanted).square().sum(-1)  # noqa: E731
    worse = (labels < 3) & (error(student) > error(teacher))
    expected = 2 * (student - wanted) * worse[..., None] / (labels < 3).sum()
    assert torch.allclose(student.grad, expected.detach(), atol=1e-6) and teacher.grad is None


def test_the_order_of_the_images_does_not_matter():
    parts = deltas(batch=3)
    one = BoundedRegression()(lesson_of(*parts))['loss']
    turned = [part[[2, 0, 1]] for part in parts]
    assert torch.allclose(one, BoundedRegression()(lesson_of(*turned))['loss'])


def test_gradcheck():
    student, teacher, wanted, labels = deltas(anchors=10, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: BoundedRegression()(lesson_of(s, teacher, wanted, labels))['loss'], student)


def test_a_distribution_head_is_compared_by_the_mean_of_its_bins():
    student, teacher, wanted, labels = deltas()
    bins = torch.arange(-8., 9.)
    lower = student.detach().floor()                            # two bins that average to delta
    share = student.detach() - lower
    index = (lower + 8).long()[..., None]
    two_hot = torch.full((*student.shape, 17), 1e-12)
    two_hot = two_hot.scatter(-1, index, 1 - share[..., None])
    two_hot = two_hot.scatter(-1, index + 1, share[..., None])
    anchors = torch.rand(30, 4)
    term = BoundedRegression()
    term.setup(make_spec(MAPS, MAPS, head=make_head_spec(anchors, reg_channels=68, project=bins),
                         teacher_head=make_head_spec(anchors)))
    out = term(lesson_of(two_hot.log().flatten(2), teacher, wanted, labels))
    expected = BoundedRegression()(lesson_of(student, teacher, wanted, labels))
    assert torch.allclose(out['loss'], expected['loss'], atol=1e-4) and not term.state_dict()


def test_a_batch_of_background_costs_exactly_nothing():
    student, teacher, wanted, labels = deltas(batch=1)
    out = BoundedRegression()(lesson_of(student, teacher, wanted, torch.full_like(labels, 3)))
    out['loss'].backward()
    assert out['loss'].item() == 0 and out['active'] == 0 and student.grad.abs().max() == 0


def test_ignored_objects_alone_cost_nothing_with_a_real_head():
    from types import SimpleNamespace

    from mmdet.registry import MODELS
    from mmengine.structures import InstanceData

    import hgd_det.models  # noqa: F401
    from hgd_det.distill.heads import Watching, flatten
    from hgd_det.distill.lesson import Lesson, Side
    from hgd_det.distill.schedule import Progress
    from hgd_det.testing import tiny_ssd
    config = tiny_ssd()
    head = MODELS.build(dict(config['bbox_head'], train_cfg=config['train_cfg']))
    maps = [torch.randn(1, c, s, s) for c, s in zip(head.in_channels, (12, 6, 3, 1), strict=True)]
    sample = make_batch(1, objects=(0,))['data_samples'][0]
    sample.ignored_instances = InstanceData(bboxes=torch.tensor([[8., 8, 60, 60]]),
                                            labels=torch.tensor([1]))
    with Watching(SimpleNamespace(bbox_head=head)) as spy:
        outputs = head(maps)
        head.loss_by_feat(*outputs, [sample.gt_instances], [sample.metainfo],
                          [sample.ignored_instances])
    lesson = Lesson(Side({}, spy.output()), Side({}, flatten(head, outputs)), [sample],
                    progress=Progress(0, 10), input_shape=(96, 96), targets=spy.targets())
    assert BoundedRegression()(lesson)['loss'].item() == 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_saturated_deltas_in_half_precision_stay_finite(dtype):
    student, teacher, wanted, labels = deltas(batch=1)
    student = torch.full_like(student, -1e4, dtype=dtype).requires_grad_()
    loss = BoundedRegression()(lesson_of(student, teacher.to(dtype), wanted, labels))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and student.grad.isfinite().all()


def test_impossible_pairs_are_refused_at_build_time():
    anchors = torch.rand(6, 4)
    head = make_head_spec(anchors)

    def setup(mine=head, theirs=head):
        BoundedRegression().setup(make_spec(MAPS, MAPS, head=mine, teacher_head=theirs))

    setup()
    for other, message in [
            (make_head_spec(anchors[:5]), 'student has 6 anchors and the teacher 5'),
            (make_head_spec(anchors + 2), 'differ by up to 2 pixels'),
            (make_head_spec(anchors, reg_channels=8), 'puts out 8 numbers per anchor')]:
        with pytest.raises(UserError, match=message):
            setup(theirs=other)
    with pytest.raises(UserError, match='anchor-free'):
        setup(make_head_spec(None), make_head_spec(None))
    decoded = make_head_spec(anchors, decoded=True)
    for mine, theirs in ((decoded, head), (head, decoded)):
        with pytest.raises(UserError, match='reg_decoded_bbox=True'):
            setup(mine, theirs)
