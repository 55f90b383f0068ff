"""LocalizationDistillation: distributions of box sides, on objects and near them."""
import math

import pytest
import torch

import hgd_det  # noqa: F401
from hgd_det.distill.registry import TERMS
from hgd_det.distill.terms.ld import LocalizationDistillation, divergence, gaussian, two_hot
from hgd_det.errors import UserError
from hgd_det.testing import make_head_spec, make_lesson, make_spec

from mmdet.models.losses.kd_loss import knowledge_distillation_kl_div_loss  # isort: skip
from mmdet.registry import MODELS  # isort: skip

B, M, C, N = 2, 12, 3, 6
BINS = torch.linspace(-3, 3, N + 1)
MAPS = {'neck[0]': (4, 3)}


def some_anchors():
    corner = torch.arange(M).float()[:, None] * torch.tensor([6., 4.])
    return torch.cat([corner, corner + torch.tensor([20., 24.])], 1)


ANCHORS = some_anchors()


def make_term(project=BINS, teacher_project=BINS, anchors=ANCHORS, teacher_anchors=None, **options):
    term = LocalizationDistillation(**options)
    heads = []
    for bins, own in ((project, anchors), (teacher_project, teacher_anchors)):
        channels = 4 if bins is None else 4 * len(bins)
        heads.append(make_head_spec(anchors if own is None else own, C, channels, bins))
    term.setup(make_spec(MAPS, MAPS, head=heads[0], teacher_head=heads[1]))
    return term


def make_batch(seed=0, batch=B, dtype=torch.float, labels=None, boxes=None, teacher=None,
               label_weights=None):
    g = torch.Generator().manual_seed(seed)
    cls_s, cls_t = torch.randn(2, batch, M, C + 1, generator=g, dtype=dtype).unbind(0)
    reg_s, reg_t = (2 * torch.randn(2, batch, M, 4 * (N + 1), generator=g, dtype=dtype)).unbind(0)
    reg_t = reg_t if teacher is None else teacher
    if labels is None:
        labels = torch.full((batch, M), C)
        labels[:, 2], labels[0, 7] = 1, 0
    boxes = [[(10., 6, 34, 30), (40., 25, 62, 50)]] * batch if boxes is None else boxes
    cls_s.requires_grad_(), reg_s.requires_grad_()
    return make_lesson(student_head=(cls_s, reg_s), teacher_head=(cls_t, reg_t), labels=labels,
                       boxes=boxes, anchors=ANCHORS, num_classes=C, label_weights=label_weights)


def softmax(values):
    top = max(values)
    powers = [math.exp(v - top) for v in values]
    return [p / sum(powers) for p in powers]


def kl(teacher, student, t):
    p, q = softmax([v / t for v in teacher]), softmax([v / t for v in student])
    return t * t * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def iou_and_diou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    cx, cy = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    return inter / union, inter / union - (dx * dx + dy * dy) / (cx * cx + cy * cy)


def reference(lesson, tau=10., t=4., vlr=(.125, .5)):
    """The docstring, with loops. Returns the three parts."""
    s, z = lesson.student.head, lesson.teacher.head
    main = [0., 0.]
    near = [0., 0.]
    classes = positives = 0
    for b in range(s.cls.shape[0]):
        for a in range(M):
            logits = s.reg[b, a].view(4, -1).tolist()
            wanted = z.reg[b, a].view(4, -1).tolist()
            k = sum(kl(wanted[d], logits[d], tau) for d in range(4)) / 4
            if lesson.targets.labels[b, a] < C:
                w = max(softmax(s.cls[b, a].tolist())[:-1])
                main[0] += w * k
                main[1] += w
                classes += kl(z.cls[b, a].tolist(), s.cls[b, a].tolist(), t)
                positives += 1
            else:
                pairs = [iou_and_diou(ANCHORS[a].tolist(), g) for g in lesson.boxes[b].tolist()]
                inside = [iou for iou, diou in pairs if vlr[0] <= diou < vlr[1]]
                if inside:
                    near[0] += max(inside) * k
                    near[1] += max(inside)
    return (main[0] / main[1] if main[1] else 0., near[0] / near[1] if near[1] else 0.,
            classes / max(1, positives))


