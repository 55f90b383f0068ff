"""ONE: heads on one trunk, a gate per image, and the ensemble as everybody's teacher."""
import copy
import dataclasses
import math

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

import hgd_det.registered  # noqa: F401
from hgd_det.distill.functional import divergence
from hgd_det.distill.lesson import HeadOutput
from hgd_det.distill.registry import TERMS
from hgd_det.distill.schedule import Progress
from hgd_det.distill.taps import TapError
from hgd_det.distill.terms.one import ONE, Gate, ensemble
from hgd_det.errors import UserError
from hgd_det.testing import (
    make_batch,
    make_distiller,
    make_head_spec,
    make_lesson,
    make_spec,
    tiny_ssd,
    train_step,
)

C, A = 3, 4         # classes; anchors per cell of the one level


@pytest.fixture(autouse=True)
def in_mmdets_scope():
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')


class Head(nn.Module):
    """As much of a dense head as the term asks for, on one map of four channels."""
    num_base_priors, init_cfg = [A], None

    def __init__(self):
        super().__init__()
        self.cls, self.reg = nn.Conv2d(4, A * (C + 1), 1), nn.Conv2d(4, A * 4, 1)

    def forward(self, maps):
        return [self.cls(maps[0])], [self.reg(maps[0])]


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 6, 3, stride=8, padding=1)
        self.neck = nn.Conv2d(6, 4, 1)
        self.bbox_head = Head()

    def extract_feat(self, image):
        return (self.neck(self.backbone(image)),)


def make_term(dtype=torch.float64, seed=0, bins=None, **options) -> ONE:
    torch.manual_seed(seed)
    term = TERMS.build(dict(type='ONE', **options))
    head = make_head_spec(torch.rand(9 * A, 4), C, project=bins)
    spec = make_spec({'neck': (4, 3)}, {'neck': (4, 3)}, input_size=24, head=head)
    term.setup(dataclasses.replace(spec, models=(Detector(), None), teacher=None))
    for parameter in term.parameters():     # heads that disagree, and a gate that chooses
        nn.init.normal_(parameter)
    return term.to(dtype)


