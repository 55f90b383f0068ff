"""HGD on detectors nobody wrote a line for: two anchor-based families and two anchor-free ones."""
import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config

import hgd_det.registered  # noqa: F401
from hgd_det.distill.distiller import Distiller
from hgd_det.distill.schedule import Progress
from hgd_det.distill.stages import pair_stages, survey
from hgd_det.testing import make_batch

register_all_modules(init_default_scope=True)
R18 = dict(backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]))
KINDS = {
    'RetinaNet': 'retinanet/retinanet_r50_fpn_1x_coco.py',
    'Faster R-CNN': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'FCOS': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
}


@pytest.mark.slow
@pytest.mark.parametrize('path', KINDS.values(), ids=KINDS)
def test_hgd_builds_and_trains(path):
    teacher = get_config(f'mmdet::{path}')
    teacher.model.backbone.init_cfg = None
    student = Config(dict(model=teacher.model.to_dict()))
    student.merge_from_dict(dict(model=R18))
    model = Distiller(student.model, dict(model=teacher, checkpoint='untrained'),
                      dict(hgd=dict(type='HGD', weight=1.0, warmup=0)), input_size=128)
    model.init_weights()
    model.train().progress = Progress(0, 10)
    sizes = [p['size'][0] for p in model.describe()['pairs']]
    assert sizes[0] == 64 and len(sizes) >= 6 and sizes == sorted(sizes, reverse=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    distances = []
    for _ in range(4):  # the same batch again: the imitation must fall
        data = model.data_preprocessor(make_batch(batch=2, size=128, num_classes=80), True)
        total, log = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        distances.append(log['hgd_raw'].item())
        assert torch.isfinite(total)
    assert distances[-1] < distances[0]
    assert not any(k.startswith(('student.', 'teacher.')) for k in model.state_dict())
    assert mmdet.__version__


R101 = [pytest.mark.slow]
BACKBONE_64_32 = {64: 'backbone.relu', 32: 'backbone[0]'}
PAIRS = [    # student, teacher, and the taps of both; the rest are the head's maps
    pytest.param('rtmdet/rtmdet_tiny_8xb32-300e_coco', 'rtmdet/rtmdet_s_8xb32-300e_coco',
                 {64: 'backbone.stem', 32: 'backbone.stage1'}, [16, 8, 4], id='RTMDet'),
    pytest.param('yolox/yolox_tiny_8xb8-300e_coco', 'yolox/yolox_s_8xb8-300e_coco',
                 {64: 'backbone.stem', 32: 'backbone.stage1'}, [16, 8, 4], id='YOLOX'),
    pytest.param('detr/detr_r18_8xb2-500e_coco', 'detr/detr_r50_8xb2-150e_coco',
                 {64: 'backbone.relu', 32: 'backbone.layer1', 16: 'backbone.layer2', 8: 'backbone.layer3'},
                 [4], id='DETR'),
    pytest.param('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 'fcos/fcos_r101-caffe_fpn_gn-head-1x_coco',
                 BACKBONE_64_32, [16, 8, 4, 2, 1], id='FCOS', marks=R101),
    pytest.param('gfl/gfl_r50_fpn_1x_coco', 'gfl/gfl_r101_fpn_ms-2x_coco', BACKBONE_64_32,
                 [16, 8, 4, 2, 1], id='GFL', marks=R101),
    pytest.param('faster_rcnn/faster-rcnn_r50_fpn_1x_coco', 'faster_rcnn/faster-rcnn_r101_fpn_1x_coco',
                 {64: 'backbone.relu'}, [32, 16, 8, 4, 2], id='Faster R-CNN', marks=R101),
]


@pytest.mark.parametrize('student, teacher, early, read', PAIRS)
def test_the_stages_of_a_larger_and_a_smaller_one_are_the_same_places(student, teacher, early, read):
    views = []
    for path in (student, teacher):
        model = get_config(f'mmdet::{path}.py').model
        model.backbone.init_cfg = None
        model.get('data_preprocessor', {}).pop('batch_augments', None)
        views.append(survey(MODELS.build(model), (128, 128)))
    taps = early | {size: f'neck[{i}]' for i, size in enumerate(read)}
    for side in ('student', 'teacher'):
        assert {p.teacher.size[0]: getattr(p, side).tap for p in pair_stages(*views)} == taps
    assert [p.teacher.size[0] for p in pair_stages(*views, select='heads')] == read
    assert len(pair_stages(*views, select='all')) >= len(taps)


@pytest.mark.parametrize('kind', ['yolox/yolox_{}_8xb8-300e_coco', 'rtmdet/rtmdet_{}_8xb32-300e_coco'])
def test_a_head_that_assigns_inside_its_loss_is_no_obstacle_to_a_feature_term(kind):
    """YOLOX's head has no `get_targets` and three outputs per level; RTMDet's backbone has gates."""
    configs = [get_config(f'mmdet::{kind.format(size)}.py') for size in ('tiny', 's')]
    for config in configs:
        config.model.data_preprocessor.pop('batch_augments', None)
        config.model.backbone.init_cfg = None
    student, teacher = configs
    model = Distiller(student.model, dict(model=teacher, checkpoint='untrained'),
                      dict(hgd=dict(type='HGD', weight=1.0, warmup=0)), input_size=128)
    model.init_weights()
    model.train().progress = Progress(0, 10)
    data = model.data_preprocessor(make_batch(batch=2, size=128, num_classes=80), True)
    total, log = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    total.backward()
    assert log['hgd_raw'] > 0 and torch.isfinite(total)
    assert [p['size'][0] for p in model.describe()['pairs']] == [64, 32, 16, 8, 4]
