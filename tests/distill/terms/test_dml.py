import copy
import math

import pytest
import torch
from torch import Tensor

from hgd_det.distill.lesson import HeadOutput
from hgd_det.distill.terms.dml import DML
from hgd_det.errors import UserError
from hgd_det.testing import make_batch, make_distiller, make_lesson, make_scores, tiny_ssd, train_step

pytestmark = pytest.mark.thorough

BIG = 1e4


def compare(student: Tensor, peer: Tensor, labels: Tensor, deltas=None, num_classes=None, **options) -> dict:
    """The term on two heads' scores, and encoded boxes where there are some."""
    deltas = deltas or [torch.zeros(*student.shape[:2], 4)] * 2
    lesson = make_lesson(student_head=(student, deltas[0]), labels=labels, num_classes=num_classes)
    term = DML(**options)
    term.sigmoid = student.shape[-1] == num_classes
    return term.compare(lesson, HeadOutput(peer, deltas[1], ((1, student.shape[1], 1),)))


def soft(row: list[float]) -> list[float]:
    powers = [math.exp(v - max(row)) for v in row]
    return [p / sum(powers) for p in powers]


def binary(value: float) -> tuple[float, float]:
    return 1 / (1 + math.exp(-value)), 1 / (1 + math.exp(value))


def hard_set(logits: Tensor, labels: Tensor, sigmoid: bool) -> set[tuple[int, int]]:
    """SSD's own set for one detector, by sorting each image's background anchors."""
    classes, found = logits.shape[-1] - (not sigmoid), set()
    for image, wanted in enumerate(labels.tolist()):
        objects = [a for a, label in enumerate(wanted) if label < classes]
        sure = [math.prod(binary(v)[1] for v in row) if sigmoid else soft(row)[-1]
                for row in logits[image].tolist()]
        hardest = sorted(set(range(len(wanted))) - set(objects), key=sure.__getitem__)
        found |= {(image, a) for a in objects + hardest[:3 * len(objects)]}
    return found


def slow(teaching: Tensor, learning: Tensor, labels: Tensor, temperature: float, sigmoid: bool) -> float:
    """D(teaching, learning) on the union of both hard sets, one probability at a time."""
    total, classes = 0.0, learning.shape[-1] - (not sigmoid)
    for image, a in hard_set(teaching, labels, sigmoid) | hard_set(learning, labels, sigmoid):
        rows = [[v / temperature for v in z[image, a].tolist()] for z in (teaching, learning)]
        pairs = [zip(*map(binary, pair), strict=True) for pair in zip(*rows, strict=True)] if sigmoid \
            else [zip(*map(soft, rows), strict=True)]
        total += sum(p * math.log(p / q) for pair in pairs for p, q in pair)
    return temperature ** 2 * total / max(1, int((labels < classes).sum()))


def test_one_anchor_gives_each_its_own_direction():
    even, sure = (torch.tensor([[row]], dtype=torch.float64).log() for row in ([.5, .5], [.9, .1]))
    out = compare(even, sure, torch.tensor([[0]]))
    assert out['loss_student'].item() == pytest.approx(.368064, abs=1e-6)
    assert out['loss_peer'].item() == pytest.approx(.510826, abs=1e-6)


@pytest.mark.parametrize('temperature', [1.0, 3.0])
@pytest.mark.parametrize('sigmoid', [False, True])
def test_it_equals_a_loop_over_anchors_and_classes(temperature, sigmoid):
    student, peer, labels = make_scores()
    if sigmoid:
        student, peer = student[..., :3], peer[..., :3]
    out = compare(student, peer, labels, temperature=temperature, num_classes=3)
    for key, sides in dict(loss_student=(peer, student), loss_peer=(student, peer)).items():
        assert out[key].item() == pytest.approx(slow(*sides, labels, temperature, sigmoid), rel=1e-5)


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_each_direction_is_mmdets_kl_loss(temperature):
    from mmdet.models.losses import KnowledgeDistillationKLDivLoss
    student, peer, labels = make_scores()
    out = compare(student, peer, labels, temperature=temperature, region='all')
    theirs = KnowledgeDistillationKLDivLoss(reduction='sum', T=temperature)
    count = (labels < 3).sum()
    for key, (learning, teaching) in dict(loss_student=(student, peer), loss_peer=(peer, student)).items():
        # mmdet averages over the classes
        expected = 4 * theirs(learning.flatten(0, 1), teaching.detach().flatten(0, 1)) / count
        assert torch.allclose(out[key], expected, rtol=1e-5)


