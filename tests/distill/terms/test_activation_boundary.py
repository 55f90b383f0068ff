"""ActivationBoundary: on which side of 0 a neuron is."""
import copy

import pytest
import torch
from torch import nn

import hgd_det.registered  # noqa: F401
from hgd_det.distill.schedule import Progress, Schedule
from hgd_det.distill.terms.activation_boundary import ActivationBoundary, boundary_loss
from hgd_det.errors import UserError
from hgd_det.testing import make_batch, make_lesson, make_spec, tiny_ssd

from mmdet.registry import MODELS  # isort: skip

SIZES = (4, 2, 1)


def taps(channels, sizes=SIZES):
    return {f'neck[{i}]': (channels, size) for i, size in enumerate(sizes)}


def set_up(student=3, teacher=5, sizes=SIZES, **options):
    torch.manual_seed(0)
    term = ActivationBoundary(**options)
    term.setup(make_spec(taps(student, sizes), taps(teacher, sizes), input_size=32))
    return term.train()


def maps(channels, sizes=SIZES, batch=2, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return {f'neck[{i}]': torch.randn(batch, channels, s, s, generator=g).to(dtype).requires_grad_()
            for i, s in enumerate(sizes)}


def one_map(*values):
    """A 1x1 map of one image, a channel per value."""
    return {'neck[0]': torch.tensor(values).view(1, -1, 1, 1)}


def deviation(values):
    mean = sum(values) / len(values)
    return mean, (sum((v - mean) ** 2 for v in values) / len(values) + 1e-5) ** .5


def slow(term, student, teacher, margin):
    """The connector and the two branches of the loss, neuron by neuron."""
    total, summed, wrong = 0., 0., 0
    for i, connector in enumerate(term.adapters.values()):
        s, t = student[f'neck[{i}]'].detach(), teacher[f'neck[{i}]'].detach()
        weight, bias = connector.conv.weight[:, :, 0, 0].detach(), connector.conv.bias.detach()
        batch, channels, height, width = t.shape
        cells = [(b, y, x) for b in range(batch) for y in range(height) for x in range(width)]
        parts = []
        for c in range(channels):
            raw = [(weight[c] @ s[b, :, y, x] + bias[c]).item() for b, y, x in cells]
            mean, spread = deviation(raw)
            for value, (b, y, x) in zip(raw, cells, strict=True):
                value, target = (value - mean) / spread, t[b, c, y, x].item()
                if target <= 0 and value > -margin:
                    parts.append((value + margin) ** 2)
                elif target > 0 and value <= margin:
                    parts.append((value - margin) ** 2)
                wrong += (value > 0) != (target > 0)
        total += sum(parts) / (batch * channels * height * width)
        summed += sum(parts) / batch * .5 ** (len(term.adapters) - 1 - i)
    return total, summed, wrong / batch


def test_the_example_of_four_neurons():
    s, t = torch.tensor([.5, -2, .5, 2]), torch.tensor([1., 1, -1, -1])
    assert boundary_loss(s, t > 0, 1.).tolist() == [.25, 9, 2.25, 9]
    lesson = make_lesson(one_map(*s.tolist()), one_map(*t.tolist()))
    by_sum = set_up(4, 4, (1,), adapter='none', reduction='sum')(lesson)
    assert by_sum['loss'].item() == 20.5 and by_sum['differ'].item() == 3
    by_mean = set_up(4, 4, (1,), adapter='none')(lesson)
    assert by_mean['loss'].item() == 20.5 / 4 and by_mean['differ_s1'].item() == 3 / 4


def test_only_the_teachers_sign_counts_so_its_relu_changes_nothing():
    term, student, teacher = set_up(), maps(3), maps(5, seed=1)
    expected = term(make_lesson(student, teacher))
    for change in (lambda t: 7 * t, lambda t: t.relu(), torch.sign):
        out = term(make_lesson(student, {k: change(v) for k, v in teacher.items()}))
        assert {k: v.item() for k, v in out.items()} == {k: v.item() for k, v in expected.items()}


def test_neurons_that_agree_beyond_the_margin_are_left_alone():
    term = set_up(2, 2, (1,), adapter='none', margin=.5)
    student = one_map(.5001, -.5001)
    student['neck[0]'].requires_grad_()
    out = term(make_lesson(student, one_map(3., -1e-3)))
    out['loss'].backward()
    assert out['loss'].item() == out['differ'].item() == 0 and not student['neck[0]'].grad.any()


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_it_equals_a_loop_over_neurons(reduction):
    term = set_up(margin=.7, reduction=reduction)
    student, teacher = maps(3), maps(5, seed=1)
    out = term(make_lesson(student, teacher))
    mean, summed, wrong = slow(term, student, teacher, .7)
    assert out['loss'].item() == pytest.approx(mean if reduction == 'mean' else summed, rel=1e-4)
    assert out['differ'].item() == wrong > 0
    assert sum(v.item() for k, v in out.items() if k.startswith('d_')) == pytest.approx(out['loss'].item())


def test_the_authors_halving_is_one_weight_on_the_mean_where_channels_double_as_sides_halve():
    spec = {f'neck[{i}]': (c, s) for i, (c, s) in enumerate(((2, 8), (4, 4), (8, 2)))}
    values = []
    for reduction in ('mean', 'sum'):
        term = ActivationBoundary(adapter='none', reduction=reduction)
        term.setup(make_spec(spec, spec))
        g = torch.Generator().manual_seed(0)
        sides = [{k: torch.randn(2, c, s, s, generator=g) for k, (c, s) in spec.items()} for _ in range(2)]
        values.append(term(make_lesson(*sides))['loss'].item())
    assert values[1] == pytest.approx(8 * 2 * 2 * values[0])


def test_it_equals_torchdistills():
    theirs = pytest.importorskip('torchdistill.losses.mid_level').AltActTransferLoss(
        {str(i): dict(weight=.5 ** (2 - i), student=dict(io='output', path=f'neck[{i}]'),
                      teacher=dict(io='output', path=f'neck[{i}]')) for i in range(3)}, 1., 'mean')
    student, teacher = maps(4), maps(4, seed=1)
    expected = theirs(*({k: dict(output=v) for k, v in side.items()} for side in (student, teacher)))
    ours = set_up(4, 4, adapter='none', reduction='sum')(make_lesson(student, teacher))['loss']
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(x, list(student.values())) for x in (ours, expected)]
    assert all(torch.allclose(*both) for both in zip(*gradients, strict=True))


