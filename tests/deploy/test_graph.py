"""The graph equals mmdet's own preprocessing, network and box decoding."""
import copy

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from torch import nn

from hgd_det.deploy.graph import DetectorGraph
from hgd_det.deploy.postprocess import detections
from hgd_det.deploy.student import Student, build
from hgd_det.errors import UserError
from hgd_det.testing import make_student, tiny_ssd

pytestmark = pytest.mark.thorough


def mobilenet():
    model = tiny_ssd()
    channels = (64, 128, 256, 64)
    model['backbone'] = dict(type='MobileNetV1SSD', width=0.25)
    model['neck'] = dict(type='SSDNeck', in_channels=channels[:3], out_channels=channels,
                         level_strides=(1,), level_paddings=(0,), l2_norm_scale=None)
    model['bbox_head'].update(in_channels=channels)
    return model


def distribution():
    model = tiny_ssd()
    model['bbox_head'].update(type='DistributionSSDHead', n=8, lo=-4.0, hi=4.0)
    return model


KINDS = dict(vgg16=tiny_ssd, vgg11_plain=lambda: tiny_ssd(depth=11, with_bn=False), mobilenet=mobilenet,
             distribution=distribution)
IMAGES = torch.randint(0, 256, (3, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize('kind', KINDS)
def test_raw_outputs_are_mmdets(kind):
    student = make_student(KINDS[kind]())
    boxes, scores = DetectorGraph(student)(IMAGES)
    detector, head = student.detector, student.detector.bbox_head
    bgr = [image.flip(-1).permute(2, 0, 1) for image in IMAGES]
    with torch.no_grad():
        data = detector.data_preprocessor(dict(inputs=bgr), False)
        cls_scores, bbox_preds = detector._forward(data['inputs'])
        if kind == 'distribution':
            bbox_preds = head.to_deltas(bbox_preds)
        priors = torch.cat(head.prior_generator.grid_priors([m.shape[-2:] for m in cls_scores], device='cpu'))
        for i in range(3):
            logits = torch.cat([m[i].permute(1, 2, 0).reshape(-1, 4) for m in cls_scores])
            deltas = torch.cat([m[i].permute(1, 2, 0).reshape(-1, 4) for m in bbox_preds])
            assert torch.allclose(scores[i], logits.softmax(-1)[:, :-1], atol=1e-4)
            decoded = head.bbox_coder.decode(priors, deltas, max_shape=(96, 96))
            assert torch.allclose(boxes[i] * 96, decoded, atol=1e-3)
    assert scores.max() > .3


@pytest.mark.parametrize('kind', KINDS)
def test_the_detections_are_mmdets(kind):
    student = make_student(KINDS[kind]())
    graph = DetectorGraph(student)
    boxes, scores = (out.numpy() for out in graph(IMAGES))
    meta = dict(img_shape=(96, 96), ori_shape=(192, 288), scale_factor=(1 / 3, 1 / 2))
    bgr = [image.flip(-1).permute(2, 0, 1) for image in IMAGES]
    with torch.no_grad():
        data = student.detector.data_preprocessor(
            dict(inputs=bgr, data_samples=[DetDataSample(metainfo=dict(meta)) for _ in bgr]), False)
        expected = student.detector.predict(data['inputs'], data['data_samples'])
    for b, s, sample in zip(boxes, scores, expected, strict=True):
        found = detections(b, s, graph.settings).scaled(288, 192)
        instances = sample.pred_instances
        assert len(found.scores) == len(instances) > 5
        # equal scores may change places
        assert np.allclose(found.scores, instances.scores, atol=1e-5)
        assert np.allclose(np.sort(found.boxes, 0), np.sort(instances.bboxes, 0), atol=1e-2)


def test_the_students_own_detector_is_not_touched():
    student = make_student(tiny_ssd())
    before = copy.deepcopy(student.detector.state_dict())
    graph = DetectorGraph(student, half=True)
    after = student.detector.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], v) for k, v in before.items())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in graph.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in DetectorGraph(student, fold=False).modules())


def test_folding_changes_nothing_but_the_last_digits():
    student = make_student(tiny_ssd())
    folded, plain = DetectorGraph(student)(IMAGES), DetectorGraph(student, fold=False)(IMAGES)
    for a, b in zip(folded, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_half_precision_stays_near():
    student = make_student(tiny_ssd())
    full, half = DetectorGraph(student)(IMAGES), DetectorGraph(student, half=True)(IMAGES)
    assert half[0].dtype == half[1].dtype == torch.float32
    assert (full[1] - half[1]).abs().max() < .02 and (full[0] - half[0]).abs().max() < .01


def test_a_detector_that_does_not_normalise_or_flip():
    model = tiny_ssd()
    model['data_preprocessor'] = dict(type='DetDataPreprocessor', pad_size_divisor=1)
    graph = DetectorGraph(make_student(model))
    assert graph.flips and not graph.normalised and torch.isfinite(graph(IMAGES)[1]).all()


def retina():
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config
    register_all_modules()
    model = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    model.backbone.init_cfg = None
    return model


def test_a_head_that_scores_with_sigmoid():
    config = Config(dict(model=retina()))
    student = Student(build(config), config, ('x',) * 80, (64, 64), None)
    boxes, scores = DetectorGraph(student)(IMAGES[:, :64, :64])
    assert boxes.shape[1:] == (9 * (64 + 16 + 4 + 1 + 1), 4)
    assert (0 <= boxes).all() and (boxes <= 1).all()
    with torch.no_grad():
        bgr = [image[:64, :64].flip(-1).permute(2, 0, 1) for image in IMAGES]
        data = student.detector.data_preprocessor(dict(inputs=bgr), False)
        levels = student.detector._forward(data['inputs'])[0]
    expected = torch.cat([m.permute(0, 2, 3, 1).reshape(3, -1, 80) for m in levels], 1).sigmoid()
    assert torch.allclose(scores, expected, atol=1e-5)


def test_another_box_coder_is_refused():
    model = tiny_ssd()
    model['bbox_head']['bbox_coder'].update(add_ctr_clamp=True)
    with pytest.raises(UserError, match='DeltaXYWHBBoxCoder'):
        DetectorGraph(make_student(model))


def test_free_shapes_are_refused_saying_what_helps():
    student = make_student(tiny_ssd())
    with pytest.raises(UserError, match='keep_ratio=False'):
        DetectorGraph(Student(student.detector, student.config, student.classes, None, student.path))
