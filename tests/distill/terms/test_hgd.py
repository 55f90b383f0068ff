"""HGD against numbers worked out by hand, its invariants, and a loop over every cell."""
from __future__ import annotations

import itertools
import math

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

import hgd_det  # noqa: F401
from hgd_det.distill.stages import survey
from hgd_det.distill.term import Spec
from hgd_det.distill.terms.hgd import HGD
from hgd_det.errors import UserError
from hgd_det.testing import make_lesson, make_spec, make_survey

pytestmark = pytest.mark.thorough

TAPS = ('early', 'late')
BOXES = [[(1., 1., 5., 4.), (6., 5., 7., 8.)], [], [(0., 0., 8., 8.)]]
INPUT = (8, 8)


def fill(term, seed=0):
    """Draw all weights, biases too: zeros hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in term.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) \
            .to(parameter.dtype)
    return term


def build(student, teacher, dtype=torch.float32, **options):
    spec = make_spec({k: (v.shape[1], v.shape[2]) for k, v in student.items()},
                     {k: (v.shape[1], v.shape[2]) for k, v in teacher.items()}, input_size=INPUT[0])
    term = HGD(**options)
    term.setup(spec)
    return fill(term.to(dtype))


def features(dtype=torch.float32, batch=3, seed=0, sizes=(4, 2), student_sizes=None):
    """Maps as ReLUs leave them, with a dead cell in student and teacher."""
    generator = torch.Generator().manual_seed(seed)

    def draw(channels, size):
        x = torch.randn(batch, channels, size, size, generator=generator, dtype=torch.float64)
        x = x.clamp(min=0) + (0.01 if size == 1 else 0)
        if size > 1:
            x[0, :, 1, 1] = 0
        return x.to(dtype)
    student = {t: draw(3 + i, n) for i, (t, n) in enumerate(zip(TAPS, student_sizes or sizes,
                                                                strict=True))}
    return student, {t: draw(4 - i, n) for i, (t, n) in enumerate(zip(TAPS, sizes, strict=True))}


def run(term, student, teacher, boxes=BOXES):
    """Value, diagnostics and gradients of the student maps and all parameters."""
    student = {k: v.detach().clone().requires_grad_() for k, v in student.items()}
    term.zero_grad()
    out = term(make_lesson(student, teacher, boxes=boxes, input_shape=INPUT))
    out['loss'].backward()
    grads = {k: v.grad for k, v in student.items()}
    return out, grads | {k: p.grad for k, p in term.named_parameters()}


# -- the loop ----------------------------------------------------------------------------------

def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def loop_cells(low, high, cells, rule):
    """Share of each cell of one axis that the box takes."""
    low, high = low * cells / INPUT[0], high * cells / INPUT[0]
    first = min(max(math.floor(low + 1e-4), 0), cells - 1)
    last = max(min(math.ceil(high - 1e-4), cells), first + 1)
    if rule == 'overlap':
        return [float(first <= i < last) for i in range(cells)]
    if rule == 'center':
        return [float(low <= i + .5 < high) for i in range(cells)]
    return [max(0., min(high, i + 1) - max(low, i)) for i in range(cells)]


def loop_statistic(S, kind, o):
    """[y][x] of one image's map, by the definition."""
    C, H, W = S.shape
    if o['stat_norm'] == 'rms':
        S = S / torch.sqrt((S ** 2).sum() / (C * H * W))
    table = []
    for y in range(H):
        row = []
        for x in range(W):
            mean = S[:, y, x].sum() / C
            variance = ((S[:, y, x] - mean) ** 2).sum() / C
            row.append(sigmoid(mean if kind == 'mean' else variance))
        table.append(row)
    return table


