"""FactorTransfer: a paraphraser that learns first and is frozen afterwards."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hgd_det.registered  # noqa: F401
from hgd_det.distill.schedule import Progress
from hgd_det.distill.terms.factor_transfer import FactorTransfer
from hgd_det.errors import UserError
from hgd_det.testing import make_batch, make_lesson, make_spec, tiny_ssd

from mmdet.registry import MODELS  # isort: skip

SIZES = (4, 3, 1)
FIRST, THEN = dict(iteration=9), dict(iteration=10)     # of 100, under pretrain=0.1


def taps(channels, sizes=SIZES):
    return {f'neck[{i}]': (channels, size) for i, size in enumerate(sizes)}


def set_up(student=3, teacher=4, sizes=SIZES, learned=True, **options):
    torch.manual_seed(0)
    term = FactorTransfer(**options)
    term.setup(make_spec(taps(student, sizes), taps(teacher, sizes)))
    if learned:
        term._keep()
    return term


def maps(channels, sizes=SIZES, batch=2, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return {f'neck[{i}]': torch.randn(batch, channels, s, s, generator=g).to(dtype).requires_grad_()
            for i, s in enumerate(sizes)}


def plain(student, teacher):
    """The transfer alone, on one map, between factors that are the maps themselves."""
    term = set_up(*(x.shape[1] for x in (student, teacher)), (student.shape[-1],))
    term.translators[0] = term.frozen[0] = nn.Identity()
    return term(make_lesson({'neck[0]': student}, {'neck[0]': teacher}, **THEN))['loss']


def added(out):
    """What a phase puts into the training loss."""
    value, = (v for k, v in out.items() if 'loss' in k)
    return value


def convolve(x, layers, function):
    for layer in layers:
        if not isinstance(layer, nn.LeakyReLU):
            x = function(x, layer.weight, layer.bias, padding=1)
            x = torch.where(x > 0, x, .1 * x)
    return x


@pytest.mark.parametrize('student, teacher, expected', [((3., 4), (4., 3), .2), ((1., 0), (0., 1), 1.)])
def test_two_factors_have_a_closed_form_distance_whatever_their_length(student, teacher, expected):
    student, teacher = (torch.tensor(x).view(1, 2, 1, 1) for x in (student, teacher))
    for scale in (1., 7., 1e-3):
        assert plain(scale * student, teacher).item() == pytest.approx(expected, rel=1e-5)
        assert plain(student, scale * teacher).item() == pytest.approx(expected, rel=1e-5)


def test_the_transfer_equals_a_loop_over_images_and_numbers():
    term = set_up()
    student, teacher = maps(3), maps(4, seed=1)
    total = 0.
    for i, (translator, encoder) in enumerate(zip(term.translators, term.encoders, strict=True)):
        tap = f'neck[{i + 1}]'
        told = convolve(student[tap], translator, F.conv2d)
        factor = convolve(teacher[tap], encoder, F.conv2d)
        values = []
        for b in range(2):
            s, t = told[b].flatten().tolist(), factor[b].flatten().tolist()
            lengths = [sum(v * v for v in x) ** .5 for x in (s, t)]
            values += [abs(a / lengths[0] - b / lengths[1]) for a, b in zip(s, t, strict=True)]
        total += sum(values) / len(values)
    out = term(make_lesson(student, teacher, **THEN))
    assert out['loss'].item() == pytest.approx(total, rel=1e-4)
    assert (out['d_s3'] + out['d_s1']).item() == pytest.approx(total, rel=1e-4)


def test_the_first_part_rebuilds_the_teachers_map_in_absolute_value():
    term, teacher = set_up(reconstruction=2.), maps(4, seed=1)
    errors = []
    for i, nets in enumerate(zip(term.encoders, term.decoders, strict=True)):
        z = teacher[f'neck[{i + 1}]']
        back = convolve(convolve(z, nets[0], F.conv2d), nets[1], F.conv_transpose2d)
        each = [abs(a - b) for a, b in zip(back.flatten().tolist(), z.flatten().tolist(), strict=True)]
        errors.append(sum(each) / len(each))
    out = term(make_lesson(maps(3), teacher, **FIRST))
    assert out['aside_loss'].item() == pytest.approx(2 * sum(errors), rel=1e-4)
    assert 'loss' not in out
    size = teacher['neck[1]'].abs().mean().item()
    assert out['unexplained_s3'].item() == pytest.approx(errors[0] / size, rel=1e-4)


def test_it_equals_torchdistills():
    theirs = pytest.importorskip('torchdistill.losses.mid_level').FTLoss()
    student, teacher = torch.randn(2, 2, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    expected = theirs(dict(translator=dict(output=student)), dict(paraphraser=dict(output=teacher)))
    ours = plain(student, teacher)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(x, student)[0] for x in (ours, expected)]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-7)


def test_channels_go_as_published_and_a_factor_has_its_share_of_them():
    term = set_up(6, 8, rate=.5)

    def channels(net):
        layers = [layer for layer in net if not isinstance(layer, nn.LeakyReLU)]
        return [(layer.in_channels, layer.out_channels, layer.kernel_size) for layer in layers]
    k = (3, 3)
    assert channels(term.encoders[0]) == [(8, 8, k), (8, 4, k), (4, 4, k)]
    assert channels(term.decoders[0]) == [(4, 4, k), (4, 8, k), (8, 8, k)]
    assert channels(term.translators[0]) == [(6, 6, k), (6, 4, k), (4, 4, k)]
    assert all(isinstance(c, (nn.ConvTranspose2d, nn.LeakyReLU)) for c in term.decoders[0])


def test_it_reads_the_second_and_third_map_of_the_heads_unless_others_are_named():
    six = (38, 19, 10, 5, 3, 1)
    assert set_up(sizes=six).student_taps == ['neck[1]', 'neck[2]']
    assert set_up(sizes=(19,)).student_taps == ['neck[0]']
    term = FactorTransfer(sizes=[38])
    term.setup(make_spec(taps(3, six), taps(4, six)))
    assert term.describe() == [dict(size=[38, 38], student='neck[0]', teacher='neck[0]', channels=[3, 4],
                                    name='s38', adapter='3 3x3 convs 3->2, of 4')]


def test_a_translator_that_says_what_the_paraphraser_says_leaves_nothing_to_learn():
    term, same = set_up(4, 4), maps(4)
    term.translators.load_state_dict(term.frozen.state_dict())
    assert term(make_lesson(same, same, **THEN))['loss'].item() == 0


def test_gradients_go_to_the_paraphraser_first_and_then_to_student_and_translator():
    for phase, learning in ((FIRST, {'encoders', 'decoders'}), (THEN, {'translators'})):
        term, student, teacher = set_up(), maps(3), maps(4, seed=1)
        added(term(make_lesson(student, teacher, **phase))).backward()
        reached = {name.split('.')[0] for name, p in term.named_parameters()
                   if p.grad is not None and p.grad.any()}
        assert reached == learning
        assert [v.grad is not None for v in student.values()] == [False] + [phase == THEN] * 2
        assert all(v.grad is None for v in teacher.values())


def test_gradcheck():
    term = set_up(2, 2, (3, 2, 1)).double()
    student, teacher = (maps(2, (3, 2, 1), seed=s, dtype=torch.float64) for s in (0, 1))
    assert torch.autograd.gradcheck(lambda *s: term(make_lesson(
        dict(zip(student, s, strict=True)), teacher, **THEN))['loss'], tuple(student.values()))


@pytest.mark.parametrize('phase', [FIRST, THEN], ids=['first', 'then'])
def test_a_batch_is_the_mean_of_its_images_in_any_order(phase):
    term, student, teacher = set_up(), maps(3), maps(4, seed=1)

    def value(index):
        return added(term(make_lesson(*({k: v[index] for k, v in side.items()}
                                        for side in (student, teacher)), **phase)))
    assert torch.allclose(value([0, 1]), value([1, 0]))
    assert torch.allclose(value([0, 1]), (value([0]) + value([1])) / 2)


@pytest.mark.parametrize('phase', [FIRST, THEN], ids=['first', 'then'])
@pytest.mark.parametrize('value', [0., 1e4], ids=['dead', 'saturated'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_constant_maps_in_any_precision_stay_finite(phase, value, dtype):
    term = set_up()
    for net in (term.encoders, term.decoders, term.frozen, term.translators):
        for name, p in net.named_parameters():
            p.data.mul_(name.endswith('weight'))     # a map of zeros then has a factor of zeros
    student = {k: torch.full_like(v, value, dtype=dtype).requires_grad_()
               for k, v in maps(3, batch=1).items()}
    teacher = {k: torch.full_like(v, -value, dtype=dtype) for k, v in maps(4, batch=1).items()}
    out = term(make_lesson(student, teacher, **phase))
    added(out).backward()
    assert added(out).dtype == torch.float32 and all(v.isfinite() for v in out.values())
    for tensor in [*student.values(), *term.parameters()]:
        assert tensor.grad is None or tensor.grad.isfinite().all()


def test_a_teacher_of_larger_maps_has_the_students_factor_resized():
    assert set_up()(make_lesson(maps(3), maps(4, (8, 6, 2)), **THEN))['loss'].isfinite()


def test_the_paraphraser_learns_to_rebuild():
    term, teacher = set_up(learned=False), {k: v.detach().relu() for k, v in maps(4).items()}
    optimizer = torch.optim.Adam(term.parameters(), 1e-2)
    left = []
    for i in range(25):
        out = term(make_lesson(maps(3), teacher, iteration=i, total=1000))
        optimizer.zero_grad()
        out['aside_loss'].backward()
        optimizer.step()
        left.append(out['unexplained_s3'].item())
    assert left[-1] < .7 * left[0]


@pytest.mark.parametrize('make', [
    lambda p: torch.optim.SGD(p, .1, momentum=.9, weight_decay=1e-2),
    lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1e-2)], ids=['sgd', 'adamw'])
def test_no_momentum_and_no_decay_touches_the_frozen_paraphraser(make):
    term, student, teacher = set_up(learned=False, reconstruction=1.), maps(3), maps(4, seed=1)
    optimizer = make(term.parameters())

    def run(iterations):
        for i in iterations:
            loss = added(term(make_lesson(student, teacher, iteration=i)))
            optimizer.zero_grad()
            (loss + sum(p.sum() for p in term.parameters() if p.requires_grad) * 0).backward()
            optimizer.step()
        return copy.deepcopy(term.frozen.state_dict()), copy.deepcopy(term.encoders.state_dict())
    untrained = copy.deepcopy(term.encoders.state_dict())
    frozen, encoders = run(range(10))
    assert not any(torch.equal(v, untrained[k]) for k, v in frozen.items())
    later, drifted = run(range(10, 14))
    assert all(torch.equal(v, frozen[k]) for k, v in later.items())
    assert not any(torch.equal(v, encoders[k]) for k, v in drifted.items())


def test_the_phase_is_that_of_the_iteration_alone_and_a_state_dict_holds_the_rest():
    student, teacher = maps(3), maps(4, seed=1)
    term = set_up(learned=False)
    for total in (1, 3, 10, 62003):
        end = max(1, round(.1 * total))
        for i, first in ((end - 1, True), (end, False)):
            out = term(make_lesson(student, teacher, iteration=i, total=total))
            assert ('unexplained_s3' in out, 'd_s3' in out) == (first, not first)
    torch.manual_seed(1)
    resumed = FactorTransfer()
    resumed.setup(make_spec(taps(3), taps(4)))
    resumed.load_state_dict(term.state_dict())
    for phase in (THEN, FIRST):
        lesson = make_lesson(student, teacher, **phase)
        assert added(resumed(lesson)).item() == added(term(lesson)).item()


def test_impossible_options_are_refused():
    for name, value in (('rate', 0), ('pretrain', 0), ('pretrain', 9), ('reconstruction', 0)):
        with pytest.raises(UserError, match=name):
            FactorTransfer(**{name: value})
    with pytest.raises(UserError, match=r'stages \[7\] do not exist'):
        FactorTransfer(sizes=[7]).setup(make_spec(taps(3), taps(4)))


def test_a_paraphraser_that_never_learned_is_refused():
    with pytest.raises(UserError, match='never learned.*warmup'):
        set_up(learned=False)(make_lesson(maps(3), maps(4), **THEN))


# -- in a distiller --------------------------------------------------------------------------------
def distiller(**options):
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='Distiller', student=tiny_ssd(1 / 32, with_bn=False), input_size=96,
        teacher=dict(model=dict(model=tiny_ssd(1 / 16, with_bn=False)), checkpoint='untrained'),
        terms=dict(factor=dict(type='FactorTransfer', **options))))
    model.init_weights()
    return model.train()


def step(model, iteration):
    model.progress = Progress(iteration, 10)
    loss, logs = model.parse_losses(model(**model.data_preprocessor(make_batch(), True), mode='loss'))
    model.zero_grad()
    loss.backward()
    return {k: v.item() for k, v in logs.items()}


def test_while_the_paraphraser_learns_the_student_trains_as_it_would_alone():
    model = distiller()
    logs = step(model, 0)
    assert logs['loss_factor_aside'] > 0 == logs['loss_factor'] and 'factor_weight' not in logs
    plain = MODELS.build(tiny_ssd(1 / 32, with_bn=False)).train()
    plain.load_state_dict(model.student.state_dict())
    total, alone = plain.parse_losses(plain(**plain.data_preprocessor(make_batch(), True), mode='loss'))
    total.backward()
    assert all(logs[k] == alone[k].item() for k in ('loss_cls', 'loss_bbox'))
    for mine, other in zip(model.student.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)


def test_afterwards_the_student_learns_from_the_factor_and_the_teacher_never_changes():
    model = distiller()
    before = copy.deepcopy(model.teacher.detector.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    step(model, 0)
    alone = [p.grad.clone() for p in model.student.backbone.parameters()]
    logs = step(model, 1)       # the same batch and weights
    assert 'loss_factor_aside' not in logs
    assert logs['loss_factor'] == pytest.approx(500 * (logs['factor_d_s6'] + logs['factor_d_s3']), rel=1e-4)
    assert logs['loss_cls'] > 0
    for parameter, before_it in zip(model.student.backbone.parameters(), alone, strict=True):
        assert not torch.equal(parameter.grad, before_it)
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.detector.state_dict().items())
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    assert [k for k in model.state_dict() if not k.startswith('distill.')] == \
        list(MODELS.build(tiny_ssd(1 / 32, with_bn=False)).state_dict())


def test_its_pairs_can_be_shown_before_training():
    assert [p['size'] for p in distiller().describe()['terms']['factor']['pairs']] == [[6, 6], [3, 3]]


def test_the_weight_is_the_transfers_alone():
    one, two = distiller(weight=1.0), distiller(weight=2.0)
    assert step(one, 0)['loss_factor_aside'] == step(two, 0)['loss_factor_aside']
    assert 2 * step(one, 1)['loss_factor'] == pytest.approx(step(two, 1)['loss_factor'])


def test_an_automatic_weight_is_measured_on_the_transfer_alone():
    model = distiller(weight='auto')
    assert step(model, 0)['loss_factor_aside'] > 0
    assert model.distill['factor'].balance.count == 0
    logs = step(model, 1)
    assert model.distill['factor'].balance.count == 1
    assert logs['loss_factor'] == pytest.approx(logs['loss_cls'] + logs['loss_bbox'], rel=1e-5)