def test_the_loss_equals_a_slow_reference_part_by_part():
    lesson = make_batch()
    values = make_term()(lesson)
    main, near, classes = reference(lesson)
    assert near > 0
    assert values['main'].item() == pytest.approx(main, rel=1e-4)
    assert values['vlr'].item() == pytest.approx(.25 * near, rel=1e-4)
    assert values['classes'].item() == pytest.approx(classes, rel=1e-4)
    assert values['loss'].item() == pytest.approx(main + .25 * near + classes, rel=1e-4)
    assert [k for k in values if 'loss' in k] == ['loss']


def test_every_option_of_the_formula_counts():
    lesson = make_batch(1)
    values = make_term(main_weight=2., vlr_weight=.5, kd_weight=3., temperature=4.,
                       kd_temperature=2., vlr=(.05, .9))(lesson)
    main, near, classes = reference(lesson, 4., 2., (.05, .9))
    assert values['loss'].item() == pytest.approx(2 * main + .5 * near + 3 * classes, rel=1e-4)
    only = make_term(vlr_weight=0, kd_weight=0)(lesson)
    assert only['loss'].item() == pytest.approx(reference(lesson)[0], rel=1e-4)


@pytest.mark.parametrize('tau, wanted', [(1., .130812), (10., .150642)])
def test_the_divergence_has_its_closed_form_values(tau, wanted):
    teacher = torch.tensor([0., math.log(3)])
    value = divergence((teacher / tau).log_softmax(-1), torch.zeros(2), tau)
    assert value.item() == pytest.approx(wanted, abs=1e-5)


def test_the_divergence_is_mmdets_summed_instead_of_averaged():
    student, teacher = torch.randn(2, 5, 4, 17).unbind(0)
    for tau in (1, 10):
        mine = divergence((teacher / tau).log_softmax(-1), student, tau)
        theirs = knowledge_distillation_kl_div_loss(
            student.flatten(0, 1), teacher.flatten(0, 1), T=tau, reduction='none')
        torch.testing.assert_close(mine, 17 * theirs.view(5, 4), rtol=1e-4, atol=1e-5)


def test_the_main_region_equals_mmdets_ld_head_on_gfl():
    """It divides by 4 only, averages over bins and scores with sigmoid; one class is like ours."""
    torch.manual_seed(0)
    n, count = 16, 6
    head = MODELS.build(dict(
        type='LDHead', num_classes=1, in_channels=8, feat_channels=32, stacked_convs=1, reg_max=n,
        anchor_generator=dict(type='AnchorGenerator', ratios=[1.], octave_base_scale=8,
                              scales_per_octave=1, strides=[8]),
        loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True),
        loss_dfl=dict(type='DistributionFocalLoss'),
        loss_ld=dict(type='KnowledgeDistillationKLDivLoss', loss_weight=1., T=10),
        loss_bbox=dict(type='GIoULoss')))
    score, logits, wanted = (torch.randn(1, 1, 2, 3), torch.randn(1, 4 * (n + 1), 2, 3),
                             torch.randn(1, 4 * (n + 1), 2, 3))
    labels = torch.tensor([[0, 1, 0, 0, 1, 1]])
    anchors = torch.tensor([[0., 0, 64, 64]]).repeat(count, 1)
    theirs = head.loss_by_feat_single(
        anchors[None], score, logits, labels, torch.ones(1, count), anchors[None], (8, 8), wanted,
        1.0)
    loss_ld, sum_w = theirs[3], theirs[4]

    def flat(x):
        return x.permute(0, 2, 3, 1).reshape(1, count, -1)
    cls = torch.cat([flat(score), torch.zeros(1, count, 1)], -1)   # softmax over (z, 0) = sigmoid
    lesson = make_lesson(student_head=(cls, flat(logits)), teacher_head=(cls, flat(wanted)),
                         labels=labels, boxes=[[(0., 0, 9, 9)]], anchors=anchors, num_classes=1)
    bins = torch.arange(n + 1.)
    spec = make_head_spec(anchors, 1, 4 * (n + 1), bins)
    term = LocalizationDistillation(vlr_weight=0, kd_weight=0)
    term.setup(make_spec(MAPS, MAPS, head=spec))
    wanted = loss_ld * (n + 1) / sum_w
    assert term(lesson)['loss'].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    lesson = make_batch()
    same = (lesson.student.head.cls, lesson.student.head.reg)
    lesson = make_lesson(student_head=same, teacher_head=tuple(x.detach() for x in same),
                         labels=lesson.targets.labels, boxes=[b.tolist() for b in lesson.boxes],
                         anchors=ANCHORS, num_classes=C)
    value = make_term()(lesson)['loss']
    value.backward()
    assert value.item() == 0 and same[1].grad.abs().max() < 1e-5