def loop_distance(S, Z, weight, bias, y, x, o):
    """(distance, whether the cell counts)."""
    V, z = weight @ S[:, y, x] + bias, Z[:, y, x]
    if o['distance'] == 'l2':
        return ((V - z) ** 2).sum() / (len(z) if o['l2_reduce'] == 'mean' else 1), True
    nz = math.sqrt(sum(b ** 2 for b in z.tolist()))
    if nz < 1e-6:
        return torch.ones((), dtype=S.dtype), o['zero'] == 'keep'
    return 1 - (V * z).sum() / (torch.sqrt((V * V).sum()) * nz), True


def loop_hgd(term, student, teacher, boxes, o):
    losses, factors = [], []
    if o['macro'] == 'attention':
        scores = []
        for tap, name in zip(TAPS, term.adapters, strict=True):
            gate, S = term.attention[name], student[tap]
            scores.append([sum(gate.weight[0, c] * S[b, c].sum() / S[b, c].numel()
                               for c in range(S.shape[1])) + gate.bias[0] for b in range(len(S))])
    for stage, (tap, name) in enumerate(zip(TAPS, term.adapters, strict=True)):
        S_all, Z_all, adapter = student[tap], teacher[tap], term.adapters[name]
        B, H, W = len(S_all), *Z_all.shape[2:]
        stage_losses, us = [], []
        for b in range(B):
            S, Z = S_all[b], Z_all[b]
            source = S.detach() if o['detach_weights'] else S
            if o['micro'] in ('mean', 'variance'):
                v = loop_statistic(source, o['micro'], o)
            else:
                v = [[1.] * W for _ in range(H)]
            if o['micro'] == 'gt_mask':
                v = [[0.] * W for _ in range(H)]
                for x1, y1, x2, y2 in boxes[b]:
                    down = loop_cells(y1, y2, H, o['mask'])
                    across = loop_cells(x1, x2, W, o['mask'])
                    for y, x in itertools.product(range(H), range(W)):
                        v[y][x] = max(v[y][x], float(down[y] * across[x] >= .5))
                if not any(map(any, v)) and o['empty'] == 'uniform':
                    v = [[1.] * W for _ in range(H)]
            numerator, denominator = 0 * S.sum(), 0.
            for y, x in itertools.product(range(H), range(W)):
                ell, counts = loop_distance(S, Z, adapter.weight[:, :, 0, 0], adapter.bias, y, x, o)
                if counts:
                    numerator = numerator + v[y][x] * ell
                    denominator = denominator + v[y][x]
            stage_losses.append(numerator / denominator if denominator > 0 else numerator)
            if o['macro'] in ('mean', 'variance'):
                table = loop_statistic(source, o['macro'], o)
                us.append(sum(map(sum, table)) / (len(table) * len(table[0])))
            elif o['macro'] == 'attention':
                across = [torch.exp(scores[s][b]) for s in range(len(TAPS))]
                us.append(len(TAPS) * across[stage] / sum(across))
            else:
                us.append(1.)
        losses.append(sum(u * d for u, d in zip(us, stage_losses, strict=True)) / B)
    if o['macro'] == 'focal':
        total = sum(losses)
        for loss in losses:
            p = loss / total
            p = p.detach() if o['detach_weights'] else p
            factors.append((1 - p) ** o['gamma'] if o['focal'] == 'paper' else p ** o['gamma'])
        losses = [f * loss for f, loss in zip(factors, losses, strict=True)]
    return sum(losses)


DEFAULTS = dict(distance='cosine', l2_reduce='sum', macro='variance', micro='gt_mask',
                focal='paper', gamma=2.0, detach_weights=True, mask='overlap', empty='zero',
                zero='drop', stat_norm='none')


