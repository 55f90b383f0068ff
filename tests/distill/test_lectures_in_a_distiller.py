"""The lectures' terms at work: tiny detectors, real steps."""
import copy

import pytest
import torch
from mmdet.registry import MODELS

import hgd_det.registered  # noqa: F401
from hgd_det.distill.schedule import Progress
from hgd_det.testing import make_batch, tiny_ssd

TERMS = dict(nst=dict(type='NST'), attention=dict(type='AttentionTransfer', mode='sum'),
             fsp=dict(type='FSP'), kd=dict(type='LogitKD'), logits=dict(type='LogitL2', weight=1.0),
             relational=dict(type='Relational'))
OBJECTS = {'kd', 'logits', 'relational'}     # what compare anchors or objects: none, nothing to say


def build(name, teacher_width=1 / 16, **options):
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='Distiller', student=tiny_ssd(1 / 32, with_bn=False), input_size=96,
        teacher=dict(config=dict(model=tiny_ssd(teacher_width, with_bn=False)), checkpoint='untrained'),
        terms={name: dict(TERMS[name], **options)}))
    model.init_weights()
    return model.train()


def step(model, iteration=0, objects=None, seed=0):
    model.progress = Progress(iteration, 12)
    batch = 2 if objects is None else len(objects)
    data = model.data_preprocessor(make_batch(batch, seed=seed, objects=objects), True)
    total, logs = model.parse_losses(model(**data, mode='loss'))
    model.zero_grad()
    total.backward()
    return {key: value.item() for key, value in logs.items()}


@pytest.mark.parametrize('name', TERMS)
def test_training_changes_the_student_and_never_the_teacher(name):
    model = build(name)
    step(model)
    teacher, student = (copy.deepcopy(x.state_dict()) for x in (model.teacher.detector, model.student))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for seed in range(2):
        logs = step(model, seed=seed)
        assert torch.isfinite(torch.tensor(list(logs.values()))).all() and logs[f'loss_{name}'] > 0
        optimizer.step()
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    assert all(torch.equal(v, teacher[k]) for k, v in model.teacher.detector.state_dict().items())
    assert not all(torch.equal(v, student[k]) for k, v in model.student.state_dict().items())


@pytest.mark.parametrize('name', TERMS)
def test_what_is_left_without_the_training_parts_is_the_plain_student(name):
    model, plain = build(name), MODELS.build(tiny_ssd(1 / 32, with_bn=False))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith('distill.')}
    plain.load_state_dict(state, strict=True)
    assert list(state) == list(plain.state_dict())


@pytest.mark.parametrize('name', TERMS)
@pytest.mark.parametrize('objects', [[0, 0], [1]], ids=['none', 'one image'])
def test_batches_with_few_objects_or_none_train_on(name, objects):
    model = build(name)
    logs = step(model, objects=objects)
    assert torch.isfinite(torch.tensor(list(logs.values()))).all()
    assert logs[f'{name}_raw'] > 0 or name in OBJECTS
    gradients = [p.grad for p in [*model.distill.parameters(), *model.student.backbone.parameters()]]
    assert all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize('name', TERMS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name):
    model = build(name, teacher_width=1 / 32)
    step(model)
    model.student.load_state_dict(model.teacher.detector.state_dict())
    assert step(model)[f'{name}_raw'] == pytest.approx(0, abs=1e-5)


def test_fsp_first_imitates_alone_and_then_is_plain_training():
    model = build('fsp')
    logs = step(model, iteration=2)
    assert logs['loss_cls'] == logs['loss_bbox'] == 0 < logs['loss_fsp']
    assert not any(p.grad.any() for p in model.student.bbox_head.parameters())
    assert all(p.grad.any() for p in model.student.backbone.features[0].parameters())
    logs = step(model, iteration=3)     # a quarter of 12
    assert logs['loss_fsp'] == 0 < logs['loss_cls']
