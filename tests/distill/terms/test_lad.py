"""LabelAssignmentDistillation: which anchors the teacher picks, and that the student learns from them."""
import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmdet.models.dense_heads.paa_head import PAAHead

import hgd_det.registered  # noqa: F401
from hgd_det.distill.terms.lad import LabelAssignmentDistillation as LAD
from hgd_det.distill.terms.lad import below_mean, by_group, densest, mixture, ranks
from hgd_det.errors import UserError
from hgd_det.testing import make_batch, make_distiller, make_head_spec, make_lesson, make_spec, train_step

C, LEVELS = 3, ((8, 8, 2), (4, 4, 2))
MEANS, STDS = (0., 0, 0, 0), (.1, .1, .2, .2)


def some_anchors():
    """Two per cell, on levels of stride 8 and 16, jittered so that no two overlaps are equal."""
    g = torch.Generator().manual_seed(3)
    parts = []
    for stride, (h, w, a) in zip((8, 16), LEVELS, strict=True):
        y, x, k = torch.meshgrid(torch.arange(h), torch.arange(w), torch.arange(a), indexing='ij')
        centre = torch.stack([x, y], -1).reshape(-1, 2) * stride + stride / 2
        size = stride * (1.5 + k.reshape(-1, 1)) * (1 + .2 * torch.rand(h * w * a, 2, generator=g))
        parts.append(torch.cat([centre - size / 2, centre + size / 2], 1))
    return torch.cat(parts)


ANCHORS = some_anchors()
M = len(ANCHORS)


def make_term(head=None, teacher_head=None, **options):
    term = LAD(**options)
    term.setup(make_spec({'m': (4, 3)}, {'m': (4, 3)}, head=head or make_head_spec(ANCHORS, C),
                         teacher_head=teacher_head))
    return term


def some_boxes(seed, count):
    g = torch.Generator().manual_seed(seed)
    corner = 40 * torch.rand(count, 2, generator=g)
    return torch.cat([corner, corner + 10 + 20 * torch.rand(count, 2, generator=g)], 1)


def make(seed=0, objects=(4, 3), student_seed=0, weights=None, static=None, spread=2., dtype=torch.float,
         teacher=None, assigned=None):
    """A lesson with random heads and random objects; ``static`` are the labels learnt from, ``assigned`` what
    the head's own assignment said where that differs."""
    batch = len(objects)
    g, own = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(student_seed)
    drawn = ((spread * torch.randn(batch, M, C + 1, generator=g)).to(dtype),
             torch.randn(batch, M, 4, generator=g).to(dtype))
    student = torch.randn(batch, M, C + 1, generator=own), torch.randn(batch, M, 4, generator=own)
    boxes = [some_boxes(10 * seed + i, n) for i, n in enumerate(objects)]
    names = [torch.randint(C, (n,), generator=g) for n in objects]
    return make_lesson(student_head=student, teacher_head=teacher or drawn, boxes=boxes, box_labels=names,
                       anchors=ANCHORS, levels=LEVELS, num_classes=C, label_weights=weights,
                       assigned=assigned, labels=torch.full((batch, M), C) if static is None else static)


def retargeted(term, lesson):
    return term.retarget(lesson, lesson.targets)


# The docstring, with loops ---------------------------------------------------------------------

def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(0, width) * max(0, height)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def encoded(anchor, box):
    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
    raw = ((box[0] + box[2] - anchor[0] - anchor[2]) / 2 / w,
           (box[1] + box[3] - anchor[1] - anchor[3]) / 2 / h,
           math.log((box[2] - box[0]) / w), math.log((box[3] - box[1]) / h))
    return [r / s for r, s in zip(raw, STDS, strict=True)]


def cost_of(logits, label, deltas, wanted):
    top = max(logits)
    entropy = math.log(sum(math.exp(z - top) for z in logits)) + top - logits[label]
    apart = [abs(d - t) for d, t in zip(deltas, wanted, strict=True)]
    return entropy + sum(.5 * d * d if d < 1 else d - .5 for d in apart)