def make_maps(batch=2, seed=0, dtype=torch.float64, size=3):
    g = torch.Generator().manual_seed(seed)
    shapes = dict(neck=(4, size, size), backbone=(6, size, size), cls=(size * size * A, C + 1),
                  reg=(size * size * A, 4))
    return {k: torch.randn(batch, *s, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
            for k, s in shapes.items()}


def make_labels(batch=2, size=3):
    labels = torch.full((batch, size * size * A), C)
    for image in range(batch):
        labels[image, 2 * image:2 * image + 2] = torch.tensor([image % C, 1])
    return labels


def lesson_of(maps, labels=None, **more):
    size, batch = maps['neck'].shape[-1], len(maps['neck'])
    labels = make_labels(batch, size) if labels is None else labels
    g = torch.Generator().manual_seed(5)
    boxes = torch.randn(2 * len(labels), labels.shape[1], 4, generator=g)[:len(labels)].to(maps['cls'].dtype)
    more.setdefault('iteration', 100)
    return make_lesson({k: maps[k] for k in ('neck', 'backbone')}, labels=labels, num_classes=C,
                       student_head=(maps['cls'], maps['reg']), levels=[(size, size, A)],
                       **{'box_targets': boxes, **more})


# A slow reference ------------------------------------------------------------------------------

def soft(row):
    powers = [math.exp(v - max(row)) for v in row]
    return [p / sum(powers) for p in powers]


def slow_gate(term, x):
    """One image's shares; x is (channels, H, W)."""
    pooled = [sum(channel) / len(channel) for channel in x.flatten(1).tolist()]
    weights, bias = term.gate.linear.weight.tolist(), term.gate.linear.bias.tolist()
    values = [sum(w * p for w, p in zip(row, pooled, strict=True)) + b
              for row, b in zip(weights, bias, strict=True)]
    if isinstance(term.gate.norm, nn.GroupNorm):
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
        values = [(v - mean) / spread * w + b for v, w, b in zip(
            values, term.gate.norm.weight.tolist(), term.gate.norm.bias.tolist(), strict=True)]
    return soft([max(v, 0.) for v in values])


def slow_outputs(head, x):
    """One image's logits and deltas per anchor: cells row by row, A anchors in each."""
    out = []
    for conv, numbers in ((head.cls, C + 1), (head.reg, 4)):
        weights, bias = conv.weight[..., 0, 0].tolist(), conv.bias.tolist()
        rows = []
        for y in range(x.shape[1]):
            for z in range(x.shape[2]):
                cell = x[:, y, z].tolist()
                values = [sum(w * v for w, v in zip(row, cell, strict=True)) + b
                          for row, b in zip(weights, bias, strict=True)]
                rows += [values[a * numbers:(a + 1) * numbers] for a in range(A)]
        out.append(rows)
    return out


def mined(logits, labels):
    objects = [a for a, label in enumerate(labels) if label < C]
    background = sorted((a for a, label in enumerate(labels) if label == C),
                        key=lambda a: soft(logits[a])[C])
    return objects, objects + background[:3 * len(objects)]


def slow_detection(cls, reg, labels, boxes):
    objects, region = mined(cls, labels)
    total = -sum(math.log(soft(cls[a])[labels[a]]) for a in region)
    for a in objects:
        for delta, wanted in zip(reg[a], boxes[a], strict=True):
            off = abs(delta - wanted)
            total += off * off / 2 if off < 1 else off - .5
    return total


def slow(term, maps, lesson, temperature):
    """The docstring: own losses of the further branches and the ensemble, and KL without the ramp."""
    labels, boxes = lesson.targets.labels.tolist(), lesson.targets.boxes.tolist()
    aside = kl = 0.
    for image in range(len(labels)):
        gate = slow_gate(term, maps['backbone'][image])
        outputs = [(maps['cls'][image].tolist(), maps['reg'][image].tolist())]
        outputs += [slow_outputs(branch, maps['neck'][image]) for branch in term.branches]
        together = [[[sum(g * out[part][a][k] for g, out in zip(gate, outputs, strict=True))
                      for k in range(len(outputs[0][part][a]))] for a in range(len(labels[image]))]
                    for part in (0, 1)]
        for cls, reg in [*outputs[1:], together]:
            aside += slow_detection(cls, reg, labels[image], boxes[image])
        for a in mined(together[0], labels[image])[1]:
            teacher = soft([v / temperature for v in together[0][a]])
            for cls, _ in outputs:
                mine = soft([v / temperature for v in cls[a]])
                kl += sum(p * math.log(p / q) for p, q in zip(teacher, mine, strict=True))
    positives = max(1, sum(label < C for row in labels for label in row))
    return aside / positives, temperature ** 2 * kl / positives


@pytest.mark.parametrize('options', [dict(), dict(gate_norm='none'), dict(branches=2, gate_norm='none'),
                                     dict(branches=4, temperature=1.)])
def test_it_equals_loops_over_images_anchors_and_branches(options):
    term, maps = make_term(**options), make_maps()
    lesson = lesson_of(maps)
    out = term(lesson)
    aside, kl = slow(term, maps, lesson, options.get('temperature', 3.))
    assert out['loss'].item() == pytest.approx(kl, rel=1e-6) and kl > .1
    assert out['aside_loss'].item() == pytest.approx(aside, rel=1e-6)


# The parts -------------------------------------------------------------------------------------

def test_an_ensemble_is_the_gated_sum_of_logits_and_deltas():
    logits = [torch.tensor([[row]]) for row in ([4., 0], [0, 4.], [2., 2])]
    heads = [HeadOutput(z, 10 * z, ((1, 1, 1),)) for z in logits]
    together = ensemble(heads, torch.tensor([[.5, .25, .25]]))
    assert together.cls.flatten().tolist() == [2.5, 1.5] and together.reg.flatten().tolist() == [25, 15]
    assert together.levels == heads[0].levels


def test_every_image_has_shares_of_its_own():
    heads = [HeadOutput(torch.full((2, 3, 2), v), torch.zeros(2, 3, 4), ((1, 3, 1),)) for v in (1., 2.)]
    together = ensemble(heads, torch.tensor([[1., 0], [0, 1]]))
    assert (together.cls[0] == 1).all() and (together.cls[1] == 2).all()


@pytest.mark.parametrize('passed, wanted', [(0, .006738), (40, .286505), (80, 1), (300, 1)])
def test_the_ramp_has_the_published_values(passed, wanted):
    assert ONE(rampup=80 / 300).ramp(passed / 300) == pytest.approx(wanted, abs=1e-6)


def test_the_ramp_scales_kl_and_nothing_else():
    term, maps = make_term(), make_maps()
    begin, middle, end = (term(lesson_of(maps, iteration=i, total=1000)) for i in (0, 135, 270))
    assert begin['aside_loss'] == middle['aside_loss'] == end['aside_loss'] and end['ramp'] == 1
    assert (begin['loss'] / end['loss']).item() == pytest.approx(.006738, abs=1e-6)
    assert (middle['loss'] / end['loss']).item() == pytest.approx(.286505, abs=1e-6)
    assert make_term(rampup=0)(lesson_of(maps, iteration=0))['loss'] == end['loss']


@pytest.mark.parametrize('norm', ['group', 'none'])
@pytest.mark.parametrize('batch', [1, 3])
def test_a_gate_gives_each_image_shares_that_sum_to_one(norm, batch):
    torch.manual_seed(0)
    gate, x = Gate(6, 3, norm), torch.randn(batch, 6, 5, 5, requires_grad=True)
    shares = gate(x)
    assert shares.shape == (batch, 3) and torch.allclose(shares.sum(1), torch.ones(batch))
    shares[:, 0].sum().backward()
    assert x.grad.isfinite().all() and gate.linear.weight.grad.abs().max() > 0
    torch.testing.assert_close(gate(x[:1]), shares[:1])     # no other image has a say


def test_a_gate_that_sees_nothing_is_uniform():
    assert Gate(6, 3)(torch.zeros(2, 6, 1, 1)).flatten().tolist() == pytest.approx([1 / 3] * 6)


def test_mmdets_kl_loss_is_the_same_but_for_a_mean_over_the_classes():
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss
    teacher, student = torch.randn(2, 50, 4).unbind(0)
    theirs = KnowledgeDistillationKLDivLoss(reduction='sum', T=3)(student, teacher) * 4
    ours = 9 * divergence(teacher / 3, student / 3).sum()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


# Who learns from what --------------------------------------------------------------------------

def test_equal_branches_have_nothing_to_tell_each_other():
    term, maps = make_term(), make_maps()
    head = Head().double()
    for branch in term.branches:
        branch.load_state_dict(head.state_dict())
    cls, reg = head([maps['neck']])
    flat = dict(maps, cls=cls[0].permute(0, 2, 3, 1).reshape(2, -1, C + 1),
                reg=reg[0].permute(0, 2, 3, 1).reshape(2, -1, 4))
    out = term(lesson_of(flat))
    assert out['loss'].item() == pytest.approx(0, abs=1e-12)
    assert out['aside_loss'].item() == pytest.approx(3 * out['ensemble'].item(), rel=1e-9)
    assert term(lesson_of(maps))['loss'] > .1


def test_the_distillation_has_the_gradient_of_a_constant_teacher():
    term, maps = make_term(), make_maps()
    lesson = lesson_of(maps)
    term(lesson)['loss'].backward()
    further = [branch([maps['neck']])[0][0].permute(0, 2, 3, 1).reshape(2, -1, C + 1)
               for branch in term.branches]
    heads = [HeadOutput(z, maps['reg'], ()) for z in (maps['cls'], *further)]
    teacher = ensemble(heads, term.gate(maps['backbone'])).cls
    wanted = 3 * ((maps['cls'] / 3).softmax(-1) - (teacher / 3).softmax(-1)) / lesson.targets.num_positive
    chosen = maps['cls'].grad.abs().sum(-1) > 0
    assert chosen.sum(1).tolist() == [8, 8]             # two objects and six negatives in each image
    torch.testing.assert_close(maps['cls'].grad[chosen], wanted[chosen], check_dtype=False)
    assert term.gate.linear.weight.grad is None and maps['backbone'].grad is None and maps['reg'].grad is None
    assert all(b.cls.weight.grad.abs().max() > 0 and b.reg.weight.grad is None for b in term.branches)


def test_the_ensembles_detection_loss_trains_gate_trunk_and_every_branch():
    term, maps = make_term(), make_maps()
    term(lesson_of(maps))['aside_loss'].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in term.parameters())
    assert all(x.grad.abs().max() > 0 for x in maps.values())


