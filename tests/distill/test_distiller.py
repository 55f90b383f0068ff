"""The distiller with a small term of its own: what it promises whatever the method."""
import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from torch import nn

import hgd_det.registered  # noqa: F401
from hgd_det.distill.adapters import build_adapter
from hgd_det.distill.registry import TERMS
from hgd_det.distill.schedule import Progress
from hgd_det.distill.stages import pair_stages
from hgd_det.distill.term import Term
from hgd_det.errors import UserError
from hgd_det.testing import make_batch, make_distiller, tiny_ssd
from hgd_det.testing import train_step as step

register_all_modules(init_default_scope=True)


@TERMS.register_module()
class EveryNeed(Term):
    """Reads all a lesson offers."""
    needs = frozenset({'maps', 'head', 'anchors', 'targets', 'boxes'})

    def __init__(self, mu: float = 1.0):
        super().__init__()
        self.scales_detection = {'loss_cls': mu} if mu != 1 else {}
        self.seen = []

    def setup(self, spec):
        spec.same_anchors('every')
        self.pairs = pair_stages(spec.student, spec.teacher)
        self.use_pairs(self.pairs)
        self.adapters = nn.ModuleList(build_adapter(p.student.channels, p.teacher.channels)
                                      for p in self.pairs)

    def forward(self, lesson):
        assert not any(lesson.teacher.maps[p.teacher.tap].requires_grad for p in self.pairs)
        self.seen.append(lesson)
        maps = sum((a(lesson.student.maps[p.student.tap]) - lesson.teacher.maps[p.teacher.tap]).pow(2).mean()
                   for a, p in zip(self.adapters, self.pairs, strict=True))
        region = lesson.region('hard')
        head = (lesson.student.head.cls - lesson.teacher.head.cls)[region].pow(2).sum()
        return {'loss_maps': maps, 'loss_head': head / lesson.targets.num_positive, 'picked': region.sum()}


@TERMS.register_module()
class FirstStage(Term):
    """Reads one early map, so that the teacher need not run further."""

    def setup(self, spec):
        self.pairs = pair_stages(spec.student, spec.teacher, sizes=(96,))
        self.use_pairs(self.pairs)
        self.adapter = build_adapter(self.pairs[0].student.channels, self.pairs[0].teacher.channels)

    def forward(self, lesson):
        pair = self.pairs[0]
        return {'loss': (self.adapter(lesson.student.maps[pair.student.tap])
                         - lesson.teacher.maps[pair.teacher.tap]).pow(2).mean()}


def distiller(terms=None, **options):
    return make_distiller(dict(every=dict(type='EveryNeed')) if terms is None else terms, **options)


def train_20(model):
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    return [step(model, make_batch(seed=i), optimizer)[0].item() for i in range(20)]


@pytest.mark.parametrize('terms', [{}, dict(every=dict(type='EveryNeed', weight=0))],
                         ids=['no terms', 'weight 0'])
def test_without_a_term_that_counts_training_is_the_plain_students_bit_for_bit(terms):
    torch.manual_seed(7)
    plain = MODELS.build(ConfigDict(tiny_ssd()))
    plain.init_weights()
    expected = train_20(plain.train())
    ours = distiller(terms)
    assert train_20(ours) == expected
    state = ours.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in plain.state_dict().items())
    assert set(state) == set(plain.state_dict()) and ours.teacher is None


def test_terms_leave_the_students_initial_weights_and_random_stream_alone():
    torch.manual_seed(7)
    plain = MODELS.build(ConfigDict(tiny_ssd()))
    plain.init_weights()
    after = torch.rand(1)
    ours = distiller()
    assert torch.equal(torch.rand(1), after)
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in plain.state_dict().items())


def test_the_teacher_is_no_part_of_the_model_and_never_changes():
    model = distiller()
    before = copy.deepcopy(model.teacher.detector.state_dict())
    assert copy.deepcopy(model).teacher is model.teacher
    train_20(model)
    theirs = {id(p) for p in model.teacher.detector.parameters()}
    assert not theirs & {id(p) for p in model.parameters()}
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.detector.state_dict().items())
    assert not any(m.training for m in model.teacher.detector.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.teacher.detector.parameters())
    assert not any('teacher' in k for k in model.state_dict())
    model.double()
    assert next(model.teacher.detector.parameters()).dtype == torch.float64