def fit(costs):
    """``[(log joint of the first, of the second)]`` for each cost."""
    share, mean, variance = [.5, .5], [min(costs), max(costs)], [1., 1.]

    def joint(x):
        return [math.log(w) - .5 * math.log(2 * math.pi * v) - (x - m) ** 2 / (2 * v)
                for w, m, v in zip(share, mean, variance, strict=True)]

    def total(pair):
        return max(pair) + math.log1p(math.exp(min(pair) - max(pair)))
    before = -math.inf
    for _ in range(100):
        pairs = [joint(x) for x in costs]
        value = sum(map(total, pairs)) / len(costs)
        for k in (0, 1):
            r = [math.exp(pair[k] - total(pair)) for pair in pairs]
            n = sum(r) + 2.2e-15
            mean[k] = sum(a * x for a, x in zip(r, costs, strict=True)) / n
            variance[k] = sum(a * (x - mean[k]) ** 2 for a, x in zip(r, costs, strict=True)) / n + 1e-6
            share[k] = n / len(costs)
        if abs(value - before) < 1e-3:
            break
        before = value
    return [(joint(x), total(joint(x))) for x in costs]


def chosen_of(candidates, select):
    """``{anchor: cost}`` of one object to the set of its positives, ``best`` left aside."""
    order = sorted(candidates, key=candidates.get)
    if select == 'mean':
        return {a for a in order if candidates[a] <= sum(candidates.values()) / len(candidates) * (1 + 1e-9)}
    fine, coarse = ([a for a in order if (a < LEVELS[0][0] ** 2 * 2) == side][:9] for side in (True, False))
    order = [a for a in order if a in fine + coarse]
    found = fit([candidates[a] for a in order])
    members = [(a, density) for a, (pair, density) in zip(order, found, strict=True)
               if pair[0] + 1e-9 >= pair[1]]
    if not members:
        return set()
    top = max(range(len(members)), key=lambda i: members[i][1])
    return {a for a, _ in members[:top + 1]}


def reference(lesson, select, least):
    labels = torch.full((lesson.batch_size, M), C)
    wanted = torch.zeros(lesson.batch_size, M, 4)
    head = lesson.teacher.head
    for i, (boxes, names) in enumerate(zip(lesson.boxes, lesson.labels, strict=True)):
        usable = [a for a in range(M) if lesson.targets.label_weights[i, a] > 0]
        objects = range(len(boxes))
        table = {(a, g): iou(ANCHORS[a].tolist(), boxes[g].tolist()) for a in usable for g in objects}
        best = {g: max(usable, key=lambda a, g=g: table[a, g]) for g in objects}
        owner = {a: max(objects, key=lambda g, a=a: table[a, g]) for a in usable if objects}
        owner = {a: g for a, g in owner.items() if table[a, g] >= least}
        for g in sorted(best, key=lambda g: table[best[g], g]):
            if table[best[g], g] > 0:
                owner[best[g]] = g
        for g, box in enumerate(boxes.tolist()):
            mine = {}
            for a in (a for a in owner if owner[a] == g):
                t = encoded(ANCHORS[a].tolist(), box)
                mine[a] = cost_of(head.cls[i, a].tolist(), names[g].item(), head.reg[i, a].tolist(), t)
            for a in chosen_of(mine, select) | ({best[g]} & mine.keys()) if mine else ():
                labels[i, a] = names[g]
                wanted[i, a] = torch.tensor(encoded(ANCHORS[a].tolist(), box))
    return labels, wanted