def test_gradcheck():
    term, maps = make_term(), make_maps(batch=1, size=2)
    names = list(maps)

    def loss(*tensors):
        return term(lesson_of(dict(zip(names, tensors, strict=True))))['aside_loss']
    assert torch.autograd.gradcheck(loss, tuple(maps.values()))
    teacher, student = torch.randn(2, 5, C + 1, dtype=torch.float64).unbind(0)
    assert torch.autograd.gradcheck(lambda s: divergence(teacher, s), student.clone().requires_grad_())


def test_the_order_of_the_images_does_not_matter():
    term, maps = make_term(), make_maps(batch=3)
    turned = [2, 0, 1]
    labels, boxes = make_labels(3), torch.randn(3, 9 * A, 4, dtype=torch.float64)
    one = term(lesson_of(maps, labels, box_targets=boxes))
    maps = {k: v[turned] for k, v in maps.items()}
    other = term(lesson_of(maps, labels[turned], box_targets=boxes[turned]))
    for key in ('loss', 'aside_loss', 'gate_0', 'gate_2'):
        assert torch.allclose(one[key], other[key])


def test_boxes_as_distributions_are_compared_by_their_mean():
    term = make_term(bins=torch.linspace(-2, 2, 5))
    for branch in term.branches:
        branch.reg = nn.Conv2d(4, A * 4 * 5, 1).double()
    maps = make_maps()
    maps['reg'] = torch.randn(2, 9 * A, 20, dtype=torch.float64, requires_grad=True)
    out = term(lesson_of(maps))
    out['aside_loss'].backward()
    assert out['aside_loss'].isfinite() and maps['reg'].grad.abs().max() > 0
    assert 'bins' not in term.state_dict()


