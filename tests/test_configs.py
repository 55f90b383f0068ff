"""Every config below configs/ loads and builds; detectors that train alone take one step."""
from copy import deepcopy
from functools import cache
from pathlib import Path

import mmdet.models  # noqa: F401  (registers)
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import hgd_det.registered  # noqa: F401
from hgd_det.models import count

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.relative_to(ROOT / 'configs').as_posix()
                 for path in (ROOT / 'configs').rglob('*.py')
                 if '_base_' not in path.parts)


@cache
def _parsed(name):
    return Config.fromfile(ROOT / 'configs' / name)


def load(name):
    init_default_scope('mmdet')
    return deepcopy(_parsed(name))


ALONE = [name for name in CONFIGS if _parsed(name).model.type == 'SingleStageDetector']


def build(cfg):
    return MODELS.build(cfg.model)


def sample(size, classes):
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.4, 0.1, 0.9, 0.95]]) * size
    labels = torch.tensor([0, classes - 1])
    return DetDataSample(
        metainfo=dict(img_shape=(size, size), ori_shape=(size, size), scale_factor=(1.0, 1.0),
                      batch_input_shape=(size, size), pad_shape=(size, size), img_id=0),
        gt_instances=InstanceData(bboxes=boxes, labels=labels),
        ignored_instances=InstanceData(bboxes=boxes[:0], labels=labels[:0]))


def reads_the_maps_it_gets(cfg, model):
    head = cfg.model.bbox_head
    maps = count(model.to('meta'), cfg.input_size).maps
    assert [channels for _, channels, _, _ in maps] == list(head.in_channels)
    for (_, _, height, _), stride in zip(maps, head.anchor_generator.strides, strict=True):
        assert abs(cfg.input_size / stride - height) < 1, (height, stride)


def test_there_are_configs():
    assert len(CONFIGS) >= 11 and len(ALONE) >= 11


@pytest.mark.parametrize('name', CONFIGS)
def test_it_loads_and_its_model_builds(name):
    cfg = load(name)
    model = build(cfg)
    if name in ALONE:
        reads_the_maps_it_gets(cfg, model)
    assert any(p.requires_grad for p in model.parameters())
    assert cfg.input_size > 0
    head = getattr(model, 'student', model).bbox_head
    metainfo = cfg.test_dataloader.dataset.get('metainfo') or {}
    if 'classes' in metainfo:
        assert head.num_classes == len(metainfo['classes'])


@pytest.mark.parametrize('name', CONFIGS)
def test_it_starts_with_the_command_that_runs_it(name):
    lines = (ROOT / 'configs' / name).read_text().splitlines()
    comment = lines[:next(i for i, line in enumerate(lines) if not line.startswith('#'))]
    verb = 'test' if _parsed(name).model.type == 'Ensemble' else 'train'
    assert any(f'python tools/{verb}.py configs/{name}' in line for line in comment)


@pytest.mark.parametrize('name', ALONE)
def test_a_detector_takes_one_step(name):
    cfg = load(name)
    cfg.model.backbone.pop('init_cfg', None)  # no ImageNet weights here
    torch.manual_seed(0)
    model = build(cfg)
    model.init_weights()
    model.train()
    # BatchNorm on a 1x1 map cannot train on one image, which is why that config drops such batches
    batch = 2 if cfg.train_dataloader.get('drop_last') else 1
    size = cfg.input_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size), dtype=np.uint8)
    data = model.data_preprocessor(dict(
        inputs=[torch.from_numpy(pixels)] * batch,
        data_samples=[sample(size, model.bbox_head.num_classes) for _ in range(batch)]), True)
    losses = model(**data, mode='loss')
    assert {'loss_cls', 'loss_bbox'} <= set(losses)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters()
               if name.endswith('weight') and p.ndim == 4 and name.startswith('backbone'))


def test_pretrained_weights_can_be_given_and_left_out_by_cfg_options():
    cfg = load('ssd/ssd300_vgg16_voc.py')
    cfg.merge_from_dict({'model.backbone.init_cfg.checkpoint': 'mine.pth'})
    assert build(cfg).backbone.pretrained == 'mine.pth'
    cfg.merge_from_dict({'model.backbone.init_cfg': None})
    assert build(cfg).backbone.pretrained is None


def test_the_shapes_student_has_half_the_teachers_channels_and_the_same_anchors():
    student, teacher = (build(load(f'shapes/{who}.py')) for who in ('student', 'teacher'))
    assert [2 * c for c in student.backbone.out_channels] == list(teacher.backbone.out_channels)
    assert [2 * c for c in student.bbox_head.in_channels] == teacher.bbox_head.in_channels
    for one, other in zip(student.bbox_head.prior_generator.base_anchors,
                          teacher.bbox_head.prior_generator.base_anchors, strict=True):
        assert torch.equal(one, other)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in student.backbone.modules())


def test_the_shapes_configs_name_the_classes_of_the_data_set():
    from hgd_det.data.shapes import CLASSES
    for name in ('teacher', 'student', 'teacher_coco'):
        cfg = load(f'shapes/{name}.py')
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            assert tuple(loader.dataset.metainfo.classes) == CLASSES