def variants():
    """Every combination in which each option has a say."""
    for macro, micro in itertools.product(('none', 'attention', 'focal', 'mean', 'variance'),
                                          ('none', 'mean', 'variance', 'gt_mask')):
        statistic = {'mean', 'variance'} & {macro, micro}
        for distance, l2, focal, mask, empty, zero, norm, detach in itertools.product(
                ('cosine', 'l2'), ('sum', 'mean'), ('paper', 'intent'),
                ('overlap', 'center', 'area'), ('zero', 'uniform'), ('drop', 'keep'),
                ('none', 'rms'), (True, False)):
            if (l2 == 'mean' and distance == 'cosine') or (zero == 'keep' and distance == 'l2') \
                    or (focal == 'intent' and macro != 'focal') \
                    or ((mask != 'overlap' or empty != 'zero') and micro != 'gt_mask') \
                    or (norm == 'rms' and not statistic) \
                    or (not detach and not statistic and macro != 'focal'):
                continue
            if mask != 'overlap' and (zero == 'keep' or l2 == 'mean' or not detach):
                continue  # where a mask comes from has no bearing on these
            yield dict(macro=macro, micro=micro, distance=distance, l2_reduce=l2, focal=focal,
                       mask=mask, empty=empty, zero=zero, stat_norm=norm, detach_weights=detach)


VARIANTS = list(variants())


def compare_with_loop(options, dtype, **tolerance):
    student, teacher = features(dtype, batch=2, sizes=(3, 2))
    boxes = BOXES[:2]
    term = build(student, teacher, dtype, **options)
    out, grads = run(term, student, teacher, boxes)
    leaves = {k: v.detach().clone().requires_grad_() for k, v in student.items()}
    term.zero_grad()
    wanted = loop_hgd(term, leaves, teacher, boxes, DEFAULTS | options)
    wanted.backward()
    wanted_grads = {k: v.grad for k, v in leaves.items()} | \
        {k: p.grad for k, p in term.named_parameters()}
    torch.testing.assert_close(out['loss'], wanted, **tolerance)
    for name, value in wanted_grads.items():
        value = torch.zeros_like(grads[name]) if value is None else value
        torch.testing.assert_close(grads[name], value, **tolerance,
                                   msg=lambda m, n=name: f'{n}: {m}')