# Odd batches -----------------------------------------------------------------------------------

@pytest.mark.parametrize('labels, weights', [
    (torch.full((2, 9 * A), C), None), (make_labels(), torch.zeros(2, 9 * A))], ids=['background', 'ignored'])
def test_a_batch_without_objects_costs_exactly_nothing(labels, weights):
    term, maps = make_term(), make_maps()
    out = term(lesson_of(maps, labels, label_weights=weights))
    (out['loss'] + out['aside_loss']).backward()
    assert out['loss'] == 0 and out['aside_loss'] == 0
    gradients = [t.grad for t in (*maps.values(), *term.parameters())]
    assert all(g is not None and g.abs().max() == 0 for g in gradients)


def test_an_image_without_objects_adds_nothing():
    term, maps = make_term(), make_maps()
    labels = make_labels()
    labels[1] = C
    both = term(lesson_of(maps, labels))
    first = term(lesson_of({k: v[:1] for k, v in maps.items()}, labels[:1]))
    assert torch.allclose(both['loss'], first['loss'])
    assert torch.allclose(both['aside_loss'], first['aside_loss'])


@pytest.mark.parametrize('size', [1, 3])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_one_image_of_saturated_values_in_any_precision_stays_finite(dtype, size):
    term, maps = make_term(torch.float32), make_maps(batch=1, dtype=torch.float32, size=size)
    maps = {k: (6e4 * x.detach().sign()).to(dtype).requires_grad_() for k, x in maps.items()}
    maps['reg'] = maps['reg'].detach().div(1e4).requires_grad_()
    out = term(lesson_of(maps))
    for key in ('loss', 'aside_loss'):
        assert out[key].dtype == torch.float32 and out[key].isfinite() and out[key] > 0
    (out['loss'] + out['aside_loss']).backward()
    assert all(t.grad.isfinite().all() for t in maps.values())


