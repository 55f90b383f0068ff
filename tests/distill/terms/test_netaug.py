"""NetAug: the student as the leading channels of wider detectors."""
import copy
import itertools
import math
import random
from collections import Counter

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from torch import nn

import hgd_det.registered  # noqa: F401
from hgd_det.distill import widening
from hgd_det.distill.schedule import Progress
from hgd_det.distill.terms.netaug import NetAug, slashed
from hgd_det.errors import UserError
from hgd_det.paths import ROOT
from hgd_det.testing import make_batch, make_distiller, make_spec, tiny_ssd, train_step

from mmdet.registry import MODELS  # isort: skip

pytestmark = pytest.mark.thorough

NETAUG = dict(type='NetAug')


def make(student=None, **options):
    return make_distiller(dict(netaug=dict(NETAUG, **options)), student=student, teacher=False)


def stirred(model):
    """Weights between added and own channels that are not 0 any more."""
    torch.manual_seed(1)
    for piece in model.distill['netaug'].parameters():
        nn.init.normal_(piece, std=.1)
    return model


def plain(config):
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(config))
    model.init_weights()
    return model.train()


def mobile(width=1 / 8):
    config, norm_cfg = tiny_ssd(), dict(type='BN')
    channels = [round(c * width) for c in (256, 512, 1024, 256)]
    config['backbone'] = dict(type='MobileNetV1SSD', width=width)
    config['neck'] = dict(type='SSDNeck', in_channels=channels[:3], out_channels=channels, level_strides=(1,),
                          level_paddings=(0,), l2_norm_scale=None, use_depthwise=True, norm_cfg=norm_cfg)
    config['bbox_head'] |= dict(in_channels=channels, use_depthwise=True, norm_cfg=norm_cfg)
    return config


def shapes_of(detector):
    return {name: tuple(p.shape) for name, p in detector.named_parameters()}


def model_of(path):
    model = Config.fromfile(ROOT / 'configs' / path).model
    model.backbone.pop('init_cfg', None)
    return MODELS.build(model)


@pytest.mark.parametrize('narrow, wide, width', [
    (tiny_ssd(1 / 16), tiny_ssd(2 / 16), 2.0), (tiny_ssd(1 / 16), tiny_ssd(1.5 / 16), 1.5),
    (mobile(1 / 8), mobile(1 / 4), 2.0)], ids=['ssd x2', 'ssd x1.5', 'mobilenet x2'])
def test_the_wider_detector_has_the_shapes_a_config_of_that_width_has(narrow, wide, width):
    (_, shapes), = widening.widen(plain(narrow), [width], (96, 96))
    assert shapes == shapes_of(MODELS.build(ConfigDict(wide)))


def test_half_width_ssd300_is_a_slice_of_the_whole():
    student, whole = model_of('ssd/ssd300_half_voc.py'), shapes_of(model_of('ssd/ssd300_vgg16_voc.py'))
    weights = {name: p.detach() for name, p in student.named_parameters()}
    first, last, _ = widening._trace(student, weights, torch.zeros(1, 3, 300, 300))
    assert first == {'backbone.features.0'} and len(last) == 12
    shapes = widening._shapes(student, first, last, 2.0)
    assert shapes == whole
    assert sum(map(math.prod, shapes.values())) == 26_285_486
    assert sum(p.numel() for p in student.parameters()) == 7_409_742


def test_composition_by_loops():
    base, below, right = torch.arange(6.).view(2, 3, 1, 1), torch.full((2, 6, 1, 1), 7.), torch.full(
        (2, 3, 1, 1), 9.)
    for outputs, inputs in itertools.product((2, 3, 4), (3, 4, 6)):
        whole = widening.compose(base, below, right, (outputs, inputs, 1, 1))
        assert whole.shape == (outputs, inputs, 1, 1)
        for o, i in itertools.product(range(outputs), range(inputs)):
            expected = 7 if o >= 2 else 9 if i >= 3 else base[o, i]
            assert whole[o, i] == expected
    bias, more = torch.tensor([1., 2.]), torch.tensor([3., 4.])
    assert widening.compose(bias, more, None, (3,)).tolist() == [1, 2, 3]
    assert widening.compose(bias, None, None, (2,)) is bias