@pytest.mark.parametrize('macro', ['none', 'attention', 'focal', 'mean', 'variance'])
@pytest.mark.parametrize('micro', ['none', 'mean', 'variance', 'gt_mask'])
def test_every_variant_equals_the_loop_over_cells_in_float64(macro, micro):
    chosen = [o for o in VARIANTS if o['macro'] == macro and o['micro'] == micro]
    assert chosen
    for options in chosen:
        compare_with_loop(options, torch.float64, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('options', VARIANTS[::17], ids=lambda o: '-'.join(map(str, o.values())))
def test_variants_equal_the_loop_over_cells_in_float32(options):
    compare_with_loop(options, torch.float32, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('options', [
    {}, dict(micro='variance', detach_weights=False), dict(macro='attention', micro='none'),
    dict(macro='focal', detach_weights=False), dict(distance='l2', micro='mean', stat_norm='rms',
                                                    detach_weights=False)], ids=str)
def test_gradcheck(options):
    # with detached weights only the paths that are not detached: the adapters' and the gates'
    student, teacher = features(torch.float64, batch=2, sizes=(3, 2))
    term = build(student, teacher, torch.float64, **options)
    names = [n for n, _ in term.named_parameters()]
    inputs = [p.detach().clone().requires_grad_() for p in term.parameters()]
    whole = options.get('detach_weights') is False or options.get('macro') == 'attention'
    maps = [student[t].requires_grad_(whole) for t in TAPS]

    def value(*tensors):
        weights, features_ = tensors[:len(names)], tensors[len(names):]
        lesson = make_lesson(dict(zip(TAPS, features_, strict=True)), teacher, boxes=BOXES[:2],
                             input_shape=INPUT)
        return torch.func.functional_call(term, dict(zip(names, weights, strict=True)),
                                          (lesson,))['loss']
    assert torch.autograd.gradcheck(value, (*inputs, *maps))


# -- numbers worked out by hand ----------------------------------------------------------------

def one_stage(student, teacher, boxes=None, **options):
    """The value of one pair through an identity adapter; maps as nested lists (C,H,W)."""
    S, Z = (torch.as_tensor(x, dtype=torch.float32)[None] for x in (student, teacher))
    term = HGD(**dict(dict(macro='none', micro='none', adapter='none'), **options))
    term.setup(make_spec({'a': (S.shape[1], S.shape[2])}, {'a': (Z.shape[1], Z.shape[2])}))
    return term(make_lesson({'a': S.requires_grad_()}, {'a': Z}, boxes=[boxes or []],
                            input_shape=INPUT))


@pytest.mark.parametrize(('v', 'z', 'cosine', 'l2'), [
    ((3, 4), (4, 3), .04, 2), ((1, 0), (0, 1), 1, 2), ((1, 0), (-1, 0), 2, 4)])
def test_single_vectors(v, z, cosine, l2):
    v, z = ([[[c]] for c in x] for x in (v, z))
    assert one_stage(v, z)['loss'].item() == pytest.approx(cosine, abs=1e-6)
    assert one_stage(v, z, distance='l2')['loss'].item() == pytest.approx(l2, abs=1e-6)
    v = [[[3 * c[0][0]]] for c in v]
    assert one_stage(v, z)['loss'].item() == pytest.approx(cosine, abs=1e-6)


def at_distance(ell):
    """A student vector at this cosine distance from (1, 0)."""
    return (1 - ell, math.sqrt(1 - (1 - ell) ** 2))


def test_stages_are_added_up_and_cells_averaged():
    cells = torch.tensor([[at_distance(.1), at_distance(.2)], [at_distance(.3), at_distance(.4)]])
    student = {'a': cells.permute(2, 0, 1)[None],
               'b': torch.tensor(at_distance(.5)).view(1, 2, 1, 1)}
    teacher = {k: torch.zeros_like(v) for k, v in student.items()}
    for Z in teacher.values():
        Z[:, 0] = 1
    sizes = {k: (2, v.shape[2]) for k, v in student.items()}
    term = HGD(macro='none', micro='none', adapter='none')
    term.setup(make_spec(sizes, sizes))
    out = term(make_lesson(student, teacher, input_shape=INPUT))
    assert out['loss'].item() == pytest.approx(.75, abs=1e-6)
    assert out['d_s2'].item() == pytest.approx(.25, abs=1e-6)
    assert out['u_s2'] == 1
    masked = HGD(macro='none', micro='gt_mask', adapter='none', sizes=[2])
    masked.setup(make_spec(sizes, sizes))
    diagonal = [[(0., 0., 3., 3.), (5., 5., 8., 8.)]]
    value = masked(make_lesson(student, teacher, boxes=diagonal, input_shape=INPUT))['loss']
    assert .5 * value.item() == pytest.approx(.125, abs=1e-6)
    whole = [[(0., 0., 8., 8.)]]
    value = masked(make_lesson(student, teacher, boxes=whole, input_shape=INPUT))['loss']
    assert value.item() == pytest.approx(.25, abs=1e-6)


def test_stage_weights_come_from_the_population_variance():
    S = torch.tensor([[0., 2.], [1., 1.]]).T.view(2, 1, 2)
    # of all cells, even where the mask leaves some out
    for micro in ('none', 'variance', 'gt_mask'):
        out = one_stage(S, S, macro='variance', micro=micro, boxes=[(0., 0., 2., 8.)])
        assert out['u_s1'].item() == pytest.approx(.615529, abs=1e-6)
    assert one_stage(S, S, macro='mean')['u_s1'].item() == pytest.approx(.731059, abs=1e-6)


@pytest.mark.parametrize(('focal', 'wanted'), [('paper', .75), ('intent', 1.75)])
def test_focal(focal, wanted):
    student = {'a': torch.ones(1, 1, 2, 2), 'b': torch.full((1, 1, 1, 1), math.sqrt(3))}
    teacher = {k: torch.zeros_like(v) for k, v in student.items()}
    sizes = {k: (1, v.shape[2]) for k, v in student.items()}
    term = HGD(distance='l2', macro='focal', micro='none', focal=focal, adapter='none')
    term.setup(make_spec(sizes, sizes))
    assert term(make_lesson(student, teacher))['loss'].item() == pytest.approx(wanted, abs=1e-6)


def test_an_image_without_objects_gives_zero_and_still_counts():
    student, teacher = features()
    term = build(student, teacher)
    out, grads = run(term, student, teacher, [[], [], []])
    assert out['loss'] == 0
    assert all(g is not None and (g == 0).all() for g in grads.values())
    alone = {k: v[2:] for k, v in student.items()}, {k: v[2:] for k, v in teacher.items()}
    single = run(term, *alone, BOXES[2:])[0]['loss']
    pair = {k: v[1:] for k, v in student.items()}, {k: v[1:] for k, v in teacher.items()}
    torch.testing.assert_close(run(term, *pair, BOXES[1:])[0]['loss'], single / 2)


def ssd(depth, width, backbone='SlimSSDVGG'):
    """SSD300's backbone and extras."""
    channels = tuple(round(c * width) for c in (512, 1024))

    class Extractor(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = MODELS.build(
                dict(type=backbone, depth=depth, width=width) if backbone == 'SlimSSDVGG' else
                dict(type='SSDVGG', depth=depth, with_last_pool=False, ceil_mode=True,
                     out_indices=(3, 4), out_feature_indices=(22, 34)))
            self.neck = MODELS.build(dict(
                type='SSDNeck', in_channels=channels, level_strides=(2, 2, 1, 1),
                level_paddings=(1, 1, 0, 0), l2_norm_scale=20,
                out_channels=(*channels, *[round(c * width) for c in (512, 256, 256, 256)])))

        def extract_feat(self, x):
            return self.neck(self.backbone(x))
    return Extractor()


def test_ssd300_has_nine_stages_from_300_to_1():
    import hgd_det.models  # noqa: F401
    student, teacher = ssd(16, .125), ssd(11, .25)
    spec = Spec(survey(student, (300, 300), 'student'), survey(teacher, (300, 300), 'teacher'),
                (student, teacher), lambda: (None, None))
    term = HGD()
    term.setup(spec)
    rows = term.describe()
    assert [row['size'][0] for row in rows] == [300, 150, 75, 38, 19, 10, 5, 3, 1]
    assert [row['channels'] for row in rows] == [[8, 16], [16, 32], [32, 64], [64, 128], [128, 256],
                                                 [64, 128], [32, 64], [32, 64], [32, 64]]
    assert rows[0] == dict(size=[300, 300], student='backbone.features.3',
                           teacher='backbone.features.1', channels=[8, 16], name='s300',
                           adapter='1x1 conv 8->16')
    assert term.student_taps[3:] == [f'neck[{i}]' for i in range(6)]


def test_mmdets_own_ssd300_has_the_paper_s_taps_and_adapters():
    import hgd_det.models  # noqa: F401
    student, teacher = ssd(16, .5), ssd(16, 1.0, 'SSDVGG')
    term = HGD()
    term.setup(Spec(survey(student, (300, 300), 'student'), survey(teacher, (300, 300), 'teacher'),
                    (student, teacher), lambda: (None, None)))
    rows = term.describe()
    assert [row['teacher'] for row in rows[:3]] == [f'backbone.features.{i}' for i in (3, 8, 15)]
    assert sum(p.numel() for p in term.parameters()) == 931_008


def test_detached_weights_give_the_gradient_of_the_loss_with_weights_frozen():
    student, teacher = features(torch.float64)
    for micro in ('variance', 'mean', 'gt_mask'):
        term = build(student, teacher, torch.float64, micro=micro)
        out, grads = run(term, student, teacher)
        leaves = {k: v.clone().requires_grad_() for k, v in student.items()}
        frozen = 0
        for pair in term.pairs:
            S, Z, adapter = leaves[pair.student.tap], teacher[pair.teacher.tap], \
                term.adapters[pair.name]
            v = term._statistics(student[pair.student.tap])
            u = v['variance'].mean((1, 2))
            lesson = make_lesson(leaves, teacher, boxes=BOXES, input_shape=INPUT)
            w, _ = term._micro(v, Z, lesson)
            ell = 1 - torch.cosine_similarity(adapter(S), Z, dim=1)
            frozen = frozen + (u * (w * ell).sum((1, 2)) / w.sum((1, 2)).clamp(min=1e-9)).mean()
        frozen.backward()
        torch.testing.assert_close(out['loss'], frozen)
        for tap in TAPS:
            torch.testing.assert_close(grads[tap], leaves[tap].grad)


# -- invariants --------------------------------------------------------------------------------

@pytest.mark.parametrize('distance', ['cosine', 'l2'])
@pytest.mark.parametrize('macro', ['none', 'focal', 'variance', 'attention'])
def test_a_student_that_equals_its_teacher_costs_nothing(distance, macro):
    _, teacher = features()
    term = HGD(distance=distance, macro=macro, adapter='none')
    sizes = {k: (v.shape[1], v.shape[2]) for k, v in teacher.items()}
    term.setup(make_spec(sizes, sizes))
    assert run(term, teacher, teacher)[0]['loss'].abs() < 1e-6


@pytest.mark.parametrize('macro', ['none', 'focal', 'mean', 'variance', 'attention'])
@pytest.mark.parametrize('micro', ['none', 'variance', 'gt_mask'])
def test_gradients_reach_the_student_and_the_adapters_but_never_the_teacher(macro, micro):
    student, teacher = features()
    teacher = {k: v.requires_grad_() for k, v in teacher.items()}
    before = {k: v.detach().clone() for k, v in teacher.items()}
    term = build(student, teacher, macro=macro, micro=micro)
    _, grads = run(term, student, teacher)
    assert all(g.abs().sum() > 0 for n, g in grads.items() if not n.startswith('attention')), grads
    if macro == 'attention':
        # a bias that all gates share cancels in the softmax, one gate's own does not
        assert grads['attention.s4.weight'].abs().sum() > 0
    assert all(v.grad is None and torch.equal(v, before[k]) for k, v in teacher.items())


@pytest.mark.parametrize('macro', ['focal', 'variance', 'attention'])
@pytest.mark.parametrize('micro', ['none', 'mean', 'gt_mask'])
def test_the_order_of_images_and_repeating_the_batch_change_nothing(macro, micro):
    student, teacher = features()
    term = build(student, teacher, macro=macro, micro=micro)
    value = run(term, student, teacher)[0]['loss']
    for order in ([2, 0, 1], [0, 1, 2, 0, 1, 2]):
        again = run(term, {k: v[order] for k, v in student.items()},
                    {k: v[order] for k, v in teacher.items()}, [BOXES[i] for i in order])[0]['loss']
        torch.testing.assert_close(again, value, rtol=1e-5, atol=1e-6)


def test_scaling_the_teacher_leaves_the_cosine_as_it_is():
    student, teacher = features()
    term = build(student, teacher)
    value = run(term, student, teacher)[0]['loss']
    scaled = run(term, student, {k: v * 5 for k, v in teacher.items()})[0]['loss']
    torch.testing.assert_close(scaled, value)


@pytest.mark.parametrize('macro', ['none', 'attention', 'focal', 'mean', 'variance'])
@pytest.mark.parametrize('micro', ['none', 'mean', 'variance', 'gt_mask'])
@pytest.mark.parametrize('distance', ['cosine', 'l2'])
def test_one_image_with_1x1_maps_and_no_objects_is_finite(macro, micro, distance):
    student, teacher = features(batch=1, sizes=(2, 1))
    for maps in (student, teacher):
        maps['early'] = maps['early'] * 0  # all dead, and statistics without spread
    for boxes in ([[]], [[(1., 1., 2., 2.)]]):
        for norm in ('none', 'rms'):
            for detach in (True, False):
                term = build(student, teacher, macro=macro, micro=micro, distance=distance,
                             stat_norm=norm, detach_weights=detach)
                out, grads = run(term, student, teacher, boxes)
                assert torch.isfinite(out['loss'])
                assert all(torch.isfinite(g).all() for g in grads.values() if g is not None)


def test_a_fresh_adapter_on_dead_student_cells_has_a_finite_gradient():
    student, teacher = features()
    student['early'] = student['early'] * 0
    term = HGD(micro='none')
    term.setup(make_spec({k: (v.shape[1], v.shape[2]) for k, v in student.items()},
                         {k: (v.shape[1], v.shape[2]) for k, v in teacher.items()}))
    _, grads = run(term, student, teacher)
    assert all(torch.isfinite(g).all() for g in grads.values())
    assert (grads['adapters.s4.bias'] == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('micro', ['gt_mask', 'variance'])
def test_half_precision_maps_give_a_float32_loss(dtype, micro):
    student, teacher = features()
    student, teacher = ({k: v.to(dtype) for k, v in m.items()} for m in (student, teacher))
    term = build(student, teacher, micro=micro)
    out, grads = run(term, student, teacher)
    full = ({k: v.float() for k, v in m.items()} for m in (student, teacher))
    exact, exact_grads = run(term, *full)
    assert out['loss'].dtype == torch.float32
    torch.testing.assert_close(out['loss'], exact['loss'])
    for tap in TAPS:
        assert grads[tap].dtype == dtype
        torch.testing.assert_close(grads[tap].float(), exact_grads[tap], rtol=1e-2, atol=1e-3)


def test_focal_shares_come_from_the_whole_batch_in_data_parallel_training(monkeypatch):
    student, teacher = features()
    term = build(student, teacher, macro='focal', micro='variance')
    whole = run(term, student, teacher)[0]
    parts = [[{k: v[i:i + 1] for k, v in maps.items()} for maps in (student, teacher)]
             for i in range(3)]
    plain = build(student, teacher, macro='none', micro='variance')
    plain.load_state_dict(term.state_dict())
    stages = [torch.stack([run(plain, *p)[0][f'd_{n}'] for n in term.adapters]) for p in parts]
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 3)
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda x: x.copy_(sum(stages)))
    mean = sum(run(term, *p)[0]['loss'] for p in parts) / 3
    torch.testing.assert_close(mean, whole['loss'])


# -- sizes, taps, refusals ---------------------------------------------------------------------

@pytest.mark.parametrize('student_sizes', [(2, 1), (8, 4)])
@pytest.mark.parametrize('micro', ['variance', 'gt_mask'])
@pytest.mark.parametrize('detach', [True, False])
def test_a_student_of_another_size_is_resized_after_its_adapter(student_sizes, micro, detach):
    student, teacher = features(torch.float64, student_sizes=student_sizes)
    pairs = [dict(student=t, teacher=t) for t in TAPS]
    term = build(student, teacher, torch.float64, micro=micro, taps=pairs, detach_weights=detach)
    out, grads = run(term, student, teacher)
    leaves = {k: v.clone().requires_grad_() for k, v in student.items()}
    wanted = 0
    for tap, adapter in zip(TAPS, term.adapters.values(), strict=True):
        S, Z = leaves[tap], teacher[tap]
        V = nn.functional.interpolate(adapter(S), Z.shape[2:], mode='bilinear', align_corners=False)
        v = (S.detach() if detach else S).var(1, unbiased=False).sigmoid()
        w = nn.functional.interpolate(v[:, None], Z.shape[2:], mode='bilinear')[:, 0]
        if micro == 'gt_mask':
            w = term._micro({}, Z, make_lesson(leaves, teacher, boxes=BOXES, input_shape=INPUT))[0]
        w = w * (Z.norm(dim=1) > 1e-6)
        ell = 1 - torch.cosine_similarity(V, Z, dim=1)
        wanted = wanted + (v.mean((1, 2)) * (w * ell).sum((1, 2)) /
                           w.sum((1, 2)).clamp(min=1e-9)).mean()
    wanted.backward()
    torch.testing.assert_close(out['loss'], wanted)
    for tap in TAPS:
        torch.testing.assert_close(grads[tap], leaves[tap].grad)
    s, t = student_sizes[0], teacher['early'].shape[2]
    assert term.describe()[0]['adapter'] == f'1x1 conv 3->4 + resize {s}x{s}->{t}x{t}'


def test_boxes_are_needed_for_the_mask_alone():
    assert HGD().needs == {'maps', 'boxes'}
    assert HGD(micro='variance').needs == {'maps'}
    assert HGD.needs == {'maps'}


def test_stages_can_be_chosen_by_size():
    student, teacher = features()
    assert [r['name'] for r in build(student, teacher, sizes=[2]).describe()] == ['s2']
    assert [r['name'] for r in build(student, teacher, max_size=2).describe()] == ['s2']
    taps = [dict(student='late', teacher='late')]
    term = build(student, teacher, taps=taps)
    assert [r['student'] for r in term.describe()] == ['late']
    assert set(run(term, student, teacher)[0]) == {'loss', 'd_s2', 'u_s2'}


def test_the_adapters_follow_the_policy():
    student = {'a': torch.zeros(1, 4, 4, 4), 'b': torch.zeros(1, 2, 2, 2)}
    teacher = {'a': torch.zeros(1, 4, 4, 4), 'b': torch.zeros(1, 5, 2, 2)}
    rows = build(student, teacher).describe()
    assert [r['adapter'] for r in rows] == ['1x1 conv 4->4', '1x1 conv 2->5']
    rows = build(student, teacher, adapter='mismatch').describe()
    assert [r['adapter'] for r in rows] == ['none', '1x1 conv 2->5']
    with pytest.raises(UserError, match='needs equal channels'):
        build(student, teacher, adapter='none')


def test_an_attention_starts_with_all_stages_alike():
    student, teacher = features()
    term = HGD(macro='attention')
    term.setup(make_spec({k: (v.shape[1], v.shape[2]) for k, v in student.items()},
                         {k: (v.shape[1], v.shape[2]) for k, v in teacher.items()}))
    out, _ = run(term, student, teacher)
    assert out['u_s4'] == out['u_s2'] == 1


@pytest.mark.parametrize(('options', 'message'), [
    (dict(distance='l1'), r"distance='l1'; choose one of 'cosine', 'l2'"),
    (dict(macro='gt_mask'), r"macro='gt_mask'; choose one of 'none', 'attention', 'focal'"),
    (dict(micro='focal'), r"micro='focal'"), (dict(focal='prose'), r"focal='prose'"),
    (dict(mask='inside'), r"mask='inside'"), (dict(zero='skip'), r"zero='skip'"),
    (dict(empty='one'), r"empty='one'"), (dict(stat_norm='l2'), r"stat_norm='l2'"),
    (dict(l2_reduce='max'), r"l2_reduce='max'"), (dict(adapter='never'), r"adapter='never'"),
    (dict(gamma=-1), r'gamma=-1'), (dict(taps=[]), 'at least one'),
    (dict(taps=[dict(student='a', teacher='a')], sizes=[300]), 'leave sizes')])
def test_an_impossible_option_is_refused_with_the_possible_ones(options, message):
    with pytest.raises(UserError, match=message):
        HGD(**options)


def test_detectors_without_a_common_stage_are_refused():
    spec = make_spec({'a': (2, 5)}, {'a': (2, 4)})
    assert make_survey({'a': (2, 5)}).maps[0].size == (5, 5)
    with pytest.raises(UserError, match='no common stage'):
        HGD().setup(spec)