# In a distiller --------------------------------------------------------------------------------

def make_model(student=None, **options):
    return make_distiller(dict(one=dict(type='ONE', **options)), student=student, teacher=False)


def test_it_finds_the_heads_maps_in_order_and_gates_on_fc7():
    term = make_model().distill['one']
    assert term.inputs == [f'neck[{i}]' for i in range(4)] and term.gate_tap == 'backbone[1]'
    assert term.gate.linear.weight.shape == (3, 64) and len(term.branches) == 2
    other = make_model(gate='neck[3]', branches=5).distill['one']
    assert other.gate.linear.weight.shape == (5, 16) and other.student_taps[-1] == 'neck[3]'


def test_branches_start_with_weights_of_their_own():
    model = make_model()
    heads = [model.student.bbox_head, *model.distill['one'].branches]
    weights = [h.cls_convs[0][0].weight for h in heads]
    assert len({w.sum().item() for w in weights}) == 3
    assert max(w.std().item() for w in weights) < 1.2 * min(w.std().item() for w in weights)
    bare = make_model(dict(tiny_ssd(), bbox_head=dict(tiny_ssd()['bbox_head'], init_cfg=None)))
    one, two = bare.distill['one'].branches
    assert not torch.equal(one.reg_convs[1][0].weight, two.reg_convs[1][0].weight)


def test_a_branch_that_is_the_students_head_has_its_loss():
    model = make_model()
    for branch in model.distill['one'].branches:
        branch.load_state_dict(model.student.bbox_head.state_dict())
    _, log = train_step(model, make_batch())
    detection = log['loss_cls'] + log['loss_bbox']
    assert log['loss_one_aside'] == pytest.approx(3 * detection, rel=1e-4)
    assert log['one_ensemble'] == pytest.approx(detection, rel=1e-4)
    assert log['one_raw'] == pytest.approx(0, abs=1e-6)


def test_a_further_branchs_loss_is_what_its_own_head_computes():
    model = make_model(branches=2, gate_norm='none')
    _, log = train_step(model, make_batch())
    data = model.data_preprocessor(make_batch(), True)
    with torch.no_grad():
        maps = copy.deepcopy(model.student).extract_feat(data['inputs'])
        own = model.distill['one'].branches[0].loss(maps, data['data_samples'])
    own = sum(sum(v).item() for v in own.values())
    assert log['loss_one_aside'] - log['one_ensemble'] == pytest.approx(own, rel=1e-4)


def test_the_weight_scales_the_distillation_alone():
    half, full = make_model(weight=.5), make_model()
    for model in (half, full):
        model.progress = Progress(50, 100)
    (total, less), (_, more) = train_step(half, make_batch()), train_step(full, make_batch())
    assert less['loss_one_aside'] == more['loss_one_aside'] and more['loss_one'] > 0
    assert less['loss_one'] == pytest.approx(more['loss_one'] / 2, rel=1e-6)
    parts = less['loss_cls'] + less['loss_bbox'] + less['loss_one_aside'] + less['loss_one']
    assert total.item() == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize('batch', [1, 2])
