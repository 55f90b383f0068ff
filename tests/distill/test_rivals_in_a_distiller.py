"""LD, MaskGuided and Mimic at work: tiny detectors, real steps."""
import copy

import pytest
import torch
from mmengine.registry import DefaultScope

import hgd_det.registered  # noqa: F401
from hgd_det.distill.schedule import Progress
from hgd_det.testing import make_batch, tiny_ssd

from mmdet.registry import MODELS  # isort: skip

TERMS = dict(ld=dict(type='LD'), mask=dict(type='MaskGuided'),
             mimic=dict(type='Mimic', weight=1.0, max_boxes=8))  # untrained teachers see hundreds


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def detector(name, width):
    config = tiny_ssd(width=width, with_bn=False)
    if name == 'ld':
        config['bbox_head'].update(type='DistributionSSDHead', n=5)
    return config


def build(name, **options):
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='Distiller', student=detector(name, 1 / 32), input_size=96,
        teacher=dict(config=dict(model=detector(name, 1 / 16)), checkpoint='untrained'),
        terms={name: dict(TERMS[name], **options)}))
    model.init_weights()
    return model.train()


def step(model, iteration=0, objects=None, seed=0):
    model.progress = Progress(iteration, 10)
    batch = model.data_preprocessor(make_batch(seed=seed, objects=objects), True)
    losses = model(**batch, mode='loss')
    total, logs = model.parse_losses(losses)
    model.zero_grad()
    total.backward()
    return {key: value.item() for key, value in logs.items()}


@pytest.mark.parametrize('name', TERMS)
def test_training_changes_the_student_and_never_the_teacher(name):
    model = build(name)
    step(model)
    teacher = model.teacher.detector
    before = copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    for seed in range(3):
        logs = step(model, seed=seed)
        assert torch.isfinite(torch.tensor(list(logs.values()))).all() and logs[f'loss_{name}'] > 0
        optimizer.step()
    assert not teacher.training and all(p.grad is None for p in teacher.parameters())
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, before[key]), key


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
    batch = make_batch(batch=len(objects), objects=objects)
    model.progress = Progress(0, 10)
    total, logs = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
    total.backward()
    assert torch.isfinite(total)
    for key, parameter in model.distill.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), key


def test_a_student_with_its_teachers_weights_learns_nothing_from_ld():
    model = build('ld')
    teacher = detector('ld', 1 / 32)
    same = MODELS.build(dict(
        type='Distiller', student=teacher, input_size=96, terms=dict(ld=TERMS['ld']),
        teacher=dict(config=dict(model=teacher), checkpoint='untrained')))
    same.init_weights()
    step(same)
    same.student.load_state_dict(same.teacher.detector.state_dict())
    assert step(same)['loss_ld'] == pytest.approx(0, abs=1e-5) and step(model)['loss_ld'] > .01


def test_mask_guided_first_imitates_alone_and_then_is_plain_training():
    model = build('mask')
    logs = step(model, iteration=2)
    assert logs['loss_cls'] == logs['loss_bbox'] == 0 < logs['loss_mask']
    assert not any(p.grad.any() for p in model.student.bbox_head.parameters())
    assert all(p.grad.any() for p in model.student.backbone.features[0].parameters())

    logs = step(model, iteration=3)     # 30 % of 10
    assert logs['loss_mask'] == 0 and not any(key.startswith('mask_') for key in logs)
    grads = [p.grad.clone() for p in model.student.parameters()]
    plain = MODELS.build(detector('mask', 1 / 32)).train()
    plain.load_state_dict(model.student.state_dict())
    batch = plain.data_preprocessor(make_batch(), True)
    total, alone = plain.parse_losses(plain(**batch, mode='loss'))
    total.backward()
    assert all(alone[key].item() == logs[key] for key in ('loss_cls', 'loss_bbox'))
    for mine, parameter in zip(grads, plain.parameters(), strict=True):
        assert torch.equal(mine, parameter.grad)
