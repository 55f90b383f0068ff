"""Laws over every term there is, at work in a distiller: tiny detectors, real steps."""
import copy

import pytest
import torch
from mmengine.config import ConfigDict

import hgd_det.registered  # noqa: F401
from hgd_det.distill.registry import TERMS
from hgd_det.distill.schedule import Progress
from hgd_det.errors import UserError
from hgd_det.testing import every_term, make_batch, make_distiller, tiny_ssd, train_step

from mmdet.registry import MODELS  # isort: skip

NAMES = sorted(every_term())


def kind(name):
    return TERMS.get(every_term()[name]['type'])


def moves_targets(name):
    return kind(name).retarget is not None      # and has no loss of its own


def step(model, objects=None, mixed=None):
    """The log of one batch; the gradients of all of it stay."""
    data = make_batch(2 if objects is None else len(objects), objects=objects)
    with torch.autocast('cpu', dtype=mixed, enabled=mixed is not None):
        total, log = train_step(model, data)
    total.backward()
    return log


@pytest.mark.parametrize('name', NAMES)
def test_training_changes_the_student_and_never_the_teacher(everything, name):
    model = everything.only(name)
    own = copy.deepcopy(model.state_dict())
    teacher, student = (copy.deepcopy(x.state_dict()) for x in (model.teacher.detector, model.student))
    try:
        log = step(model)
        torch.optim.SGD(model.parameters(), lr=1e-4).step()
        assert torch.isfinite(torch.tensor(list(log.values()))).all()
        assert moves_targets(name) or log[f'{name}_raw'] > 0
        assert not model.teacher.detector.training
        assert all(p.grad is None for p in model.teacher.detector.parameters())
        assert all(torch.equal(v, teacher[k]) for k, v in model.teacher.detector.state_dict().items())
        assert not all(torch.equal(v, student[k]) for k, v in model.student.state_dict().items())
    finally:
        model.load_state_dict(own)


def test_what_is_left_without_the_training_parts_is_the_plain_student(everything):
    model, plain = everything.only(*NAMES), MODELS.build(ConfigDict(everything.student_config))
    state = {k: v for k, v in model.state_dict().items() if not k.startswith('distill.')}
    plain.load_state_dict(state, strict=True)
    assert list(state) == list(plain.state_dict())


# Where no object is, these have nothing to say: they look at objects, at anchors of objects, or at a
# detection loss, which mines no negatives there. Relations need three objects.
OF_OBJECTS = {'BeYourOwnTeacher', 'BoundedRegression', 'DML', 'FineGrained', 'GradientAttention', 'HGD',
              'LD', 'LogitKD', 'LogitL2', 'Mimic', 'NetAug', 'ONE', 'Relational', 'SoftLoss'}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('objects', [[0, 0], [0, 3], [1]], ids=['none', 'some', 'one image'])
def test_batches_with_few_objects_or_none_train_on(everything, name, objects):
    model = everything.only(name)
    log = step(model, objects)
    assert torch.isfinite(torch.tensor(list(log.values()))).all()
    silent = moves_targets(name) or name in OF_OBJECTS and not any(objects) \
        or name == 'Relational' and sum(objects) < 3
    assert silent or log[f'{name}_raw'] > 0
    learning = [p for p in (*model.distill.parameters(), *model.student.parameters()) if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learning)


NEVER_DONE = {
    'ActivationBoundary': 'the margin is not reached by being equal',
    'BoundedRegression': 'who is ahead of whom, equals leave to rounding',
    'BeYourOwnTeacher': 'no teacher: branches of its own', 'DML': 'no teacher: a peer',
    'NetAug': 'no teacher: a wider student', 'ONE': 'no teacher: an ensemble',
    'FactorTransfer': 'a translator stands before the student', 'FineGrained': 'a convolution does',
    'LAD': 'it has no loss of its own', 'SoftLoss': "a cross-entropy: the teacher's entropy is left"}


def test_a_student_that_is_its_teacher_has_nothing_to_learn(equals):
    names = [name for name in NAMES if name not in NEVER_DONE]
    model = equals.only(*names)
    before = step(model)
    assert not [name for name in names if not before[f'{name}_raw'] > 0]
    model.student.load_state_dict(model.teacher.detector.state_dict())
    after = step(model)
    left = {name: after[f'{name}_raw'] for name in names if after[f'{name}_raw'] > 1e-5}
    assert not left


