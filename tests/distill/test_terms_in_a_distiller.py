"""Terms at work: tiny detectors, real steps."""
import copy

import pytest
import torch
from mmengine.registry import DefaultScope

import hgd_det.registered  # noqa: F401
from hgd_det.distill.schedule import Progress
from hgd_det.testing import make_batch, tiny_ssd

from mmdet.registry import MODELS  # isort: skip

TERMS = dict(ld=dict(type='LD'), mask=dict(type='MaskGuided'),
             mimic=dict(type='Mimic', weight=1.0, max_boxes=8),  # untrained teachers see hundreds
             fine=dict(type='FineGrained', warmup=0), hint=dict(type='Hint'), soft=dict(type='SoftLoss'),
             bounded=dict(type='BoundedRegression'), nst=dict(type='NST'),
             attention=dict(type='AttentionTransfer', mode='sum'), fsp=dict(type='FSP'),
             kd=dict(type='LogitKD'), logits=dict(type='LogitL2', weight=1.0),
             relational=dict(type='Relational'))
OF_OBJECTS = {'ld', 'fine', 'soft', 'bounded', 'kd', 'logits', 'relational'}     # without: nothing to say
ALONE_FIRST = dict(mask=.3, fsp=.25)     # imitation without detection: this part of the training
STEPS = 20
SAME_IS_DONE = ['ld', 'nst', 'attention', 'fsp', 'kd', 'logits', 'relational']


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def detector(name, width):
    config = tiny_ssd(width=width, with_bn=False)
    if name == 'ld':
        config['bbox_head'].update(type='DistributionSSDHead', n=5)
    return config


def build(name, teacher_width=1 / 16):
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='Distiller', student=detector(name, 1 / 32), input_size=96,
        teacher=dict(model=dict(model=detector(name, teacher_width)), checkpoint='untrained'),
        terms={name: TERMS[name]}))
    model.init_weights()
    return model.train()


def step(model, iteration=0, objects=None, seed=0):
    model.progress = Progress(iteration, STEPS)
    data = make_batch(2 if objects is None else len(objects), seed=seed, objects=objects)
    total, logs = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
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
    assert not model.teacher.detector.training
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    assert all(torch.equal(v, teacher[k]) for k, v in model.teacher.detector.state_dict().items())
    assert not all(torch.equal(v, student[k]) for k, v in model.student.state_dict().items())


@pytest.mark.parametrize('name', TERMS)
def test_what_is_left_without_the_training_parts_is_the_plain_student(name):
    model, plain = build(name), MODELS.build(detector(name, 1 / 32))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith('distill.')}
    plain.load_state_dict(state, strict=True)
    assert list(state) == list(plain.state_dict())


@pytest.mark.parametrize('name', TERMS)
@pytest.mark.parametrize('objects', [[0, 0], [0, 3], [1]], ids=['none', 'some', 'one image'])
def test_batches_with_few_objects_or_none_train_on(name, objects):
    model = build(name)
    logs = step(model, objects=objects)
    assert torch.isfinite(torch.tensor(list(logs.values()))).all()
    assert logs[f'{name}_raw'] > 0 or name in OF_OBJECTS
    gradients = [p.grad for p in [*model.distill.parameters(), *model.student.backbone.parameters()]]
    assert all(g is not None and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize('name', SAME_IS_DONE)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(name):
    model = build(name, teacher_width=1 / 32)
    assert step(model)[f'{name}_raw'] > .01
    model.student.load_state_dict(model.teacher.detector.state_dict())
    assert step(model)[f'{name}_raw'] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize('name', ALONE_FIRST)
def test_what_first_imitates_alone_is_then_plain_training(name):
    model, end = build(name), round(ALONE_FIRST[name] * STEPS)
    logs = step(model, iteration=end - 1)
    assert logs['loss_cls'] == logs['loss_bbox'] == 0 < logs[f'loss_{name}']
    assert not any(p.grad.any() for p in model.student.bbox_head.parameters())
    assert all(p.grad.any() for p in model.student.backbone.features[0].parameters())

    logs = step(model, iteration=end)
    assert logs[f'loss_{name}'] == 0 and not any(key.startswith(f'{name}_') for key in logs)
    grads = [p.grad.clone() for p in model.student.parameters()]
    plain = MODELS.build(detector(name, 1 / 32)).train()
    plain.load_state_dict(model.student.state_dict())
    total, alone = plain.parse_losses(plain(**plain.data_preprocessor(make_batch(), True), mode='loss'))
    total.backward()
    assert all(alone[key].item() == logs[key] for key in ('loss_cls', 'loss_bbox'))
    assert all(torch.equal(mine, p.grad) for mine, p in zip(grads, plain.parameters(), strict=True))