@pytest.mark.parametrize('select', ['gmm', 'mean'])
@pytest.mark.parametrize('seed, least', [(0, .3), (1, .1), (2, .1), (3, .2), (4, .6)])
def test_the_assignment_equals_a_slow_reference(select, seed, least):
    weights = (torch.rand(3, M, generator=torch.Generator().manual_seed(seed)) > .1).float()
    lesson = make(seed, (5, 0, 8), weights=weights)
    found = retargeted(make_term(select=select, iou=least), lesson)
    labels, wanted = reference(lesson, select, least)
    assert torch.equal(found.labels, labels)
    assert 7 < (labels < C).sum() and not (labels[1] < C).any()
    torch.testing.assert_close(found.boxes, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.box_weights, (labels < C)[..., None].expand(3, M, 4).float())
    assert found.label_weights is lesson.targets.label_weights


# Rules -----------------------------------------------------------------------------------------

def row(*costs):
    return torch.tensor([costs], dtype=torch.float64), torch.ones(1, len(costs), dtype=torch.bool)


def test_below_the_mean_are_the_first_two():
    assert below_mean(*row(1, 1.1, 5, 5.2)).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize('select', ['mean', 'gmm'])
def test_an_object_takes_the_anchors_the_teacher_finds_cheap(select):
    cost = torch.tensor([5., 1, 5.2, 1.1, .9, 5.1])
    box = (8., 8, 24, 24)
    score = torch.stack([-cost, torch.log(-torch.expm1(-cost))], -1)[None]   # CE = cost; deltas are right
    heads = dict(student_head=(score * 0, torch.zeros(1, 6, 4)), teacher_head=(score, torch.zeros(1, 6, 4)))
    lesson = make_lesson(**heads, boxes=[[box]], labels=torch.ones(1, 6).long(), num_classes=1,
                         anchors=torch.tensor([box]).expand(6, 4))
    term = make_term(head=make_head_spec(torch.tensor([box]).expand(6, 4), 1), select=select)
    found = retargeted(term, lesson).positive[0].tolist()
    assert found[0]                                # the first of equal overlaps is the object's best
    cheap = [1, 3, 4]
    if select == 'gmm':                            # up to the densest cost, that nearest to the middle
        cheap = [1, 4]
    assert [a for a in range(1, 6) if found[a]] == cheap


def test_two_clear_clusters_are_told_apart_and_each_is_a_gaussian():
    low, high = (1, 1.1, 1.2, 1.3), (6, 6.1, 6.2, 6.4)
    joint = mixture(*row(*low, *high))
    assert (joint[0] > joint[1])[0].tolist() == [True] * 4 + [False] * 4
    for k, cluster in enumerate((low, high)):
        own = torch.tensor(cluster, dtype=torch.float64)
        normal = torch.distributions.Normal(own.mean(), (own.var(unbiased=False) + 1e-6).sqrt())
        torch.testing.assert_close(joint[k, 0, 4 * k:4 * k + 4], math.log(.5) + normal.log_prob(own))
    assert densest(*row(1, 1.1, 1.15, 1.4, 6, 6.1))[0].tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize('costs, wanted', [
    ((2.,), [True]), ((.1,) * 7, [True] * 7), ((3., 3.), [True, True]), ((1., 9.), [True, False]),
    ((1., 1.1), [True, False]), ((0., 0., 0., 1e5), [True] * 3 + [False]), ((0., 1e30), [True, False])])
def test_degenerate_costs_have_a_choice(costs, wanted):
    assert densest(*row(*costs))[0].tolist() == wanted
    assert below_mean(*row(*costs))[0].tolist() == wanted


def test_rows_do_not_see_each_other_nor_what_is_not_valid():
    g = torch.Generator().manual_seed(0)
    costs = torch.rand(20, 12, generator=g, dtype=torch.float64).mul(8).sort(1)[0]
    lengths = torch.randint(1, 13, (20,), generator=g)
    valid = torch.arange(12) < lengths[:, None]
    for rule in (densest, below_mean):
        together = rule(costs.masked_fill(~valid, 777), valid)
        assert not (together & ~valid).any()
        for r, n in enumerate(lengths.tolist()):
            assert torch.equal(together[r, :n], rule(costs[r:r + 1, :n], valid[r:r + 1, :n])[0])