def test_losses_are_weighted_and_diagnostics_are_not_added_up():
    torch.manual_seed(0)
    one, three = distiller(), distiller(dict(every=dict(type='EveryNeed', weight=3.0)))
    data = make_batch()
    total, log = step(one, data)
    _, tripled = step(three, data)
    parts = ('loss_cls', 'loss_bbox', 'loss_every_maps', 'loss_every_head')
    assert total.item() == pytest.approx(sum(log[p] for p in parts), rel=1e-6)
    assert log['every_raw'] == pytest.approx(log['loss_every_maps'] + log['loss_every_head'], rel=1e-6)
    assert tripled['loss_every_maps'] == pytest.approx(3 * log['loss_every_maps'], rel=1e-6)
    assert tripled['every_raw'] == pytest.approx(log['every_raw'], rel=1e-6)
    assert (tripled['every_weight'], log['every_weight']) == (3.0, 1.0)
    assert log['every_picked'] > 0 and 0 < log['teacher_share'] < 1


def test_gradients_reach_the_student_and_every_adapter():
    model = distiller()
    step(model, make_batch())[0].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if 'distill' in n)


def test_in_the_warm_up_the_student_trains_alone_and_every_parameter_still_gets_a_gradient():
    model = distiller(dict(every=dict(type='EveryNeed', warmup=10)))
    calls = []
    model.teacher.detector.register_forward_hook(lambda *_: calls.append(1))
    model.teacher.detector.backbone.register_forward_hook(lambda *_: calls.append(1))
    total, log = step(model, make_batch())
    total.backward()
    assert not calls and log['loss_every'] == 0
    assert all(p.grad is not None for p in model.parameters())
    model.progress = Progress(10, 100)
    assert step(model, make_batch())[1]['loss_every_maps'] > 0 and calls


def test_the_teacher_runs_no_deeper_than_the_terms_need():
    model = distiller(dict(first=dict(type='FirstStage')))
    ran = []
    features = model.teacher.detector.backbone.features
    for i, module in enumerate(features):
        module.register_forward_hook(lambda *_, i=i: ran.append(i))
    _, log = step(model, make_batch())
    assert log['loss_first'] > 0 and max(ran) == 5  # the second ReLU of stage 1


def test_a_checkpoint_holds_the_student_at_its_root_and_goes_back_in():
    model = distiller(dict(every=dict(type='EveryNeed', weight='auto')))
    step(model, make_batch())
    state = model.state_dict()
    plain = MODELS.build(ConfigDict(tiny_ssd()))
    plain.load_state_dict({k: v for k, v in state.items() if not k.startswith('distill.')}, strict=True)
    again = distiller(dict(every=dict(type='EveryNeed', weight='auto')), seed=3)
    again.load_state_dict(state, strict=True)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())
    assert again.distill['every'].balance.factor == model.distill['every'].balance.factor > 0
    missing, unexpected = again.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(k.startswith('distill.') for k in missing)


def test_predictions_are_the_plain_students():
    model = distiller().eval()
    plain = MODELS.build(ConfigDict(tiny_ssd())).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('distill.')})
    data = make_batch()
    with torch.no_grad():
        ours, theirs = model.test_step(copy.deepcopy(data)), plain.test_step(copy.deepcopy(data))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes)
        assert torch.equal(a.pred_instances.scores, b.pred_instances.scores)


def test_targets_are_assigned_once_and_the_head_is_as_it_was():
    model = distiller()
    calls, original = [], model.student.bbox_head._get_targets_single
    model.student.bbox_head._get_targets_single = lambda *a, **k: calls.append(1) or original(*a, **k)
    step(model, make_batch(batch=2))
    assert len(calls) == 2 and 'get_targets' not in vars(model.student.bbox_head)
    assert not any(m._forward_hooks for m in model.modules())