def test_equal_detectors_have_nothing_to_say_and_agree():
    student, _, labels = make_scores()
    peer = student.detach().clone().requires_grad_()
    out = compare(student, peer, labels, deltas=[torch.ones(2, 40, 4)] * 2, boxes=1.0)
    (out['loss_student'] + out['loss_peer']).backward()
    assert out['loss_student'].item() == out['loss_peer'].item() == 0 and out['agreement'] == 1
    assert max(student.grad.abs().max(), peer.grad.abs().max()) < 1e-7


def test_the_region_is_what_either_detector_mines_and_each_gradient_stays_on_its_side():
    student, peer, labels = make_scores()
    union = torch.zeros(2, 40, dtype=torch.bool)
    for image, a in hard_set(student, labels, False) | hard_set(peer, labels, False):
        union[image, a] = True
    assert union.sum() > 4 * 5
    out = compare(student, peer, labels)
    mine = torch.autograd.grad(out['loss_student'], (student, peer), allow_unused=True)
    theirs = torch.autograd.grad(out['loss_peer'], (student, peer), allow_unused=True)
    assert mine[1] is None and theirs[0] is None
    assert torch.equal(mine[0].abs().sum(-1) > 0, union) and torch.equal(theirs[1].abs().sum(-1) > 0, union)


def test_boxes_are_compared_on_objects_only():
    student, peer, labels = make_scores()
    peer = student.detach().clone()
    deltas = [torch.zeros(2, 40, 4, requires_grad=True), torch.full((2, 40, 4), 3.0, requires_grad=True)]
    out = compare(student, peer, labels, deltas=deltas, boxes=2.0)
    assert out['loss_student'].item() == out['loss_peer'].item() == pytest.approx(2 * .5 * 4 * 9)
    assert compare(student, peer, labels, deltas=deltas)['loss_student'] == 0
    gradient, other = torch.autograd.grad(out['loss_student'], deltas, allow_unused=True)
    assert other is None and torch.equal(gradient.abs().sum(-1) > 0, labels < 3)


@pytest.mark.parametrize('region', ['pos', 'hard', 'all'])
def test_the_order_of_the_images_does_not_matter(region):
    student, peer, labels = make_scores(batch=3)
    turned = [2, 0, 1]
    one, other = (compare(student[i], peer[i], labels[i], region=region) for i in ([0, 1, 2], turned))
    for key in ('loss_student', 'loss_peer'):
        assert torch.allclose(one[key], other[key])


def test_gradcheck():
    student, peer, labels = make_scores(anchors=12, dtype=torch.float64)
    deltas = [torch.randn(2, 12, 4, dtype=torch.float64) for _ in range(2)]
    for region in ('pos', 'all'):       # the mined set itself jumps with the scores
        # the other side is a constant of each direction: held so, the derivative is the whole one
        def value(z, key, other, region=region):
            pair = (z, other) if key == 'loss_student' else (other, z)
            return compare(*pair, labels, deltas=deltas, region=region, boxes=.5, temperature=2.0)[key]
        assert torch.autograd.gradcheck(lambda s: value(s, 'loss_student', peer.detach()), student)
        assert torch.autograd.gradcheck(lambda p: value(p, 'loss_peer', student.detach()), peer)


@pytest.mark.parametrize('columns', [4, 3])     # softmax and sigmoid over three classes
@pytest.mark.parametrize('region', ['pos', 'hard'])
def test_a_batch_of_background_costs_exactly_nothing(region, columns):
    student, peer, labels = make_scores()
    out = compare(student[..., :columns], peer[..., :columns], torch.full_like(labels, 3), num_classes=3,
                  region=region, boxes=1.0)
    (out['loss_student'] + out['loss_peer']).backward()
    assert out['loss_student'] == out['loss_peer'] == 0 and out['agreement'] == 0
    assert student.grad.abs().max() == 0 == peer.grad.abs().max()


@pytest.mark.parametrize('columns', [4, 3])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_scores_in_any_precision_stay_finite(dtype, columns):
    _, _, labels = make_scores(batch=1)
    student = torch.full((1, 40, columns), -BIG, dtype=dtype)
    student[..., 0] = BIG
    peer = (-student).requires_grad_()
    student.requires_grad_()
    out = compare(student, peer, labels, num_classes=3)
    (out['loss_student'] + out['loss_peer']).backward()
    for value, side in ((out['loss_student'], student), (out['loss_peer'], peer)):
        assert value.dtype == torch.float32 and value.isfinite() and value > 0
        assert side.grad.isfinite().all() and side.grad.abs().max() > 0


