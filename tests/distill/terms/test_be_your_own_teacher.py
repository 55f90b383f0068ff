import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hgd_det.registered  # noqa: F401
from hgd_det.distill.detection import detection_loss
from hgd_det.distill.lesson import HeadOutput
from hgd_det.distill.term import Spec
from hgd_det.distill.terms.be_your_own_teacher import BeYourOwnTeacher, restricted
from hgd_det.errors import UserError
from hgd_det.testing import (
    make_batch,
    make_distiller,
    make_head_spec,
    make_lesson,
    make_survey,
    tiny_ssd,
    train_step,
)

C = 3
LEVELS = ((4, 4, 2), (2, 2, 1), (1, 1, 2))                     # H, W, anchors per cell
MAPS = {'a': (3, 8), 'b': (4, 4), 'c': (5, 2), 'd': (4, 1)}     # channels, size; heads read b, c, d
EDGES = (0, 32, 36, 38)


def spec_of(maps=MAPS, sources=('b', 'c', 'd'), per_cell=(2, 1, 2), anchors=38, **head):
    described = make_head_spec(torch.zeros(anchors, 4), C, per_cell=per_cell, **head)
    return Spec(make_survey(maps, 16, sources=sources), None, (None, None), lambda: (described, None))


def term_of(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        term = BeYourOwnTeacher(**options)
        term.setup(spec_of())
    return term


def lesson_of(batch=2, seed=0, dtype=torch.float32, objects=(1, 20, 33, 36), ratio=3.0, scale=1.0, order=None,
              **more):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
        return (x if order is None else x[order]).to(dtype).requires_grad_()
    maps = {tap: draw(batch, c, size, size) for tap, (c, size) in MAPS.items()}
    head = draw(batch, 38, C + 1), draw(batch, 38, 4)
    labels = torch.full((batch, 38), C)
    for image in range(batch):
        for anchor in objects:
            labels[image, (anchor + image) % 38] = (anchor + image) % C
    labels = labels if order is None else labels[order]
    lesson = make_lesson(maps, student_head=head, levels=LEVELS, labels=labels,
                         box_targets=draw(batch, 38, 4).detach(), **more)
    lesson.neg_pos_ratio = ratio
    return lesson


def softmax(row, temperature=1.0):
    powers = [math.exp((v - max(row)) / temperature) for v in row]
    return [p / sum(powers) for p in powers]


def slow(lesson, term, alpha, beta, temperature):
    """The formula cell by cell, anchor by anchor; convolution and BatchNorm by hand."""
    labels, boxes = lesson.targets.labels.tolist(), lesson.targets.boxes.tolist()
    main = lesson.student.head.cls.tolist()
    positives = sum(label < C for row in labels for label in row)
    mined = set()
    for image, row in enumerate(labels):
        negatives = sorted((softmax(main[image][a])[C], a) for a in range(38) if row[a] == C)
        count = 3 * sum(label < C for label in row)
        mined |= {(image, a) for _, a in negatives[:count]}
        mined |= {(image, a) for a in range(38) if row[a] < C}
    detection = soft = hint = 0.0
    for level, (before, own) in enumerate(['ab', 'bc', 'cd']):
        branch, x = term.branches[level], lesson.student.maps[before].detach()
        conv, norm = branch.bottleneck[0], branch.bottleneck[1]
        x = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2)
        x = torch.einsum('bchwij,ocij->bohw', x, conv.weight)
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True)
                                                     + norm.eps).sqrt()
        V = x.clamp(min=0)
        hint += sum(((V[i] - lesson.student.maps[own][i]) ** 2).sum().item() for i in range(len(V))) / len(V)
        height, width, count = LEVELS[level]
        cls, reg = F.conv2d(V, branch.cls.weight, padding=1), F.conv2d(V, branch.reg.weight, padding=1)
        for image in range(len(V)):
            rows = {EDGES[level] + (y * width + w) * count + a:
                    (cls[image, a * (C + 1):(a + 1) * (C + 1), y, w].tolist(),
                     reg[image, a * 4:(a + 1) * 4, y, w].tolist())
                    for y in range(height) for w in range(width) for a in range(count)}
            here = [a for a in rows if labels[image][a] < C]
            own_hard = sorted((softmax(rows[a][0])[C], a) for a in rows if labels[image][a] == C)
            for a in here + [a for _, a in own_hard[:3 * len(here)]]:
                detection -= math.log(softmax(rows[a][0])[labels[image][a]])
            for a in here:
                for delta, wanted in zip(rows[a][1], boxes[image][a], strict=True):
                    off = abs(delta - wanted)
                    detection += .5 * off ** 2 if off < 1 else off - .5
            for a in rows:
                if (image, a) in mined:
                    p, q = softmax(main[image][a], temperature), softmax(rows[a][0], temperature)
                    soft += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    detection, soft = detection / positives, soft / positives
    return (1 - alpha) * detection + alpha * temperature ** 2 * soft + beta * hint


