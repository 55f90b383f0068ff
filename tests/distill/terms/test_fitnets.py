"""FitNets: the lower half first."""
import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

import hgd_det.registered  # noqa: F401
from hgd_det.distill.registry import split_entry
from hgd_det.distill.schedule import Progress, Schedule
from hgd_det.distill.terms.fitnets import FitNets
from hgd_det.errors import UserError
from hgd_det.models.vgg import SlimSSDVGG
from hgd_det.testing import make_batch, make_lesson, make_spec, tiny_ssd

from mmdet.registry import MODELS  # isort: skip

ROOT = Path(__file__).parents[3]
SIZES = (38, 19, 10, 5, 3, 1)


def taps(channels, sizes=SIZES):
    return {f'neck[{i}]': (channels, size) for i, size in enumerate(sizes)}


def set_up(student=3, teacher=4, sizes=SIZES, **options):
    torch.manual_seed(0)
    term = FitNets(**options)
    term.setup(make_spec(taps(student, sizes), taps(teacher, sizes)))
    return term


def one_map(channels, size=3, batch=2, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return {'neck[0]': torch.randn(batch, channels, size, size, generator=g).to(dtype).requires_grad_()}


def test_ones_against_zeros_cost_a_half_whatever_the_shape():
    for channels, size in ((4, 38), (7, 1)):
        term = set_up(channels, channels, (size,), adapter='none')
        ones = {'neck[0]': torch.ones(2, channels, size, size)}
        assert term(make_lesson(ones, {k: 0 * v for k, v in ones.items()}))['loss'].item() == .5


def test_it_equals_a_loop_over_cells():
    term = set_up(sizes=(3,))
    student, teacher = one_map(3), one_map(4, seed=1)
    matrix, bias = term.adapters['s3'].weight[:, :, 0, 0], term.adapters['s3'].bias
    total = 0.
    for b in range(2):
        for y in range(3):
            for x in range(3):
                error = matrix @ student['neck[0]'][b, :, y, x] + bias - teacher['neck[0]'][b, :, y, x]
                total += sum(e.item() ** 2 for e in error) / 2
    assert term(make_lesson(student, teacher))['loss'].item() == pytest.approx(total / (2 * 4 * 9), rel=1e-5)


def test_the_hint_is_the_largest_map_that_a_head_reads_and_the_regressor_a_matrix_of_its_channels():
    term = set_up(256, 512)
    assert term.student_taps == term.teacher_taps == ['neck[0]']
    assert term.adapters['s38'].weight.shape == (512, 256, 1, 1)
    assert term.describe() == [dict(size=[38, 38], student='neck[0]', teacher='neck[0]', channels=[256, 512],
                                    name='s38', adapter='1x1 conv 256->512')]


def test_another_size_or_pair_can_be_chosen():
    assert set_up(size=10).student_taps == ['neck[2]']
    spec = make_spec({'early': (3, 76), **taps(3)}, {'early': (6, 76), **taps(4)}, sources=list(taps(3)))
    for options in (dict(size=76, select='source'), dict(taps=[dict(student='early', teacher='early')])):
        term = FitNets(**options)
        term.setup(spec)
        assert term.describe()[0]['channels'] == [3, 6]


def test_equal_maps_through_an_identity_regressor_cost_nothing():
    term, same = set_up(4, 4, (3,)), one_map(4)
    nn.init.dirac_(term.adapters['s3'].weight)
    assert term(make_lesson(same, same))['loss'].item() == 0


def test_the_gradient_is_right_and_reaches_student_and_regressor_only():
    term = set_up(sizes=(3,)).double()
    student, teacher = one_map(3, dtype=torch.float64), one_map(4, seed=1, dtype=torch.float64)
    term(make_lesson(student, teacher))['loss'].backward()
    assert student['neck[0]'].grad.any() and all(p.grad.any() for p in term.parameters())
    assert teacher['neck[0]'].grad is None
    assert torch.autograd.gradcheck(
        lambda s: term(make_lesson({'neck[0]': s}, teacher))['loss'], student['neck[0]'])


def test_a_batch_is_the_mean_of_its_images_in_any_order():
    term, student, teacher = set_up(sizes=(3,)), one_map(3), one_map(4, seed=1)

    def value(index):
        return term(make_lesson({k: v[index] for k, v in student.items()},
                                {k: v[index] for k, v in teacher.items()}))['loss']
    assert torch.allclose(value([0, 1]), value([1, 0]))
    assert torch.allclose(value([0, 1]), (value([0]) + value([1])) / 2)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_maps_in_any_precision_stay_finite(dtype):
    term = set_up(sizes=(1,))
    student = {'neck[0]': torch.full((1, 3, 1, 1), 1e4, dtype=dtype, requires_grad=True)}
    loss = term(make_lesson(student, {'neck[0]': torch.full((1, 4, 1, 1), -1e4, dtype=dtype)}))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(p.grad.isfinite().all() for p in term.parameters())


def test_a_teacher_of_larger_maps_has_the_student_resized():
    assert set_up(sizes=(3,))(make_lesson(one_map(3), one_map(4, 6)))['loss'].isfinite()


def test_impossible_options_are_refused():
    with pytest.raises(UserError, match='adapter'):
        FitNets(adapter='sometimes')
    with pytest.raises(UserError, match=r'stages \[7\] do not exist'):
        set_up(size=7)
    with pytest.raises(UserError, match='needs equal channels'):
        set_up(adapter='none')


# -- in a distiller --------------------------------------------------------------------------------
def distiller(with_bn=False, **more):
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='Distiller', student=tiny_ssd(1 / 32, with_bn=with_bn), input_size=96,
        teacher=dict(model=dict(model=tiny_ssd(1 / 16, with_bn=with_bn)), checkpoint='untrained'),
        terms=dict(hint=dict(type='FitNets'), **more)))
    model.init_weights()
    return model.train()