def test_at_the_students_own_width_it_is_the_student():
    model = stirred(make())
    term, student = model.distill['netaug'], model.student
    same = term.weights(shapes_of(student))
    assert all(torch.equal(same[name], p) for name, p in student.named_parameters())
    data = model.data_preprocessor(make_batch(), True)
    net = widening.outline(student, 1.0).train()
    ours = torch.func.functional_call(net, same, tuple(data.values()), dict(mode='loss'))
    theirs = student.loss(*data.values())
    assert student.parse_losses(ours)[0] == student.parse_losses(theirs)[0]


def test_before_the_first_step_the_added_channels_change_no_prediction():
    config = tiny_ssd()
    config['neck']['l2_norm_scale'] = None  # the one layer that looks at all channels together
    log = train_step(make(config), make_batch())[1]
    assert log['netaug_raw'] == pytest.approx(log['loss_cls'] + log['loss_bbox'], rel=1e-5)


@pytest.mark.parametrize('width', [1.5, 2.0])
@pytest.mark.parametrize('kind', [tiny_ssd, lambda w: mobile(2 * w)], ids=['ssd', 'mobilenet'])
def test_loss_and_gradients_are_those_of_a_wider_detector_put_together_by_hand(kind, width):
    model = stirred(make(kind(1 / 16), widths=(width, 2.0))).double()
    term, student = model.distill['netaug'], model.student
    iteration = next(i for i in range(99) if draw(term, i) == width)
    wide = plain(kind(width / 16)).double()
    with torch.no_grad():
        for name, p in wide.named_parameters():
            base, key = student.get_parameter(name), slashed(name)
            o, i = (*base.shape, 1, 1)[:2]
            if p.ndim == 1:
                p[:o] = base
            else:
                p[:o, :i] = base
            if key in term.right:
                p[:o, i:] = term.right[key][:, :p.shape[1] - i]
            if key in term.below:
                p[o:] = term.below[key][:len(p) - o] if p.ndim == 1 else \
                    term.below[key][:len(p) - o, :p.shape[1]]
    model.progress = Progress(iteration, 100)
    data = model.data_preprocessor(make_batch(), True)
    data['inputs'] = data['inputs'].double()
    student.eval()  # its own loss is not looked at: only the gradient the term sends
    losses = model.loss(*data.values())
    expected, _ = wide.parse_losses(wide.loss(*data.values()))
    assert losses['netaug_width'] == width
    torch.testing.assert_close(losses['netaug_raw'], expected.detach(), rtol=1e-6, atol=0)
    losses['loss_netaug'].backward()
    expected.backward()
    reached = 0
    for name, p in wide.named_parameters():
        base, key = student.get_parameter(name), slashed(name)
        o, i = len(base), base.shape[1] if base.ndim > 1 else 1
        parts = [(base.grad, p.grad[:o, :i] if p.ndim > 1 else p.grad[:o])]
        if key in term.below:
            grad = term.below[key].grad[:len(p) - o]
            parts.append((grad[:, :p.shape[1]] if p.ndim > 1 else grad, p.grad[o:]))
        if key in term.right:
            parts.append((term.right[key].grad[:, :p.shape[1] - i], p.grad[:o, i:]))
        for got, wanted in parts:
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-8)
        reached += int(base.grad.abs().max() > 0)
    assert reached > 20


def draw(term, iteration):
    return term.widths[random.Random(iteration).randrange(len(term.widths))]


def test_widths_are_drawn_evenly_and_by_the_iteration_alone():
    term = NetAug(widths=(1.25, 1.5, 2))
    counts = Counter(draw(term, i) for i in range(3000))
    assert set(counts) == {1.25, 1.5, 2.0} and min(counts.values()) > 900


def test_a_resumed_run_draws_and_computes_what_an_unbroken_one_does():
    def go(model, optimizer, iterations):
        out = []
        for i in iterations:
            model.progress = Progress(i, 100)
            out.append(train_step(model, make_batch(seed=i), optimizer)[1])
        return out
    whole, second = make(), make()
    optimizers = [torch.optim.SGD(m.parameters(), 1e-4, momentum=.9) for m in (whole, second)]
    go(whole, optimizers[0], range(4))
    second.load_state_dict(copy.deepcopy(whole.state_dict()), strict=True)
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    one, two = (go(m, o, range(4, 8)) for m, o in zip((whole, second), optimizers, strict=True))
    assert one == two and len({log['netaug_width'] for log in one}) == 2


