import copy

import pytest
import torch
from mmdet.registry import MODELS

import hgd_det.registered  # noqa: F401
from hgd_det.distill.schedule import Progress
from hgd_det.distill.terms.gradient_attention import GradientAttention
from hgd_det.testing import make_batch, make_lesson, tiny_ssd


def linear_lesson(w_student, w_teacher, images):
    """One anchor, an object, whose first delta is w.x + 5 against a target of 0: J = w."""
    images = images.requires_grad_()
    cls = torch.zeros(len(images), 1, 2, dtype=images.dtype)

    def head(w):
        delta = images.flatten(1) @ w + 5
        return cls + 0 * delta[:, None, None], torch.nn.functional.pad(delta[:, None, None], (0, 3))
    lesson = make_lesson(student_head=head(w_student), teacher_head=head(w_teacher),
                         labels=torch.zeros(len(images), 1, dtype=torch.long), num_classes=1,
                         images=images)
    return lesson


def test_the_gradient_of_a_linear_model_is_its_weight():
    x = torch.zeros(1, 1, 1, 2)
    one, other = torch.tensor([1., 2.]), torch.tensor([1., 0.])
    assert GradientAttention(normalize=False)(linear_lesson(one, other, x))['loss'].item() == 2
    out = GradientAttention()(linear_lesson(one, other, x))
    assert out['loss'].item() == pytest.approx(1 - 5 ** -.5)
    assert out['cosine'].item() == pytest.approx(5 ** -.5)
    assert GradientAttention()(linear_lesson(one, one, x))['loss'] == 0


def build(student=1 / 32, teacher=1 / 16, **extra):
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='Distiller', student=tiny_ssd(student, with_bn=False), input_size=96,
        teacher=dict(model=dict(model=tiny_ssd(teacher, with_bn=False)), checkpoint='untrained'),
        terms=dict(gradient=dict(type='GradientAttention', weight=1.0), **extra)))
    model.init_weights()
    model.progress = Progress(0, 10)
    return model.train()


def step(model, objects=(2, 2)):
    data = model.data_preprocessor(make_batch(len(objects), objects=objects), True)
    losses = model(**data, mode='loss')
    total, logs = model.parse_losses(losses)
    model.zero_grad()
    total.backward()
    return logs


def test_its_detection_loss_is_the_students_own(monkeypatch):
    import hgd_det.distill.terms.gradient_attention as module
    seen, original = [], module.detection_loss
    monkeypatch.setattr(module, 'detection_loss', lambda *a, **k: seen.append(original(*a, **k)) or seen[-1])
    logs = step(build())
    assert seen[0].item() == pytest.approx((logs['loss_cls'] + logs['loss_bbox']).item(), rel=1e-5)


def test_its_gradient_is_that_of_finite_differences():
    model = build().double()
    model.teacher.detector.double()
    data = model.data_preprocessor(make_batch(2), True)
    data['inputs'] = data['inputs'].double()
    model.student.neck.l2_norm = torch.nn.Identity()   # it computes in float32
    weight = next(model.student.parameters())

    def value():
        losses = model(**copy.copy(data), mode='loss')
        return losses['loss_gradient']
    grad, = torch.autograd.grad(value(), weight)
    at = torch.unravel_index(grad.abs().argmax(), grad.shape)
    ends = []
    for step in (1e-6, -2e-6):
        weight.data[at] += step
        ends.append(value().item())
    assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(grad[at].item(), rel=1e-3)


def test_training_changes_the_student_and_never_the_teacher():
    model = build(hint=dict(type='Hint', weight=1.0))
    step(model)
    before = copy.deepcopy(model.teacher.detector.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for _ in range(2):
        logs = step(model)
        assert logs['loss_gradient'] > 0
        optimizer.step()
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.detector.state_dict().items())


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    model = build(teacher=1 / 32)
    step(model)
    model.student.load_state_dict(model.teacher.detector.state_dict())
    assert step(model)['gradient_raw'].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize('objects', [(0, 0), (0, 2), (1,)])
def test_images_without_objects_cost_nothing(objects):
    model = build()
    logs = step(model, objects)
    assert (logs['gradient_raw'] > 0) == any(objects)
    assert all(p.grad.isfinite().all() for p in model.student.parameters() if p.grad is not None)