@pytest.mark.parametrize('alpha, beta, temperature', [(.1, 1e-6, 3), (.4, .01, 1), (0, 1, 2), (0, 0, 3)])
def test_it_equals_a_loop_over_cells_and_anchors(alpha, beta, temperature):
    term = term_of(alpha=alpha, beta=beta, temperature=temperature).double()
    lesson = lesson_of(dtype=torch.float64)
    wanted = slow(lesson, term, alpha, beta, temperature)
    assert term(lesson)['loss'].item() == pytest.approx(wanted, rel=1e-9)


def test_without_alpha_and_beta_it_is_the_branches_detection_losses():
    term, lesson = term_of(alpha=0, beta=0), lesson_of()
    total = 0.0
    for branch, before, (size, *_), start, end in zip(term.branches, 'abc', LEVELS, EDGES, EDGES[1:],
                                                      strict=False):
        _, out = branch(lesson.student.maps[before], (size, size))
        part = restricted(lesson.targets, slice(start, end))
        total += detection_loss(out, part) * part.num_positive / lesson.targets.num_positive
    assert term(lesson)['loss'].item() == pytest.approx(total.item(), rel=1e-6)
    assert term.scales_detection == {'loss': 1}


class Echo(nn.Module):
    """A branch that says exactly what the main head says."""

    def __init__(self, own, head, where):
        super().__init__()
        self.answer = own, HeadOutput(head.cls[:, where], head.reg[:, where], head.levels)

    def forward(self, before, size):
        return self.answer


def echoing(lesson, **options):
    term = term_of(**options)
    term.branches = nn.ModuleList(Echo(lesson.student.maps[own], lesson.student.head, slice(*edges))
                                  for own, *edges in zip('bcd', EDGES, EDGES[1:], strict=False))
    return term


def test_branches_that_equal_the_main_head_have_nothing_to_imitate_and_its_loss():
    lesson = lesson_of(ratio=1000)      # all negatives, so that mining by level and over all agree
    out = echoing(lesson, alpha=0)(lesson)
    assert out['soft'].item() == pytest.approx(0, abs=1e-6) and out['hint'] == 0
    whole = detection_loss(lesson.student.head, lesson.targets, ratio=1000)
    assert out['loss'].item() == pytest.approx(whole.item(), rel=1e-5)


def test_the_parts_of_a_silent_branch_have_their_closed_form():
    term, lesson = term_of(temperature=1e-3), lesson_of(objects=(1, 20), scale=1.0)
    for branch in term.branches:
        for parameter in branch.parameters():
            nn.init.zeros_(parameter)       # V = 0, uniform scores, no shift of any box
    lesson.student.head.cls.detach().zero_()[..., 0] = 5.
    with torch.no_grad():
        for tap in 'bcd':
            lesson.student.maps[tap].fill_(.5)
    out = term(lesson)
    # 4*4*4 + 5*2*2 + 4 numbers of .25; a certain teacher against four equal scores: log 4 per anchor
    assert out['hint'].item() == pytest.approx(.25 * (64 + 20 + 4))
    hard = lesson.region('hard').sum().item()
    assert hard == 16 and out['soft'].item() == pytest.approx(16 * math.log(4) / 4, rel=1e-5)
    # all objects lie in the first level, with three negatives each
    wanted = lesson.targets.boxes[lesson.targets.positive]
    boxes = F.smooth_l1_loss(torch.zeros_like(wanted), wanted, reduction='sum') / 4
    assert out['detection'].item() == pytest.approx(16 * math.log(4) / 4 + boxes.item(), rel=1e-5)