# In a distiller -------------------------------------------------------------------------------

def pair(student=None, **options):
    """A distiller whose student and peer teach each other; its options are the term's."""
    return make_distiller(dict(dml=dict(type='DML', **options)), student, teacher=False)


def moved_anchors() -> dict:
    config = tiny_ssd()
    config['bbox_head']['anchor_generator']['min_sizes'] = [13, 24, 40, 60]
    return config


def peer_of(model):
    return model.distill['dml'].peer


def losses_of(model, **batch) -> dict[str, Tensor]:
    ready = model.data_preprocessor(make_batch(**batch), True)
    return {k: sum(v) if isinstance(v, list) else v
            for k, v in model.loss(ready['inputs'], ready['data_samples']).items() if 'loss' in k}


@pytest.mark.parametrize('seed', [0, 7])    # 7 is the one that the student is drawn from
def test_the_peer_is_no_twin_of_the_student(seed):
    for config in (None, tiny_ssd()):
        model = make_distiller(dict(dml=dict(type='DML', peer=config)), teacher=False, seed=seed)
        mine, theirs = model.student.state_dict(), peer_of(model).state_dict()
        assert mine.keys() == theirs.keys()
        weights = [k for k, v in mine.items() if v.dim() == 4]
        assert len(weights) > 15 and not any(torch.equal(mine[k], theirs[k]) for k in weights)


def test_the_students_first_weights_are_those_of_training_alone():
    alone, taught = make_distiller({}, teacher=False), pair()
    assert all(torch.equal(v, taught.student.state_dict()[k]) for k, v in alone.student.state_dict().items())
    one, again = (peer_of(model).state_dict() for model in (taught, pair()))
    assert all(torch.equal(v, again[k]) for k, v in one.items())


def test_the_weight_is_that_of_both_directions_and_not_of_the_peers_own_loss():
    one, three = (train_step(pair(weight=w), make_batch())[1] for w in (1.0, 3.0))
    for key in ('loss_dml_student', 'loss_dml_peer'):
        assert three[key] == pytest.approx(3 * one[key], rel=1e-5) and one[key] > 0
    model = pair()
    ready = model.data_preprocessor(make_batch(), True)
    alone = sum(v.item() for part in copy.deepcopy(peer_of(model)).loss(
        ready['inputs'], ready['data_samples']).values() for v in part)
    assert one['loss_dml_aside'] == three['loss_dml_aside'] == pytest.approx(alone, rel=1e-5)
    assert three['loss'] == pytest.approx(sum(v for k, v in three.items() if k.startswith('loss_')), rel=1e-5)


def test_neither_reaches_the_others_weights():
    model = pair(boxes=1.0)
    losses = losses_of(model)
    student = [p for p in model.student.parameters() if p.requires_grad]
    peer = list(peer_of(model).parameters())
    mine = losses['loss_cls'] + losses['loss_bbox'] + losses['loss_dml_student']
    assert all(g is None for g in torch.autograd.grad(mine, peer, allow_unused=True, retain_graph=True))
    theirs = losses['loss_dml_aside'] + losses['loss_dml_peer']
    assert all(g is None for g in torch.autograd.grad(theirs, student, allow_unused=True, retain_graph=True))
    assert all(g is not None for g in torch.autograd.grad(mine, student, retain_graph=True))
    assert all(g is not None for g in torch.autograd.grad(theirs, peer))


def test_one_optimizer_does_what_two_would():
    one, two = pair(), pair()
    both = torch.optim.AdamW(one.parameters(), 1e-3)
    apart = [torch.optim.AdamW(part.parameters(), 1e-3) for part in (two.student, peer_of(two))]
    for seed in range(2):
        train_step(one, make_batch(seed=seed), both)
        total, _ = train_step(two, make_batch(seed=seed))
        for optimizer in apart:
            optimizer.zero_grad()
        total.backward()
        for optimizer in apart:
            optimizer.step()
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key]), key