def test_the_lesson_shows_what_the_heads_loss_sees():
    model = distiller()
    _, log = step(model, make_batch(batch=3, objects=[2, 0, 3]))
    lesson = model.distill['every'].seen[0]
    head = model.student.bbox_head
    assert lesson.student.head.cls.shape == lesson.teacher.head.cls.shape
    assert lesson.student.head.cls.shape[:2] == lesson.targets.labels.shape
    assert len(lesson.anchors) == lesson.targets.labels.shape[1]
    assert [len(b) for b in lesson.boxes] == [2, 0, 3]
    chosen = lesson.region('hard')
    assert not chosen[1].any()  # an image without objects gives no negatives either
    ce = nn.functional.cross_entropy(lesson.student.head.cls[chosen], lesson.targets.labels[chosen],
                                     reduction='sum')
    ce = ce / (lesson.targets.positive.sum() + 1)  # mmdet counts one positive for an empty image
    assert ce.item() == pytest.approx(log['loss_cls'], rel=1e-5)
    decoded = head.bbox_coder.decode(lesson.anchors[lesson.targets.positive[0]],
                                     lesson.targets.boxes[0][lesson.targets.positive[0]])
    assert all(((decoded - b).abs().amax(1) < 1e-3).any() for b in lesson.boxes[0])


def test_repeating_the_batch_leaves_each_loss_unchanged():
    model = distiller().eval()  # BatchNorm of the batch would see the same images twice
    data = make_batch(batch=2)
    twice = dict(inputs=data['inputs'] * 2, data_samples=data['data_samples'] * 2)
    _, once = step(model, data)
    _, double = step(model, twice)
    for key in ('loss_cls', 'loss_bbox', 'loss_every_maps', 'loss_every_head'):
        assert double[key] == pytest.approx(once[key], rel=1e-4), key


def test_a_batch_without_objects_is_finite_and_differentiable():
    model = distiller()
    total, log = step(model, make_batch(batch=2, objects=[0, 0]))
    total.backward()
    assert log['loss_every_head'] == 0 and torch.isfinite(total)


def test_terms_can_scale_or_silence_the_students_own_losses():
    data = make_batch()
    _, plain = step(distiller(), data)
    _, half = step(distiller(dict(every=dict(type='EveryNeed', mu=0.5))), data)
    assert half['loss_cls'] == pytest.approx(plain['loss_cls'] / 2, rel=1e-6)
    assert half['loss_bbox'] == pytest.approx(plain['loss_bbox'], rel=1e-6)
    _, mute = step(distiller(dict(every=dict(type='EveryNeed', stop=0.3, detection=0))), data)
    assert mute['loss_cls'] == mute['loss_bbox'] == 0 and mute['loss_every_maps'] > 0


def test_the_teacher_sees_the_students_batch_in_its_own_normalisation():
    model = distiller(teacher=dict(model=ConfigDict(tiny_ssd(1 / 8, mean=100.0)), checkpoint='untrained'))
    pixels = make_batch()
    ours = model.data_preprocessor(copy.deepcopy(pixels), False)['inputs']
    theirs = model.teacher.detector.data_preprocessor(copy.deepcopy(pixels), False)['inputs']
    assert torch.allclose(model.teacher.inputs(ours), theirs, atol=1e-5)


def test_two_terms_live_side_by_side_and_share_one_teacher_pass():
    model = distiller(dict(a=dict(type='FirstStage', weight=2.0), b=dict(type='EveryNeed')))
    runs = []
    model.teacher.detector.backbone.register_forward_hook(lambda *_: runs.append(1))
    _, log = step(model, make_batch())
    assert log['loss_a'] == pytest.approx(2 * log['a_raw']) and log['loss_b_maps'] > 0 and len(runs) == 1


REFUSALS = [
    (dict(terms=dict(x=dict(type='EveryNed'))), "there is no 'EveryNed'; did you mean 'EveryNeed'"),
    (dict(terms=dict(x=dict(weight=1))), "write dict\\(type='HGD'"),
    (dict(terms={'a b': dict(type='EveryNeed')}), 'must be a plain word'),
    (dict(terms=dict(x=dict(type='EveryNeed', weight=-1))), 'negative weight'),
    (dict(teacher=dict(model=ConfigDict(tiny_ssd(1 / 8, base=0.3, num_classes=5)), checkpoint='untrained')),
     '3 classes, the teacher 5'),
    (dict(teacher=dict(model=ConfigDict(tiny_ssd(1 / 8)), checkpoint=None)),
     'the teacher has no checkpoint'),
    (dict(teacher=dict(model=ConfigDict(tiny_ssd(1 / 8)), checkpoint='nowhere/teacher.pth')),
     'nowhere/teacher.pth does not exist; train the teacher first'),
    (dict(terms=dict(x=dict(type='EveryNeed', wieght=2))), "no option 'wieght'; did you mean 'weight'"),
    (dict(teacher=dict(model='configs/ssd/ssd300_vgg61_voc.py')), 'near names: .*ssd300_vgg16_voc'),
]


