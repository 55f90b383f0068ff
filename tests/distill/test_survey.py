"""What the dry run offers as stages, for the backbone families of mmdet and for small traps."""
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from torch import nn

import hgd_det.registered  # noqa: F401
from hgd_det.distill.stages import select_stages, survey
from hgd_det.distill.taps import Taps
from hgd_det.testing import tiny_ssd

pytestmark = pytest.mark.thorough

register_all_modules(init_default_scope=True)

# the config, changes to its backbone, the input, and the stages that no head reads: size and class of block
FAMILIES = {
    'ResNet': ('retinanet/retinanet_r50_fpn_1x_coco', {}, 128, {64: 'ReLU', 32: 'Bottleneck'}),
    'ResNet, one map for the head': ('detr/detr_r18_8xb2-500e_coco', {}, 128,
                                     {64: 'ReLU', 32: 'BasicBlock', 16: 'BasicBlock', 8: 'BasicBlock'}),
    'ResNet and deconvolutions': ('centernet/centernet_r18_8xb16-crop512-140e_coco', {}, 128,
                                  {64: 'ReLU', 16: 'ConvModule', 8: 'ConvModule', 4: 'ConvModule'}),
    'ResNeSt': ('resnest/faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco',
                dict(stem_channels=32, norm_cfg=dict(type='BN')), 128, {64: 'ReLU'}),
    'RegNet': ('regnet/retinanet_regnetx-800MF_fpn_1x_coco', {}, 128, {64: 'ReLU', 32: 'Bottleneck'}),
    'CSPNeXt': ('rtmdet/rtmdet_tiny_8xb32-300e_coco', {}, 128, {64: 'ConvModule', 32: 'CSPLayer'}),
    'CSPDarknet': ('yolox/yolox_tiny_8xb8-300e_coco', {}, 128, {64: 'Focus', 32: 'CSPLayer'}),
    'Darknet': ('yolo/yolov3_d53_8xb8-320-273e_coco', {}, 64,
                {64: 'ConvModule', 32: 'ResBlock', 16: 'ResBlock'}),
    'MobileNetV2': ('yolo/yolov3_mobilenetv2_8xb24-ms-416-300e_coco', {}, 128,
                    {64: 'InvertedResidual', 32: 'InvertedResidual'}),
    'EfficientNet': ('efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco', {}, 128,
                     {64: 'InvertedResidual', 32: 'InvertedResidual'}),
    'Swin': ('swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco', dict(depths=(2, 2, 2, 2)), 128, {}),
    'Swin, its first map unread': ('swin/retinanet_swin-t-p4-w7_fpn_1x_coco', dict(depths=(2, 2, 2, 2)),
                                   128, {}),
    'PVT': ('pvt/retinanet_pvt-t_fpn_1x_coco', {}, 128, {32: 'PyramidVisionTransformer'}),
    'HRNet': ('hrnet/faster-rcnn_hrnetv2p-w18-1x_coco', {}, 128, {64: 'ReLU'}),
    'VGG': ('ssd/ssd300_coco', dict(depth=11, out_feature_indices=(14, 24)), 300,
            {300: 'ReLU', 150: 'ReLU', 75: 'ReLU'}),
}
HEADS = {     # the sizes that are read
    'ResNet': [16, 8, 4, 2, 1], 'ResNet, one map for the head': [4], 'ResNet and deconvolutions': [32],
    'ResNeSt': [32, 16, 8, 4, 2], 'RegNet': [16, 8, 4, 2, 1], 'CSPNeXt': [16, 8, 4], 'CSPDarknet': [16, 8, 4],
    'Darknet': [8, 4, 2], 'MobileNetV2': [16, 8, 4], 'EfficientNet': [16, 8, 4, 2, 1],
    'Swin': [32, 16, 8, 4, 2], 'Swin, its first map unread': [16, 8, 4, 2, 1], 'PVT': [16, 8, 4, 2, 1],
    'HRNet': [32, 16, 8, 4, 2], 'VGG': [38, 19, 10, 5, 3, 1],
}


def build(path, changes=None):
    model = get_config(f'mmdet::{path}.py').model
    model.backbone.update(changes or {})
    for part in (model, model.backbone):
        part.pop('init_cfg', None)
    model.get('data_preprocessor', {}).pop('batch_augments', None)
    torch.manual_seed(0)
    return MODELS.build(model).eval()


MORE = {'ResNet and deconvolutions', 'ResNeSt', 'Darknet', 'Swin, its first map unread', 'PVT'}


@pytest.fixture(scope='module', params=[
    pytest.param(name, marks=[pytest.mark.slow] * (name in MORE)) for name in FAMILIES])
def family(request):
    path, changes, size, blocks = FAMILIES[request.param]
    model = build(path, changes)
    return model, survey(model, (size, size), request.param), blocks, HEADS[request.param]


def handed_on(model, tap, image):
    """Paths of the modules whose output is the map at this tap."""
    seen = []
    handles = [module.register_forward_hook(lambda m, args, out, path=path: seen.append((path, out)))
               for path, module in model.named_modules() if path]
    with torch.no_grad(), Taps(model, [tap]) as maps:
        model.extract_feat(image)
    for handle in handles:
        handle.remove()
    return [path for path, out in seen
            if any(o is maps[tap] for o in (out if isinstance(out, (tuple, list)) else (out,)))]