def test_the_student_alone_sends_nothing_to_the_added_channels():
    model = stirred(make())
    model.progress = Progress(50, 100)  # the second half
    total, log = train_step(model, make_batch(), torch.optim.SGD(model.parameters(), 0.))
    assert log['loss_netaug'] == log['netaug_raw'] == log['netaug_weight'] == 0
    assert log['loss'] == train_step(make_distiller({}, teacher=False), make_batch())[1]['loss']
    added = [p.grad for p in model.distill['netaug'].parameters()]
    assert added and all(g is not None and not g.any() for g in added)
    assert all(p.grad is not None for p in model.student.parameters())


def test_every_parameter_has_a_gradient_in_every_step():
    model = stirred(make())
    train_step(model, make_batch(), torch.optim.SGD(model.parameters(), 0.))
    assert all(p.grad is not None for p in model.parameters())
    assert sum(p.grad.abs().max() > 0 for p in model.distill['netaug'].parameters()) > 50


def test_the_students_statistics_are_those_of_the_student_alone():
    with_term, alone = make(), make_distiller({}, teacher=False)
    before = copy.deepcopy(with_term.state_dict())
    for model in (with_term, alone):
        train_step(model, make_batch())
    after = with_term.state_dict()
    assert all(torch.equal(after[key], value) for key, value in alone.state_dict().items())
    moved = {key.split('.')[3] for key in after if 'running_mean' in key and key.startswith('distill.')
             and not torch.equal(after[key], before[key])}
    drawn = with_term.distill['netaug'].widths.index(draw(with_term.distill['netaug'], 0))
    assert moved == {str(drawn)}


def test_norms_that_do_not_measure_read_the_students_statistics():
    config = tiny_ssd()
    config['backbone']['bn_eval'] = True
    config['neck'] |= dict(l2_norm_scale=None, norm_cfg=None)
    model = make(config)
    for module in model.student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, .5, 2)
    log = train_step(model, make_batch())[1]
    assert log['netaug_raw'] == pytest.approx(log['loss_cls'] + log['loss_bbox'], rel=1e-5)


def test_a_checkpoint_holds_the_plain_student_and_each_number_once():
    model = make()
    state, student = model.state_dict(), MODELS.build(ConfigDict(tiny_ssd()))
    mine = {key: value for key, value in state.items() if not key.startswith('distill.')}
    assert list(mine) == list(student.state_dict())
    student.load_state_dict(mine, strict=True)
    added = sum(p.numel() for p in model.distill.parameters())
    wide = sum(p.numel() for p in MODELS.build(ConfigDict(tiny_ssd(1 / 8))).parameters())
    assert added + sum(p.numel() for p in student.parameters()) == wide
    assert not any(p is q for p in model.distill.parameters() for q in model.student.parameters())


def test_a_copy_of_the_model_teaches_its_own_student():
    model = make()
    twin = copy.deepcopy(model)
    assert twin.distill['netaug'].student is twin.student is not model.student


def test_the_students_initial_weights_stay_those_of_the_student_alone():
    mine, alone = make().student.state_dict(), make_distiller({}, teacher=False).student.state_dict()
    assert all(torch.equal(mine[key], value) for key, value in alone.items())


def test_it_goes_together_with_hgd():
    model = make_distiller(dict(hgd=dict(type='HGD', weight=1.0, warmup=0), netaug=NETAUG))
    teacher = [p.clone() for p in model.teacher.detector.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    total, log = train_step(model, make_batch(), optimizer)
    assert log['loss_hgd'] > 0 and log['loss_netaug'] > 0 and torch.isfinite(total)
    assert all(p.grad is not None for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.teacher.detector.parameters(), teacher, strict=True))
    alone, both = (train_step(make_distiller(terms), make_batch())[1] for terms in (
        dict(hgd=dict(type='HGD', weight=1.0, warmup=0)),
        dict(hgd=dict(type='HGD', weight=1.0, warmup=0), netaug=NETAUG)))
    assert alone['loss_hgd'] == both['loss_hgd'] and alone['loss_cls'] == both['loss_cls']