@pytest.mark.parametrize('options, text', REFUSALS)
def test_a_wrong_set_up_is_refused_in_one_clear_message(options, text):
    with pytest.raises(UserError, match=text):
        distiller(**options)


def _saved(tmp_path, model, classes=('a', 'b', 'c'), change=None):
    state = model.state_dict()
    state = change(dict(state)) if change else state
    path = tmp_path / 'teacher.pth'
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=classes))), path)
    return path


@pytest.mark.parametrize('config, change, text', [
    (tiny_ssd(1 / 16), None, 'size|shape|fit'),
    (tiny_ssd(1 / 8, depth=11), None, 'unexpected|missing'),
    (tiny_ssd(1 / 8), lambda s: s | {'bbox_head.cls_convs.0.0.weight': torch.zeros(20, 64, 3, 3)},
     'bbox_head.cls_convs.0.0.weight'),
    (tiny_ssd(1 / 8), lambda s: {k: v for k, v in s.items() if 'features.0.weight' not in k},
     'missing.*backbone.features.0.weight'),
    (tiny_ssd(1 / 8), lambda s: s | {'backbone.extra': torch.zeros(1)}, 'unexpected.*backbone.extra'),
], ids=['width', 'depth', 'other classes', 'missing key', 'unexpected key'])
def test_a_teacher_checkpoint_that_does_not_fit_is_refused(tmp_path, config, change, text):
    path = _saved(tmp_path, MODELS.build(ConfigDict(tiny_ssd(1 / 8))), change=change)
    with pytest.raises(UserError, match=f'(?s){text}'):
        distiller(teacher=dict(model=ConfigDict(config), checkpoint=str(path)))


def test_a_truncated_teacher_checkpoint_is_refused(tmp_path):
    path = _saved(tmp_path, MODELS.build(ConfigDict(tiny_ssd(1 / 8))))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match='teacher.pth'):
        distiller(teacher=dict(model=ConfigDict(tiny_ssd(1 / 8)), checkpoint=str(path)))


def test_a_teacher_of_other_classes_or_another_digest_is_refused(tmp_path):
    path = _saved(tmp_path, MODELS.build(ConfigDict(tiny_ssd(1 / 8))))
    teacher = dict(model=ConfigDict(tiny_ssd(1 / 8)), checkpoint=str(path))
    model = distiller(teacher=teacher)
    model.check(total=100, classes=('a', 'b', 'c'))
    with pytest.raises(UserError, match="1: teacher 'b', student 'x'"):
        model.check(classes=('a', 'x', 'c'))
    with pytest.raises(UserError, match='this is another file'):
        distiller(teacher=dict(**teacher, sha256='00ff'))


def test_a_warm_up_as_long_as_training_is_refused():
    model = distiller(dict(every=dict(type='EveryNeed', warmup=100)))
    with pytest.raises(UserError, match="term 'every'.*training has only 100"):
        model.check(total=100)


def test_data_without_boxes_is_refused_by_a_term_that_needs_them():
    from hgd_det.distill.lesson import Lesson, Side
    from hgd_det.testing import Sample
    lesson = Lesson(Side({}), Side({}), [Sample()], progress=Progress(0, 1), input_shape=(96, 96))
    with pytest.raises(UserError, match='needs ground-truth boxes'):
        lesson.boxes  # noqa: B018


def test_the_correspondence_tells_each_stages_share_and_leaves_the_student_as_it_was():
    model = distiller(dict(hgd=dict(type='HGD'), every=dict(type='EveryNeed')))
    before = copy.deepcopy(model.state_dict())
    pairs = model.describe()['pairs']
    assert [p['size'][0] for p in pairs] == [96, 48, 24, 12, 6, 3, 1]
    assert sum(p['share'] for p in pairs) == pytest.approx(1) and all(p['share'] > 0 for p in pairs)
    assert model.student.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