def test_the_gradient_reaches_the_student_where_the_regions_are_and_never_the_teacher():
    lesson = make_batch()
    teacher = lesson.teacher.head
    teacher.cls.requires_grad_(), teacher.reg.requires_grad_()
    term = make_term()
    term(lesson)['loss'].backward()
    assert teacher.cls.grad is None and teacher.reg.grad is None
    touched = lesson.student.head.reg.grad.abs().sum(-1) > 0
    near, _ = term._valuable(lesson)
    assert torch.equal(touched, near | lesson.targets.positive)
    assert near.any() and not (near & lesson.targets.positive).any() and not touched.all()
    # class scores learn from class scores alone: w is a constant
    assert torch.equal(lesson.student.head.cls.grad.abs().sum(-1) > 0, lesson.targets.positive)


def test_the_gradient_is_right_with_the_weights_held_fixed():
    lesson = make_batch(dtype=torch.double)
    term = make_term(temperature=3.)
    reg, cls = lesson.student.head.reg.detach(), lesson.student.head.cls.detach()

    def loss_of(student_reg):
        changed = make_lesson(
            student_head=(cls, student_reg), labels=lesson.targets.labels, anchors=ANCHORS,
            teacher_head=(lesson.teacher.head.cls, lesson.teacher.head.reg), num_classes=C,
            boxes=[b.tolist() for b in lesson.boxes])
        return term(changed)['loss']
    assert torch.autograd.gradcheck(loss_of, reg.clone().requires_grad_(), fast_mode=True)


def test_the_order_of_the_images_does_not_matter():
    lesson = make_batch(batch=3)
    order = [2, 0, 1]
    s, t = lesson.student.head, lesson.teacher.head
    other = make_lesson(student_head=(s.cls[order], s.reg[order]),
                        teacher_head=(t.cls[order], t.reg[order]),
                        labels=lesson.targets.labels[order], anchors=ANCHORS, num_classes=C,
                        boxes=[lesson.boxes[i].tolist() for i in order])
    term = make_term()
    assert term(lesson)['loss'].item() == pytest.approx(term(other)['loss'].item(), rel=1e-5)


NOTHING = torch.full((B, M), C)


@pytest.mark.parametrize('labels, boxes', [
    (NOTHING, [[], []]), (NOTHING, [[(10., 6, 34, 30)], []]), (NOTHING[:1], [[]]),
    (None, [[(10., 6, 34, 30)], []])],
    ids=['no objects or only ignored ones', 'objects without anchors', 'one image', 'one is empty'])
def test_degenerate_batches_have_a_finite_loss_with_a_graph(labels, boxes):
    lesson = make_batch(labels=labels, boxes=boxes, batch=len(boxes))
    value = make_term()(lesson)['loss']
    value.backward()
    assert torch.isfinite(value) and lesson.student.head.reg.grad is not None
    if not any(boxes) and labels is not None:
        assert value.item() == 0 and not lesson.student.head.reg.grad.any()


def test_saturated_and_half_precision_logits_stay_finite():
    for scale, dtype in ((1e4, torch.float), (1., torch.half), (6e4, torch.half)):
        g = torch.Generator().manual_seed(0)
        cls = (scale * torch.randn(2, B, M, C + 1, generator=g)).clamp(-6e4, 6e4).to(dtype)
        reg = (scale * torch.randn(2, B, M, 4 * (N + 1), generator=g)).clamp(-6e4, 6e4).to(dtype)
        cls.requires_grad_(), reg.requires_grad_()
        labels = torch.full((B, M), C)
        labels[:, 2] = 1
        lesson = make_lesson(student_head=(cls[0], reg[0]), teacher_head=(cls[1], reg[1]),
                             labels=labels, boxes=[[(10., 6, 34, 30)]] * B, anchors=ANCHORS)
        value = make_term()(lesson)['loss']
        value.backward()
        assert value.dtype == torch.float and torch.isfinite(value)
        assert torch.isfinite(reg.grad).all() and torch.isfinite(cls.grad).all()