def test_ranks_count_within_a_group():
    values, groups = torch.tensor([3., 1, 2, 5, 4, 1]), torch.tensor([7, 7, 2, 2, 7, 2])
    assert ranks(values, groups).tolist() == [1, 0, 1, 2, 2, 0]
    assert ranks(values[:0], groups[:0]).tolist() == []
    assert by_group(below_mean, values, groups).tolist() == [False, True, True, False, False, True]


def test_the_choice_is_that_of_paa_with_scikit_learn():
    pytest.importorskip('sklearn')
    g = torch.Generator().manual_seed(0)
    count, objects, sizes = 400, 12, (250, 150)
    cost = (2 * torch.rand(count, generator=g, dtype=torch.float64)
            + 4 * (torch.rand(count, generator=g) > .6) * torch.rand(count, generator=g, dtype=torch.float64))
    owner = torch.randint(objects, (count,), generator=g)
    level = (torch.arange(count) >= sizes[0]).long()
    mine = ranks(cost, owner * 2 + level) < 9
    mine[mine.clone()] = by_group(densest, cost[mine], owner[mine])
    paa = SimpleNamespace(topk=9, covariance_type='diag', num_classes=1)
    paa.gmm_separation_scheme = partial(PAAHead.gmm_separation_scheme, paa)
    labels, _, _, number = PAAHead.paa_reassign(
        paa, cost, torch.zeros(count, dtype=torch.long), torch.ones(count), torch.ones(count, 4),
        torch.arange(count), owner, [torch.zeros(n, 4) for n in sizes])
    assert number == mine.sum() > objects
    assert torch.equal(mine, labels == 0)


# Candidates ------------------------------------------------------------------------------------

def test_an_objects_best_anchor_is_its_own_below_the_threshold_and_against_a_better_match():
    anchors = torch.tensor([[0., 0, 20, 20], [40., 40, 50, 50], [80., 80, 90, 90]])
    boxes = [(0., 0, 20, 19), (0., 0, 19, 14), (41., 41, 45, 44), (200., 200, 210, 210)]
    # the first two have the same best anchor, the third overlaps its own by .12, the fourth none at all
    heads = (torch.zeros(1, 3, C + 1), torch.zeros(1, 3, 4))
    lesson = make_lesson(student_head=heads, teacher_head=heads, boxes=[boxes], box_labels=[[0, 1, 2, 0]],
                         anchors=anchors, labels=torch.full((1, 3), C))
    found = retargeted(make_term(head=make_head_spec(anchors, C)), lesson)
    assert found.labels.tolist() == [[0, 2, C]]
    assert torch.isfinite(found.boxes).all()
    wanted = torch.tensor(encoded([40., 40, 50, 50], [41., 41, 45, 44]))
    torch.testing.assert_close(found.boxes[0, 1], wanted, rtol=1e-5, atol=1e-5)


def test_a_best_anchor_is_kept_however_dear():
    lesson = make()
    term = make_term()
    before = retargeted(term, lesson)
    image, anchor, _, best = term._candidates(lesson, lesson.targets.label_weights > 0)
    assert best.sum() == 6  # two objects share theirs
    lesson.teacher.head.cls[image[best], anchor[best]] = torch.tensor([0., 0, 0, 1e4])
    after = retargeted(term, lesson)
    assert after.positive[image[best], anchor[best]].all()
    assert not torch.equal(before.labels, after.labels)


def test_anchors_of_weight_zero_are_no_candidates_and_keep_it():
    weights = torch.ones(2, M)
    image, anchor = retargeted(make_term(), make()).positive.nonzero().T
    weights[image, anchor] = 0
    found = retargeted(make_term(), make(weights=weights))
    assert (found.labels[image, anchor] == C).all() and not found.label_weights[image, anchor].any()
    assert found.positive.any()
    nothing = retargeted(make_term(), make(weights=torch.zeros(2, M)))
    assert not nothing.positive.any()