def test_it_reaches_the_stages_before_and_the_branches_but_never_what_teaches():
    term, lesson = term_of(alpha=.5, beta=.01), lesson_of()
    term(lesson)['loss'].backward()
    maps, head = lesson.student.maps, lesson.student.head
    assert head.cls.grad is None and head.reg.grad is None and maps['d'].grad is None
    assert all(maps[tap].grad.abs().sum() > 0 for tap in 'abc')
    assert all(p.grad.abs().sum() > 0 for p in term.parameters())
    # b and c are both: read by the next level's branch, and taught from as a constant
    only, again = term_of(levels=[0], alpha=.5, beta=.01), lesson_of()
    only(again)['loss'].backward()
    assert again.student.maps['a'].grad.abs().sum() > 0 and again.student.maps['b'].grad is None


def test_the_order_of_the_images_does_not_matter():
    values = [term_of()(lesson_of(batch=3, order=order))['loss'].item() for order in ([0, 1, 2], [2, 0, 1])]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize('level, tap', [(0, 'a'), (1, 'b'), (2, 'c')])
def test_gradcheck(level, tap):     # one level at a time: to the next, its input is a constant that teaches
    term = term_of(alpha=.3, beta=.01, levels=[level]).double()
    lesson = lesson_of(dtype=torch.float64, ratio=1000)     # all negatives: which are mined would jump

    def value(x):
        lesson.student.maps[tap] = x
        return term(lesson)['loss']
    assert torch.autograd.gradcheck(value, lesson.student.maps[tap])


@pytest.mark.parametrize('objects', [(), (1,), (1, 20, 33, 36)], ids=['none', 'one', 'several'])
@pytest.mark.parametrize('batch', [1, 2])
def test_few_objects_or_none_one_image_and_a_1x1_map_are_finite(batch, objects):
    term, lesson = term_of(), lesson_of(batch, objects=objects)
    out = term(lesson)
    out['loss'].backward()
    assert all(value.isfinite() for value in out.values())
    assert all(p.grad.isfinite().all() for p in term.parameters())
    assert (out['detection'] == 0) == (out['soft'] == 0) == (not objects)
    assert out['hint'] > 0              # maps teach without objects too


def test_a_single_value_is_normalised_with_what_was_seen_before():
    term, lesson = term_of(), lesson_of(batch=1)
    norm = term.branches[2].bottleneck[1]
    norm.running_mean.fill_(2.), norm.running_var.fill_(4.)
    own, _ = term.branches[2](lesson.student.maps['c'], (1, 1))
    plain = term.branches[2].bottleneck[0](lesson.student.maps['c'])
    assert torch.allclose(own, ((plain - 2) / (4 + norm.eps) ** .5).relu())
    assert norm.running_mean[0] == 2 and norm.num_batches_tracked == 0
    term(lesson_of(batch=2))
    assert norm.running_mean[0] != 2


def test_ignored_anchors_take_no_part():
    term, lesson = term_of(), lesson_of(label_weights=torch.zeros(2, 38))
    out = term(lesson)
    assert out['detection'] == 0 and out['soft'] == 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_saturated_scores_in_half_precision_stay_finite(dtype):
    term, lesson = term_of(alpha=.5), lesson_of(dtype=dtype, scale=1000.)
    out = term(lesson)
    out['loss'].backward()
    assert out['loss'].dtype == torch.float32 and all(v.isfinite() for v in out.values())
    assert all(lesson.student.maps[tap].grad.isfinite().all() for tap in 'abc')


def test_a_stage_before_that_is_not_twice_as_large_is_resized():
    spec = spec_of(dict(MAPS, a=(3, 13)))
    term, lesson = BeYourOwnTeacher(levels=[0]), lesson_of()
    term.setup(spec)
    lesson.student.maps['a'] = torch.randn(2, 3, 13, 13)
    assert term.branches[0](lesson.student.maps['a'], (4, 4))[0].shape == (2, 4, 4, 4)
    assert term(lesson)['loss'].isfinite()


@pytest.mark.parametrize('options, message', [
    (dict(alpha=1), 'alpha=1'), (dict(alpha=-.1), 'alpha=-0.1'), (dict(beta=-1), 'beta=-1'),
    (dict(temperature=0), 'temperature=0')])
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        BeYourOwnTeacher(**options)