def test_a_step_changes_trunk_branches_and_gate_and_logs_the_shares(batch):
    model = make_model(tiny_ssd(with_bn=False))
    model.progress = Progress(50, 100)
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    _, log = train_step(model, make_batch(batch), torch.optim.AdamW(model.parameters(), 1e-3))
    moved = {k for k, p in model.named_parameters()
             if p.grad.abs().max() > 0 and not torch.equal(p, before[k])}
    parts = ['student.backbone', 'student.neck', 'student.bbox_head.cls_convs', 'student.bbox_head.reg_convs']
    parts += [f'distill.one.branches.{i}.{kind}_convs' for i in (0, 1) for kind in ('cls', 'reg')]
    assert all(any(k.startswith(part) for k in moved) for part in parts)
    assert {f'distill.one.gate.{k}' for k in ('linear.weight', 'linear.bias', 'norm.weight')} <= moved
    assert sum(log[f'one_gate_{i}'] for i in range(3)) == pytest.approx(1, rel=1e-5)
    assert all(math.isfinite(v) for v in log.values())


@pytest.mark.parametrize('objects', [[0, 0], [0], [0, 2]])
def test_batches_with_few_objects_or_none_train_on(objects):
    model = make_model(tiny_ssd(with_bn=False))
    total, _ = train_step(model, make_batch(len(objects), objects=objects),
                          torch.optim.AdamW(model.parameters(), 1e-3))
    assert total.isfinite() and all(p.isfinite().all() for p in model.parameters())
    assert all(p.grad is not None for p in model.distill.parameters())


def test_what_is_exported_is_the_plain_student():
    model, plain = make_model(), MODELS.build(tiny_ssd())
    assert any(k.startswith('distill.one.branches.1.') for k in model.state_dict())
    state = {k: v for k, v in model.state_dict().items() if not k.startswith('distill.')}
    plain.load_state_dict(state, strict=True)
    assert list(state) == list(plain.state_dict())


def test_the_student_starts_as_it_would_alone():
    one, alone = make_model().student.state_dict(), make_distiller({}, teacher=False).student.state_dict()
    assert all(torch.equal(v, alone[k]) for k, v in one.items())


# Refusals --------------------------------------------------------------------------------------

@pytest.mark.parametrize('wrong, said', [
    (dict(branches=1), 'at least 2'), (dict(temperature=0), 'above 0'), (dict(rampup=1.5), 'from 0 to 1'),
    (dict(rampup=-.1), 'from 0 to 1'), (dict(gate_norm='batch'), "choose one of 'group', 'none'"),
    (dict(branches=2), "use gate_norm='none'")])
def test_impossible_options_are_refused(wrong, said):
    with pytest.raises(UserError, match=said):
        ONE(**wrong)


def test_a_gate_that_is_no_map_is_refused():
    with pytest.raises(TapError, match=r'neck has 4 outputs, there is no \[7\]'):
        make_model(gate='neck[7]')
    with pytest.raises(TapError, match="'backbone.fc7' is no module"):
        make_model(gate='backbone.fc7')
    vectors = Detector()
    vectors.neck = nn.Sequential(nn.Flatten())
    spec = make_spec({'neck': (4, 3)}, {}, input_size=24, head=make_head_spec(torch.rand(4, 4), C))
    with pytest.raises(UserError, match="gate='neck' is no map"):
        ONE(gate='neck').setup(dataclasses.replace(spec, models=(vectors, None)))


def test_heads_of_another_kind_are_refused():
    spec = make_spec({'neck': (4, 3)}, {}, head=make_head_spec(None))
    with pytest.raises(UserError, match='ONE: the student head SSDHead has no softmax scores'):
        ONE().setup(dataclasses.replace(spec, models=(Detector(), None)))