# What the labels depend on ---------------------------------------------------------------------

@pytest.mark.parametrize('select', ['gmm', 'mean'])
def test_the_students_scores_never_change_the_labels_and_the_teachers_do(select):
    term = make_term(select=select)
    one, two = (retargeted(term, make(student_seed=seed)) for seed in (0, 1))
    assert torch.equal(one.labels, two.labels) and torch.equal(one.boxes, two.boxes)
    lesson = make()
    other = make_lesson(student_head=(lesson.student.head.cls, lesson.student.head.reg),
                        teacher_head=(lesson.teacher.head.cls.flip(1), lesson.teacher.head.reg.flip(1)),
                        boxes=lesson.boxes, box_labels=lesson.labels, anchors=ANCHORS, levels=LEVELS,
                        labels=lesson.targets.labels, num_classes=C)
    assert not torch.equal(one.labels, retargeted(term, other).labels)


def test_the_order_of_the_images_does_not_matter():
    lesson, order = make(objects=(3, 0, 5)), [2, 0, 1]
    s, t = lesson.student.head, lesson.teacher.head
    other = make_lesson(student_head=(s.cls[order], s.reg[order]), teacher_head=(t.cls[order], t.reg[order]),
                        boxes=[lesson.boxes[i] for i in order], box_labels=[lesson.labels[i] for i in order],
                        anchors=ANCHORS, levels=LEVELS, labels=lesson.targets.labels, num_classes=C)
    assert torch.equal(retargeted(make_term(), lesson).labels[order], retargeted(make_term(), other).labels)


@pytest.mark.parametrize('select', ['gmm', 'mean'])
@pytest.mark.parametrize('objects', [(0,), (0, 0), (1,)])
def test_images_without_objects_are_all_background(select, objects):
    lesson = make(objects=objects)
    term = make_term(select=select)
    found = retargeted(term, lesson)
    assert bool(found.positive.any()) == (objects == (1,))
    assert all(torch.isfinite(v) for v in term(lesson).values())


@pytest.mark.parametrize('dtype, spread', [(torch.half, 2.), (torch.half, 1e4), (torch.float, 1e8)])
def test_saturated_and_half_precision_teachers_choose_too(dtype, spread):
    for select in ('gmm', 'mean'):
        lesson = make(spread=spread, dtype=dtype)
        found = retargeted(make_term(select=select), lesson)
        assert found.positive.sum() >= 6 and torch.isfinite(found.boxes).all()


def test_a_teacher_with_distributions_costs_by_their_mean():
    bins = torch.linspace(-4, 4, 9)
    lesson = make()
    points = lesson.teacher.head.reg.clamp(-4, 4)
    place = points + 4
    low = place.floor().clamp(max=7)
    probs = torch.zeros(*points.shape, 9).scatter_(-1, low.long()[..., None], (1 - place + low)[..., None])
    probs.scatter_(-1, low.long()[..., None] + 1, (place - low)[..., None])
    logits = probs.clamp(min=1e-30).log().flatten(2)
    spread, plain = (make(teacher=(lesson.teacher.head.cls, reg)) for reg in (logits, points))
    term = make_term(teacher_head=make_head_spec(ANCHORS, C, 36, bins))
    assert torch.equal(retargeted(term, spread).labels, retargeted(make_term(), plain).labels)


def test_the_log_tells_what_changed():
    lesson, term = make(), make_term()
    found = retargeted(term, lesson)
    static = found.labels.clone()
    image, anchor = found.positive.nonzero().T
    static[image[0], anchor[0]] = (static[image[0], anchor[0]] + 1) % C      # another class
    static[0, (static[0] == C).nonzero()[0]] = 0                             # no longer positive
    moved = retargeted(term, make(static=static))
    n, values = len(image), term(make(static=moved.labels, assigned=make(static=static).targets))
    assert values['positives'] == n and values['before'] == n + 1
    assert values['kept'].item() == pytest.approx((n - 1) / (n + 1))
    assert not any('loss' in k for k in values)