def test_the_gradient_is_right_and_reaches_student_and_connectors_only():
    term = set_up(sizes=(2, 1)).double()
    student = maps(3, (2, 1), batch=3, dtype=torch.float64)
    teacher = maps(5, (2, 1), batch=3, seed=1, dtype=torch.float64)
    term(make_lesson(student, teacher))['loss'].backward()
    assert all(v.grad.abs().sum() > 0 for v in student.values())
    assert all(p.grad.isfinite().all() for p in term.parameters())
    assert all(c.conv.weight.grad.any() and c.norm.weight.grad.any() for c in term.adapters.values())
    assert all(v.grad is None for v in teacher.values())
    assert torch.autograd.gradcheck(lambda *s: term(make_lesson(
        dict(zip(student, s, strict=True)), teacher))['loss'], tuple(student.values()))


def test_the_order_of_the_images_does_not_matter_and_without_batchnorm_a_batch_is_their_mean():
    student, teacher = maps(5), maps(5, seed=1)

    def value(term, index):
        sides = ({k: v[index] for k, v in side.items()} for side in (student, teacher))
        return term(make_lesson(*sides))['loss']
    assert torch.allclose(value(set_up(5), [0, 1]), value(set_up(5), [1, 0]))
    term = set_up(5, adapter='none')
    assert torch.allclose(value(term, [0, 1]), (value(term, [0]) + value(term, [1])) / 2)


def test_one_image_of_one_cell_has_no_deviation_and_still_teaches():
    term, student = set_up(sizes=(1,)), maps(3, (1,), batch=1)
    out = term(make_lesson(student, maps(5, (1,), batch=1, seed=1)))
    out['loss'].backward()
    assert out['loss'] > 0 and student['neck[0]'].grad.isfinite().all() and student['neck[0]'].grad.any()
    assert all(p.grad.isfinite().all() for p in term.parameters())