@pytest.mark.parametrize('options, spec, message', [
    (dict(levels=[0, 3]), {}, r'levels=\[0, 3\]; choose some of \[0, 1, 2\]'),
    (dict(levels=[]), {}, r'levels=\[\]'),
    (dict(), dict(maps={k: MAPS[k] for k in 'bcd'}), 'no stage comes before level 0, b 4x4x4'),
    (dict(), dict(anchors=37), 'one level for each size.*3 levels with 37 anchors read maps of'),
    (dict(), dict(per_cell=(2, 1)), 'one level for each size')])
def test_heads_it_cannot_serve_are_refused(options, spec, message):
    with pytest.raises(UserError, match=message):
        BeYourOwnTeacher(**options).setup(spec_of(**spec))


def test_without_level_0_the_largest_map_may_be_a_heads():
    term = BeYourOwnTeacher(levels=[1, 2])
    term.setup(spec_of({k: MAPS[k] for k in 'bcd'}))
    assert [pair.student.tap for pair in term.pairs] == ['b', 'c']


def test_a_distribution_head_gets_branches_with_bins():
    term, lesson = BeYourOwnTeacher(), lesson_of()
    term.setup(spec_of(reg_channels=20, project=torch.linspace(-2, 2, 5)))
    assert [branch.reg.out_channels for branch in term.branches] == [40, 20, 40]
    term(lesson)['loss'].backward()
    assert all(branch.reg.weight.grad.abs().sum() > 0 for branch in term.branches)
    assert not any('bins' in key for key in term.state_dict())


# In a distiller ---------------------------------------------------------------------------------

def build(student=None, **options):
    return make_distiller(dict(own=dict(type='BeYourOwnTeacher', **options)), student, teacher=False)


def test_the_stages_before_the_first_three_levels_are_found():
    pairs = build().describe()['pairs']
    assert [(p['size'], p['student'], p['teacher']) for p in pairs] == [
        ([12, 12], 'backbone.features.22', 'own neck[0]'), ([6, 6], 'neck[0]', 'own neck[1]'),
        ([3, 3], 'neck[1]', 'own neck[2]')]


def test_the_whole_loss_is_the_formula_and_alpha_beta_0_the_sum_of_detection_losses():
    batch = make_batch()
    plain = train_step(make_distiller({}, teacher=False), batch)[1]
    for alpha, beta in ((0, 0), (.1, 1e-6)):
        total, log = train_step(build(alpha=alpha, beta=beta), batch)
        wanted = ((1 - alpha) * (plain['loss_cls'] + plain['loss_bbox'] + log['own_detection'])
                  + alpha * 9 * log['own_soft'] + beta * log['own_hint'])
        assert total.item() == pytest.approx(wanted, rel=1e-5)
        assert log['own_detection'] > 0 and log['own_soft'] > 0 and log['own_hint'] > 0


def test_the_main_heads_gradient_is_its_own_loss_alone():
    plain, taught = make_distiller({}, teacher=False), build(alpha=.25, beta=.01)
    for model in (plain, taught):
        train_step(model, make_batch())[0].backward()
    pairs = list(zip(*(m.student.bbox_head.parameters() for m in (plain, taught)), strict=True))
    assert len(pairs) == 16
    assert all(torch.allclose(.75 * p.grad, q.grad, rtol=1e-4, atol=1e-7) for p, q in pairs)
    early = [m.student.backbone.features[0].weight.grad for m in (plain, taught)]
    assert not torch.allclose(.75 * early[0], early[1], rtol=1e-2)


@pytest.mark.parametrize('objects', [(0, 0), (1,)], ids=['none', 'one image'])
def test_few_objects_train_on(objects):
    model = build(tiny_ssd(with_bn=False))      # SSD's own last map is 1x1 too
    _, log = train_step(model, make_batch(len(objects), objects=objects),
                            torch.optim.SGD(model.parameters(), 1e-4))
    assert all(map(math.isfinite, log.values()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_training_lowers_the_branches_losses_and_leaves_a_plain_student():
    model = build(beta=1e-4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    logs = [train_step(model, make_batch(), optimizer)[1] for _ in range(15)]
    assert logs[-1]['own_detection'] < logs[0]['own_detection'] / 2
    assert logs[-1]['own_soft'] < logs[0]['own_soft']

    from mmdet.registry import MODELS
    plain = MODELS.build(tiny_ssd())
    state = {k: v for k, v in model.state_dict().items() if not k.startswith('distill.')}
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state, strict=True)
    assert any(key.startswith('distill.own.branches.0.bottleneck') for key in model.state_dict())