# In a distiller --------------------------------------------------------------------------------

def pupil(**options):
    return make_distiller(dict(lad=dict(type='LAD', **options)))


@pytest.mark.parametrize('objects', [(2, 2), (0, 3), (0, 0)])
def test_the_static_choice_is_a_no_op_to_the_bit(objects):
    batch = make_batch(objects=objects)
    plain, same = make_distiller({}), pupil(select='static')
    for model in (plain, same):
        model.optimizer = torch.optim.SGD(model.parameters(), .01)
    for _ in range(2):
        one, two = (train_step(m, batch, m.optimizer)[1] for m in (plain, same))
        assert (one['loss_cls'], one['loss_bbox']) == (two['loss_cls'], two['loss_bbox'])
    mine, theirs = plain.state_dict(), same.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in mine.items())


@pytest.mark.parametrize('select', ['gmm', 'mean'])
def test_the_student_trains_on_the_teachers_choice_and_the_teacher_stays(select):
    model, plain = pupil(select=select), make_distiller({})
    before = copy.deepcopy(model.teacher.detector.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), .01)
    log, alone = train_step(model, make_batch(), optimizer)[1], train_step(plain, make_batch())[1]
    assert log['lad_positives'] >= 4 and log['loss_bbox'] != alone['loss_bbox']
    assert log['loss'] == pytest.approx(log['loss_cls'] + log['loss_bbox']) and log['loss_lad'] == 0
    assert all(p.grad is None for p in model.teacher.detector.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.detector.state_dict().items())
    assert any(p.grad.abs().sum() > 0 for p in model.student.parameters())
    for objects in ((0, 0), (0, 1)):
        assert math.isfinite(train_step(model, make_batch(objects=objects))[1]['loss'])


def test_with_soft_labels_those_look_at_the_teachers_choice():
    model = make_distiller(dict(lad=dict(type='LAD'), kd=dict(type='LogitKD', region='pos')))
    alone = make_distiller(dict(kd=dict(type='LogitKD', region='pos')))
    log, other = train_step(model, make_batch())[1], train_step(alone, make_batch())[1]
    assert log['kd_raw'] > 0 and log['kd_raw'] != other['kd_raw']


def test_it_counts_only_in_its_time():
    model, plain = pupil(warmup=10), make_distiller({})
    log, alone = train_step(model, make_batch())[1], train_step(plain, make_batch())[1]
    assert log['loss_bbox'] == alone['loss_bbox'] and 'lad_kept' not in log


# Refusals --------------------------------------------------------------------------------------

@pytest.mark.parametrize('options, said', [
    (dict(select='best'), "select='best'; choose one of 'gmm', 'mean', 'static'"),
    (dict(iou=0), 'iou=0; an overlap'), (dict(iou=1.), 'iou=1.0'), (dict(per_level=0), 'per_level=0')])
def test_impossible_options_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        LAD(**options)


def test_heads_whose_anchors_it_cannot_judge_are_refused():
    with pytest.raises(UserError, match='anchors differ by up to 5 pixels'):
        make_term(teacher_head=make_head_spec(ANCHORS + 5, C))
    with pytest.raises(UserError, match='no softmax scores'):
        make_term(head=make_head_spec(None, C))
    other = make_head_spec(ANCHORS, C)
    other.coder['type'] = 'TBLRBBoxCoder'
    with pytest.raises(UserError, match='encoded by TBLRBBoxCoder'):
        make_term(head=other)
    with pytest.raises(UserError, match='LAD: the teacher head'):
        make_term(teacher_head=make_head_spec(ANCHORS, C, decoded=True))
