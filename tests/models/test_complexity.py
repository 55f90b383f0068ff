from functools import cache
from pathlib import Path

import mmdet.models  # noqa: F401  (registers)
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch import nn

from hgd_det.models import count

CONFIGS = Path(__file__).parents[2] / 'configs'
SSD_SIZES = [38, 19, 10, 5, 3, 1]


@cache
def build(name, device='meta'):
    cfg = Config.fromfile(CONFIGS / f'{name}.py', import_custom_modules=False)
    init_default_scope('mmdet')
    return MODELS.build(cfg.model).to(device)


@pytest.mark.parametrize(('name', 'params', 'giga_macs'), [
    ('ssd/ssd300_vgg16_voc', 26_285_486, 31.37),
    ('ssd/ssd300_vgg16_coco', 34_305_206, 34.36),
    ('ssd/ssd300_half_voc', 7_409_742, 8.19),
    ('ssd/ssd300_half_coco', 11_420_502, 9.69),
    ('ssd/ssd300_vgg11_voc', 20_791_278, 17.16),
    ('ssd/ssd300_mobilenet_voc', 4_449_454, 1.18),  # the paper: 4.4 M, 1.19 G
])
def test_the_papers_detectors_cost_what_the_paper_says(name, params, giga_macs):
    found = count(build(name), 300)
    assert found.params == params
    assert round(found.macs / 1e9, 2) == giga_macs
    assert [(h, w) for _, _, h, w in found.maps] == [(size, size) for size in SSD_SIZES]


@pytest.mark.parametrize('student', ['half', 'vgg11', 'mobilenet'])
@pytest.mark.parametrize('data', ['voc', 'coco'])
def test_a_students_anchors_and_head_outputs_are_the_teachers(student, data):
    def predictions(detector):
        with torch.no_grad():
            return detector.eval()._forward(torch.zeros(1, 3, 300, 300, device='meta'))

    names = [f'ssd/ssd300_{model}_{data}' for model in (student, 'vgg16')]
    small, teacher = (predictions(build(name)) for name in names)
    assert [[m.shape for m in maps] for maps in small] == [[m.shape for m in maps]
                                                           for maps in teacher]
    grids = [build(name).bbox_head.prior_generator.grid_priors(
        [(size, size) for size in SSD_SIZES], device='cpu') for name in names]
    assert sum(len(level) for level in grids[0]) == 8732
    assert all(torch.equal(one, other) for one, other in zip(*grids, strict=True))


def test_the_count_is_the_closed_form():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 16x16 out: 256 * 8 * 27
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),              # 256 * 8 * 9
        nn.ConvTranspose2d(8, 4, 2, stride=2),                # 256 in * 8 * 4 * 4
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5))                                      # 20
    found = count(net, 32)
    assert found.macs == 256 * 8 * 27 + 256 * 8 * 9 + 256 * 8 * 16 + 20
    assert found.params == sum(p.numel() for p in net.parameters())
    assert found.maps == []


def test_height_and_width_may_differ():
    found = count(build('ssd/ssd300_half_voc'), (300, 340))
    assert found.maps[0] == ('neck[0]', 256, 38, 43)


def test_the_model_is_left_as_it_was_found():
    model = build('shapes/student', device='cpu').train()
    model.backbone.features[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    count(model, 96)
    assert model.training and not model.backbone.features[1].training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_and_mode_are_restored_after_a_failure():
    net = nn.Sequential(nn.Conv2d(5, 8, 1)).train()  # wants five channels, an image has three
    with pytest.raises(RuntimeError):
        count(net, 8)
    assert net.training and not net[0]._forward_hooks


def test_a_two_stage_detector_is_counted_with_its_second_stage():
    backbone = dict(type='ResNet', depth=18, num_stages=4, out_indices=(3,), base_channels=8)
    detector = MODELS.build(ConfigDict(
        type='FasterRCNN', data_preprocessor=dict(type='DetDataPreprocessor'), backbone=backbone,
        rpn_head=dict(type='RPNHead', in_channels=64, feat_channels=8,
                      anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[1.0],
                                            strides=[32])),
        roi_head=dict(
            type='StandardRoIHead',
            bbox_roi_extractor=dict(
                type='SingleRoIExtractor', out_channels=64, featmap_strides=[32],
                roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0)),
            bbox_head=dict(type='Shared2FCBBoxHead', in_channels=64, fc_out_channels=16,
                           num_classes=3)),
        train_cfg=None,
        test_cfg=dict(rpn=dict(nms_pre=10, max_per_img=10, min_bbox_size=0,
                               nms=dict(type='nms', iou_threshold=0.7)),
                      rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5),
                                max_per_img=10))))
    found = count(detector, 96)
    assert found.maps == [('backbone[0]', 64, 3, 3)]
    assert found.macs > count(detector.backbone, 96).macs