@pytest.mark.parametrize('objects', [(0,), (0, 0), (0, 2), (3,)])
def test_batches_without_objects_and_of_one_image_are_finite(objects):
    model = stirred(make(tiny_ssd(with_bn=False)))
    total, _ = train_step(model, make_batch(len(objects), objects=objects),
                          torch.optim.SGD(model.parameters(), 0.))
    assert torch.isfinite(total) and all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_images_may_change_places():
    model, data = stirred(make()), make_batch()
    turned = {key: value[::-1] for key, value in data.items()}
    one, other = (train_step(model, batch)[1]['netaug_raw'] for batch in (data, turned))
    assert one == pytest.approx(other, rel=1e-4)


def test_the_wider_detector_runs_in_the_students_precision(monkeypatch):
    model = stirred(make())
    kinds, run = set(), type(model.student.bbox_head).forward

    def seen(head, maps):
        out = run(head, maps)
        kinds.add(out[0][0].dtype)
        return out
    monkeypatch.setattr(type(model.student.bbox_head), 'forward', seen)
    with torch.autocast('cpu', torch.bfloat16):
        total, log = train_step(model, make_batch(), torch.optim.SGD(model.parameters(), 1e-4))
    assert kinds == {torch.bfloat16} and torch.isfinite(total) and log['netaug_raw'] > 0


def test_training_lowers_the_wider_detectors_loss():
    model = make(widths=(2.0,))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    values = [train_step(model, make_batch(), optimizer)[1]['netaug_raw'] for _ in range(6)]
    assert values[-1] < .7 * values[0]


@pytest.mark.parametrize('widths', [(), (1.0, 2.0), (.5,)])
def test_a_width_must_be_wider(widths):
    with pytest.raises(UserError, match='factors above 1'):
        NetAug(widths=widths)


def test_what_is_no_dense_detector_is_refused():
    with pytest.raises(UserError, match='NetAug widens one-stage detectors'):
        NetAug().setup(make_spec({}, {}))


def hub(path, **changes):
    config = get_config(f'mmdet::{path}')
    config.merge_from_dict(dict(model=changes))
    config.model.backbone.init_cfg = None
    config.model.data_preprocessor.pop('batch_augments', None)
    return MODELS.build(config.model)


SMALL = dict(backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]))


@pytest.mark.slow
@pytest.mark.parametrize('path', ['retinanet/retinanet_r50_fpn_1x_coco.py',
                                  'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py'], ids=['RetinaNet', 'FCOS'])
def test_other_one_stage_detectors_widen_too(path):
    detector = hub(path, **SMALL)
    (_, shapes), = widening.widen(detector, [1.5], (64, 64))
    changed = [name for name, p in detector.named_parameters() if tuple(p.shape) != shapes[name]]
    assert len(changed) > 80 and shapes['backbone.conv1.weight'] == (96, 3, 7, 7)
    assert shapes['neck.fpn_convs.0.conv.weight'] == (384, 384, 3, 3)


def test_a_detector_that_joins_maps_is_refused():
    detector = hub('yolox/yolox_tiny_8xb8-300e_coco.py', backbone=dict(widen_factor=.125),
                   neck=dict(in_channels=[32, 64, 128], out_channels=16),
                   bbox_head=dict(in_channels=16, feat_channels=16))
    with pytest.raises(UserError, match='not the leading part of one with 2 times the channels'):
        widening.widen(detector, [2.0], (64, 64))


def test_other_layers_with_weights_are_refused_by_name():
    detector = plain(tiny_ssd())
    detector.neck.dense = nn.Linear(3, 3)
    with pytest.raises(UserError, match=r'neck\.dense is a Linear'):
        widening.widen(detector, [2.0], (96, 96))
    detector.neck.dense = nn.Conv2d(4, 4, 1, groups=2)
    with pytest.raises(UserError, match='convolves in 2 groups'):
        widening.widen(detector, [2.0], (96, 96))