def step(model, iteration, optimizer=None):
    model.progress = Progress(iteration, 10)
    batch = make_batch(seed=iteration)
    loss, logs = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
    model.zero_grad()
    loss.backward()
    if optimizer:
        optimizer.step()
    return {k: v.item() for k, v in logs.items()}


LAST = SlimSSDVGG(width=1 / 32).out_feature_indices[0]


def lower(name):
    """Whether a parameter of the tiny student lies before or at conv4_3's L2Norm."""
    parts = name.split('.')
    return parts[1] == 'l2_norm' if parts[0] == 'neck' else parts[0] == 'backbone' and int(parts[2]) <= LAST


@pytest.mark.parametrize('make', [lambda p: torch.optim.SGD(p, 1e-2, momentum=.9),
                                  lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0)], ids=['sgd', 'adamw'])
def test_stage_one_changes_the_layers_up_to_the_hint_and_no_bit_of_the_others(make):
    model = distiller()
    before = copy.deepcopy(model.student.state_dict())
    optimizer = make(model.parameters())
    for i in range(3):
        logs = step(model, i, optimizer)
        assert logs['loss_cls'] == logs['loss_bbox'] == 0 < logs['loss_hint']
    changed = {k for k, v in model.student.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if lower(k)} and 0 < len(changed) < len(before)


def test_weight_decay_alone_moves_the_later_layers_in_stage_one_as_documented():
    model = distiller()
    before = copy.deepcopy(model.student.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, weight_decay=1e-2)
    for i in range(3):
        step(model, i, optimizer)
    for key, value in model.student.state_dict().items():
        if not lower(key):
            torch.testing.assert_close(value, before[key] * (1 - 1e-4) ** 3)


def test_stage_two_trains_the_whole_detector_and_its_term_begins_where_the_hint_ends():
    model = distiller(kd=dict(type='SoftLoss', mu=1.0, weight=1.0, warmup=0.3))
    logs = step(model, 2)
    assert logs['loss_hint'] > 0 == logs['loss_kd'] == logs['loss_cls']
    logs = step(model, 3)
    assert logs['loss_hint'] == 0 < logs['loss_cls'] and 'kd_raw' in logs
    assert all(p.grad.any() for p in model.student.backbone.parameters())   # fc6 and fc7 too
    assert any(p.grad.any() for p in model.student.bbox_head.parameters())


def test_the_methods_stages_neither_overlap_nor_leave_a_gap():
    terms = Config.fromfile(ROOT / 'configs/methods/fitnets.py').terms
    one, two = Schedule(**FitNets.schedule), Schedule(warmup=terms.kd.warmup)
    assert terms.hint.stop == one.stop
    for total in (7, 500, 62003):
        for i in range(0, total, max(1, total // 50)):
            assert one.factor(Progress(i, total)) + two.factor(Progress(i, total)) == 1


def test_the_methods_soft_scores_weigh_four_at_first_and_one_at_the_end():
    _, second = split_entry('kd', Config.fromfile(ROOT / 'configs/methods/fitnets.py').terms.kd)
    weights = [second.weight * second.factor(Progress(i, 1000)) for i in (299, 300, 650, 1000)]
    assert weights == pytest.approx([0, 4, 2.5, 1])


def test_the_teacher_and_the_students_keys_stay_as_they_were():
    model = distiller(with_bn=True)
    before = copy.deepcopy(model.teacher.detector.state_dict())
    step(model, 0, torch.optim.SGD(model.parameters(), 1e-3))
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.detector.state_dict().items())
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    assert [k for k in model.state_dict() if not k.startswith('distill.')] == \
        list(MODELS.build(tiny_ssd(1 / 32)).state_dict())