def gradient_and_value(model, name, mixed):
    model.zero_grad(set_to_none=True)
    data = model.data_preprocessor(make_batch(), True)
    with torch.autocast('cpu', dtype=mixed, enabled=mixed is not None):
        losses = model.loss(data['inputs'], data['data_samples'])
    value = sum(v for k, v in losses.items() if k == f'loss_{name}' or k.startswith(f'loss_{name}_'))
    value.backward()
    return value.item(), torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten().float()
                                    for p in model.student.parameters()])


# Terms are computed in float32 from maps that were rounded; the gradient of the student's own loss keeps
# a cosine of .994. Where a term looks at directions, signs or shares, the rounding turns it more.
STEEP = {'ActivationBoundary': 'the signs of neurons',
         'AttentionTransfer': "each cell's share of the squares",
         'BeYourOwnTeacher': 'BatchNorm and ReLU of its branches, on maps of a few cells',
         'GradientAttention': "a gradient of the gradient: to be trained without mixed precision, it says",
         'HGD': 'directions in maps of four channels', 'NST': 'directions of channels over a few cells',
         'Relational': 'angles between objects'}


@pytest.mark.parametrize('name', [name for name in NAMES if not moves_targets(name)])
def test_under_mixed_precision_value_and_gradient_stay(everything, monkeypatch, name):
    model = everything.only(name)
    if getattr(everything.terms[name], 'region', None) == 'hard':   # of rounded scores others are the hardest
        monkeypatch.setattr(everything.terms[name], 'region', 'all')
    whole, direction = gradient_and_value(model, name, None)
    half, other = gradient_and_value(model, name, torch.bfloat16)
    assert half == pytest.approx(whole, rel=.04 if name == 'AttentionTransfer' else .02)
    assert torch.cosine_similarity(direction, other, dim=0) > (.85 if name in STEEP else .99)


# A term that looks into its needs goes on by other means without this one.
SPARED = {('FineGrained', 'anchors')}     # the cells of the objects instead


@pytest.mark.parametrize(('name', 'need'), [
    (name, need) for name in NAMES for need in sorted(kind(name).needs) if (name, need) not in SPARED])
def test_no_need_is_declared_in_vain(everything, monkeypatch, name, need):
    """Alone a term gets what it declares and nothing else (the laws above): with less it is refused."""
    model, term = everything.only(name), everything.terms[name]
    assert need in term.needs
    monkeypatch.setattr(term, 'needs', term.needs - {need})
    said = rf"term '{name}' \({name}\) reads \w+, which it does not declare"
    with pytest.raises(UserError, match=said):
        step(model)


# Imitation first, detection later ----------------------------------------------------------------

@pytest.mark.parametrize('name', [name for name in NAMES if kind(name).schedule.get('detection') == 0])
def test_what_first_imitates_alone_is_then_plain_training(name):
    stop = kind(name).schedule['stop']
    config = tiny_ssd(1 / 32, with_bn=False)
    model = make_distiller({name: dict(type=name)}, config,
                           dict(model=tiny_ssd(1 / 16, with_bn=False), checkpoint='untrained'))
    end = round(stop * 100)
    model.progress = Progress(end - 1, 100)
    log = step(model)
    assert log['loss_cls'] == log['loss_bbox'] == 0 < log[f'{name}_raw']
    assert all(p.grad is None or not p.grad.any() for p in model.student.bbox_head.parameters())
    assert all(p.grad.any() for p in model.student.backbone.features[0].parameters())

    model.zero_grad(set_to_none=True)
    model.progress = Progress(end, 100)
    log = step(model)
    assert {key: value for key, value in log.items() if name in key} == {
        f'loss_{name}': 0, f'{name}_raw': 0, f'{name}_weight': 0}
    plain = MODELS.build(ConfigDict(config)).train()
    plain.load_state_dict(model.student.state_dict())
    alone = step(plain)
    assert all(alone[key] == log[key] for key in ('loss_cls', 'loss_bbox'))
    assert all(torch.equal(mine.grad, p.grad)
               for mine, p in zip(model.student.parameters(), plain.parameters(), strict=True))