def test_anchors_of_weight_zero_are_in_no_region():
    weights = torch.ones(B, M)
    term = make_term()
    near, _ = term._valuable(make_batch())
    image, anchor = near.nonzero()[0].tolist()
    weights[image, anchor] = 0
    weights[:, 2] = 0
    lesson = make_batch(label_weights=weights)
    term(lesson)['loss'].backward()
    silent = lesson.student.head.reg.grad.abs().sum(-1) == 0
    assert silent[image, anchor] and silent[:, 2].all() and not silent[0, 7]


def test_two_hot_and_gaussian_targets_keep_the_delta():
    deltas = torch.tensor([-3., -2.9, .25, 0., 2.999, 3., 9.])
    inside = deltas.clamp(-3, 3)
    pair = two_hot(deltas, BINS).exp()
    assert ((pair > 1e-6).sum(-1) <= 2).all()
    torch.testing.assert_close(pair.sum(-1), torch.ones(7))
    torch.testing.assert_close((pair * BINS).sum(-1), inside, rtol=0, atol=1e-5)
    assert pair[2].tolist() == pytest.approx([0, 0, 0, .75, .25, 0, 0], abs=1e-6)
    bell = gaussian(torch.tensor([0.]), BINS).exp()[0]
    wanted = [math.exp(-k * k / 2) for k in range(-3, 4)]
    assert bell.tolist() == pytest.approx([w / sum(wanted) for w in wanted])


@pytest.mark.parametrize('kind', ['two_hot', 'gaussian'])
def test_a_teacher_that_regresses_points_can_teach(kind):
    deltas = torch.randn(B, M, 4)
    term = make_term(teacher_project=None, teacher_dist=kind)
    assert term.temperature == 1
    value = term(make_batch(teacher=deltas))['main'].item()
    spread = {'two_hot': two_hot, 'gaussian': gaussian}[kind]
    own = make_term(temperature=1.)(make_batch(teacher=spread(deltas, BINS).flatten(2)))
    assert value == pytest.approx(own['main'].item(), rel=1e-5)


def test_a_two_hot_teacher_costs_the_students_dfl_less_the_entropy():
    deltas = torch.full((1, M, 4), .25)
    labels = torch.full((1, M), C)
    labels[0, 2] = 0
    lesson = make_batch(batch=1, labels=labels, teacher=deltas)
    value = make_term(teacher_project=None, teacher_dist='two_hot')(lesson)['main'].item()
    log_p = lesson.student.head.reg[0, 2].view(4, -1).log_softmax(-1)
    dfl = -(.75 * log_p[:, 3] + .25 * log_p[:, 4]).mean().item()
    assert value == pytest.approx(dfl - .562335, abs=1e-4)


def test_bins_that_differ_are_refused_with_both_named():
    with pytest.raises(UserError, match=r'student n=6, lo=-3, hi=3; teacher n=16, lo=-8, hi=8'):
        make_term(teacher_project=torch.linspace(-8, 8, 17))
    with pytest.raises(UserError, match='bins differ'):
        make_term(teacher_project=BINS + .5)


def test_impossible_pairs_are_refused_saying_how_to_go_on():
    with pytest.raises(UserError, match='DistributionSSDHead'):
        make_term(project=None)
    with pytest.raises(UserError, match="teacher_dist='two_hot'"):
        make_term(teacher_project=None)
    with pytest.raises(UserError, match='12 anchors and the teacher 11'):
        make_term(teacher_anchors=ANCHORS[:-1])
    with pytest.raises(UserError, match='differ by up to 5'):
        make_term(teacher_anchors=ANCHORS + 5)


@pytest.mark.parametrize('options, word', [
    (dict(teacher_dist='soft'), 'teacher_dist'), (dict(vlr=(.5, .1)), 'vlr'),
    (dict(teacher_dist='two_hot', temperature=10.), 'temperature=10'),
    (dict(vlr_weight=-1), 'negative'),
    (dict(kd_temperature=0), 'temperatures'), (dict(vlr=(0., .5)), 'vlr')])
def test_impossible_options_are_refused_by_name(options, word):
    with pytest.raises(UserError, match=word):
        TERMS.build(dict(type='LD', **options))