def held(model, path, value, image):
    """What the heads read while the first call of a module hands out a given map."""
    calls = []
    handle = model.get_submodule(path).register_forward_hook(
        lambda m, args, out: calls.append(out) or (value.clone() if len(calls) == 1 else None))
    with torch.no_grad():
        outs = model.extract_feat(image)
    handle.remove()
    return outs


def test_the_stages_of_each_family_are_blocks_and_what_heads_read(family):
    model, view, blocks, heads = family
    stages = {size[0]: specs[-1] for size, specs in select_stages(view).items()}
    assert [size for size, spec in stages.items() if spec.source] == heads
    assert {size for size, spec in stages.items() if not spec.source} == set(blocks)
    for size, block in blocks.items():
        paths = handed_on(model, stages[size].tap, torch.rand(1, 3, *view.input_size))
        classes = [type(model.get_submodule(path)).__name__ for path in paths]
        assert block in classes, (size, paths, classes)


def test_all_that_smaller_heads_see_of_the_picture_goes_through_a_stage(family):
    """With the stage's map held, two pictures make no difference: there is no way around it."""
    model, view, _, _ = family
    pictures = [torch.rand(1, 3, *view.input_size) for _ in range(2)]
    select = 'all' if view.name in ('CSPNeXt', 'MobileNetV2') else 'source'
    for spec in (s for specs in select_stages(view, select=select).values() for s in specs):
        paths = [p for p in handed_on(model, spec.tap, pictures[0]) if p not in ('backbone', 'neck')]
        if spec.source or not paths:
            continue
        value = torch.rand(1, spec.channels, *spec.size)
        one, other = (held(model, paths[-1], value, picture) for picture in pictures)
        smaller = [i for i, out in enumerate(one) if out.shape[-2:].numel() < value.shape[-2:].numel()]
        assert all(torch.equal(one[i], other[i]) for i in smaller), spec.tap


def test_every_map_can_be_tapped_in_training_and_none_is_a_gate(family):
    model, view, blocks, heads = family
    specs = [s for group in select_stages(view, select='all').values() for s in group]
    model.train()
    with Taps(model, [s.tap for s in specs]) as maps:
        model.extract_feat(torch.rand(2, 3, *view.input_size))
    model.eval()
    assert all(maps[s.tap].shape == (2, s.channels, *s.size) for s in specs)
    assert all(s.source for s in specs if s.size == (1, 1))


def test_all_stages_hold_those_that_heads_read(family):
    _, view, _, _ = family
    every = select_stages(view, select='all')
    assert all(specs[-1] in every[size] for size, specs in select_stages(view).items())


@pytest.mark.parametrize('path, tap', [
    ('rtmdet/rtmdet_tiny_8xb32-300e_coco', 'backbone.stage4.2.attention.act'),
    ('retinanet/retinanet_r50_fpn_1x_coco', 'backbone.layer2.0.relu'),
    ('yolo/yolov3_mobilenetv2_8xb24-ms-416-300e_coco', 'backbone.layer2.0.expand_conv')])
def test_gates_and_inner_activations_are_no_maps(path, tap):
    model = build(path)
    view = survey(model, (128, 128))
    assert tap in dict(model.named_modules()) and view.find(tap) is None
    assert not any(m.tap.startswith(tap) for m in view.maps)


class Gated(nn.Module):
    """A block with a gate, an attention map, a branch and an activation inside a shortcut."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.where, self.branch = nn.Conv2d(4, 1, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.relu(self.conv(x))
        y = y * self.gate(y) * self.where(y).sigmoid() + self.branch(x)
        y += x
        return y.relu_()


class Expanded(nn.Module):
    """An inverted residual that halves: no shortcut, so what it expands to is on the trunk too."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU6())
        self.reduce = nn.Conv2d(8, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return self.reduce(self.expand(x))


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.stage = nn.Sequential(Gated(), Expanded(), Gated(), Expanded(), Gated())
        self.written = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.stage(self.stem(x))
        y = self.written(x)
        y.mul_(2)     # so a tap there would be an error
        return y.clone()


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Backbone()

    def extract_feat(self, image):
        return (self.backbone(image),)


def test_only_the_outputs_of_blocks_are_maps():
    assert [m.tap for m in survey(Detector(), (32, 32)).maps] == [
        'backbone.stem', *(f'backbone.stage.{i}' for i in range(4)), 'backbone.stage', 'backbone']


def test_a_wrapped_detector_has_the_same_maps():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.members = nn.ModuleList([Detector()])

        def extract_feat(self, image):
            return self.members[0].extract_feat(image)
    taps = [m.tap for m in survey(Wrapper(), (32, 32)).maps]
    assert taps == [f'members.0.{m.tap}' for m in survey(Detector(), (32, 32)).maps]


def test_frozen_weights_and_a_caller_without_gradients_change_no_map():
    model = MODELS.build(ConfigDict(tiny_ssd()))
    expected = survey(model, (96, 96))
    model.requires_grad_(False)
    assert survey(model, (96, 96)) == expected
    with torch.no_grad():
        assert survey(model, (96, 96)) == expected
        assert not torch.is_grad_enabled()


def test_the_dry_run_leaves_no_gradient_and_draws_no_random_number():
    model, state = Detector(), torch.random.get_rng_state()
    survey(model, (32, 32))
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