@pytest.mark.parametrize('value', [0., 1e4], ids=['dead', 'saturated'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_constant_maps_in_any_precision_stay_finite(dtype, value):
    for adapter in ('always', 'none'):
        term = set_up(5, adapter=adapter)
        student = {k: torch.full_like(v, value, dtype=dtype).requires_grad_() for k, v in maps(5).items()}
        teacher = {k: torch.full_like(v, -value, dtype=dtype) for k, v in maps(5).items()}
        loss = term(make_lesson(student, teacher))['loss']
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite()
        assert all(v.grad.isfinite().all() for v in student.values())


def test_a_teacher_of_larger_maps_has_the_student_resized():
    out = set_up()(make_lesson(maps(3), maps(5, (8, 4, 2))))
    assert out['loss'].isfinite() and out['loss'] > 0


def test_the_adapter_is_a_choice():
    assert [r['adapter'] for r in set_up().describe()] == ['1x1 conv + BN 3->5'] * 3
    assert [r['adapter'] for r in set_up(5, adapter='mismatch').describe()] == ['none'] * 3
    assert [r['size'] for r in set_up(sizes=(4, 2, 1), select='all').describe()] == [[4, 4], [2, 2], [1, 1]]


def test_impossible_options_are_refused():
    for options, word in ((dict(margin=0), 'margin'), (dict(reduction='max'), 'reduction'),
                          (dict(adapter='sometimes'), 'adapter')):
        with pytest.raises(UserError, match=word):
            ActivationBoundary(**options)
    with pytest.raises(UserError, match='needs equal channels'):
        set_up(adapter='none')


# -- in a distiller --------------------------------------------------------------------------------
def distiller(with_bn=False, **options):
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='Distiller', student=tiny_ssd(1 / 32, with_bn=with_bn), input_size=96,
        teacher=dict(model=dict(model=tiny_ssd(1 / 16, with_bn=with_bn)), checkpoint='untrained'),
        terms=dict(boundary=dict(type='ActivationBoundary', **options))))
    model.init_weights()
    return model.train()


def step(model, iteration, total=10):
    model.progress = Progress(iteration, total)
    loss, logs = model.parse_losses(model(**model.data_preprocessor(make_batch(), True), mode='loss'))
    model.zero_grad()
    loss.backward()
    return {k: v.item() for k, v in logs.items()}


@pytest.mark.parametrize('with_bn', [False, True])
def test_an_ssd_is_tapped_before_its_activations_and_before_its_l2norm(with_bn):
    model = distiller(with_bn)
    taps = model.distill['boundary'].student_taps
    assert all(tap.endswith('@pre') for tap in taps) and len(taps) == 4
    assert isinstance(model.student.get_submodule(taps[0].removesuffix('@pre')),
                      nn.BatchNorm2d if with_bn else nn.Conv2d)
    seen = []
    model.distill['boundary'].register_forward_pre_hook(lambda term, args: seen.append(args[0]))
    step(model, 0)
    assert all((seen[0].student.maps[tap] < 0).any() for tap in taps)


def test_boundaries_are_learned_first_and_alone_then_training_is_plain():
    model = distiller()
    logs = step(model, 1)
    assert logs['loss_cls'] == logs['loss_bbox'] == 0 < logs['loss_boundary']
    assert 0 < logs['boundary_differ_s12'] < 1
    assert not any(p.grad.any() for p in model.student.bbox_head.parameters())
    assert all(p.grad.any() for p in model.student.backbone.features[0].parameters())
    logs = step(model, 2)     # 20 % of 10
    assert logs['loss_boundary'] == 0 < logs['loss_cls']
    schedule = Schedule(**ActivationBoundary.schedule)
    assert [schedule.factor(Progress(i, 1000)) for i in (0, 199, 200)] == [1, 1, 0]


def test_the_teacher_and_the_students_keys_stay_as_they_were():
    model = distiller(with_bn=True)
    step(model, 0)
    before = copy.deepcopy(model.teacher.detector.state_dict())
    torch.optim.SGD(model.parameters(), 1e-3).step()
    step(model, 1)
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.detector.state_dict().items())
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    assert [k for k in model.state_dict() if not k.startswith('distill.')] == \
        list(MODELS.build(tiny_ssd(1 / 32)).state_dict())