def test_detectors_made_equal_have_nothing_to_say():
    model = pair(boxes=1.0)
    peer_of(model).load_state_dict(model.student.state_dict())
    _, log = train_step(model, make_batch())
    assert log['dml_raw'] == pytest.approx(0, abs=1e-6) and log['dml_agreement'] == 1
    assert log['loss_dml_aside'] == pytest.approx(log['loss_cls'] + log['loss_bbox'], rel=1e-6)


def test_both_learn_and_the_peer_follows_train_and_eval():
    model = pair()
    before = copy.deepcopy(model.state_dict())
    train_step(model, make_batch(), torch.optim.SGD(model.parameters(), 1e-3))
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    for where in ('backbone.features.0', 'distill.dml.peer.backbone.features.0'):
        assert f'{where}.weight' in moved
    assert any(k.startswith('distill.dml.peer.') and k.endswith('running_mean') for k in moved)
    for mode in (False, True):
        model.train(mode)
        assert all(m.training is mode for m in peer_of(model).modules())


def test_a_checkpoint_holds_both_and_the_student_is_plain():
    model, other = pair(), make_distiller(dict(dml=dict(type='DML')), teacher=False, seed=3)
    state = model.state_dict()
    plain = {k: v for k, v in state.items() if not k.startswith('distill.')}
    assert list(plain) == list(model.student.state_dict())
    assert [k.removeprefix('distill.dml.peer.') for k in state if k not in plain] == list(plain)
    other.load_state_dict(state, strict=True)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in state.items())
    twin = copy.deepcopy(model)
    assert peer_of(twin) is not peer_of(model) and train_step(twin, make_batch())[1]['dml_raw'] > 0


@pytest.mark.parametrize('objects', [[0, 0], [1]], ids=['none', 'one image'])
@pytest.mark.parametrize('ignored', [False, True])
def test_batches_with_few_objects_or_none_train_on(objects, ignored):
    # BatchNorm cannot train on a single value
    model, batch = pair(tiny_ssd(with_bn=False), boxes=1.0), make_batch(batch=len(objects), objects=objects)
    if ignored:
        for sample in batch['data_samples']:
            sample.ignored_instances.bboxes = torch.tensor([[10., 10., 40., 40.]])
            sample.ignored_instances.labels = torch.tensor([0])
    total, log = train_step(model, batch)
    total.backward()
    assert all(math.isfinite(v) for v in log.values()) and (log['dml_raw'] > 0) is any(objects)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_peer_may_be_another_detector_that_is_already_trained(tmp_path):
    wide = tiny_ssd(1 / 8)
    trained = peer_of(pair(peer=wide)).state_dict()
    moved = {k: v + 1 if v.dim() == 4 else v for k, v in trained.items()}
    torch.save(dict(state_dict=moved), tmp_path / 'a.pth')
    model = pair(peer=dict(model=wide), checkpoint=str(tmp_path / 'a.pth'))
    found = peer_of(model)
    assert torch.equal(found.backbone.features[0].weight, moved['backbone.features.0.weight'])
    assert found.training and all(p.requires_grad for p in found.parameters())
    assert train_step(model, make_batch())[1]['dml_raw'] > 0


def test_a_peer_that_normalises_otherwise_sees_its_own_inputs():
    model = pair(peer=tiny_ssd(mean=100.0))
    seen = model.distill['dml'].as_peer_sees(torch.zeros(1, 3, 2, 2))
    assert torch.allclose(seen, torch.full_like(seen, 23 / 58))
    same = torch.rand(1, 3, 2, 2)
    assert pair().distill['dml'].as_peer_sees(same) is same


@pytest.mark.parametrize('peer, words', [
    (tiny_ssd(num_classes=4), 'the student knows 3 classes, the peer 4'),
    (moved_anchors(), "'DML' compares anchor by anchor, but the anchors differ by up to"),
    ('configs/shapes/teacher.py', 'classes, the peer 6'),
])
def test_a_peer_that_cannot_be_compared_is_refused(peer, words):
    with pytest.raises(UserError, match=words):
        pair(peer=peer)


def test_a_checkpoint_needs_a_peer_with_a_config_and_must_exist():
    with pytest.raises(UserError, match='name it with peer='):
        pair(checkpoint='some.pth')
    with pytest.raises(UserError, match=r"the peer's checkpoint no/such\.pth does not exist; train it first"):
        pair(peer=tiny_ssd(), checkpoint='no/such.pth')


@pytest.mark.parametrize('wrong', [dict(temperature=0), dict(boxes=-1), dict(region='easy')])
def test_impossible_options_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        DML(**wrong)
