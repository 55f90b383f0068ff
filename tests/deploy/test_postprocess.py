"""Choosing detections in NumPy equals mmdet's way."""
import numpy as np
import pytest
import torch
from mmdet.models.layers import multiclass_nms

from hgd_det.deploy.postprocess import Detections, Settings, detections, nms
from hgd_det.errors import UserError

CFG = dict(nms_pre=1000, nms=dict(type='nms', iou_threshold=0.45), score_thr=0.02, max_per_img=200,
           min_bbox_size=0)


def some(anchors=300, classes=3, seed=0):
    draw = np.random.default_rng(seed)
    corner = draw.random((anchors, 2)) * .7
    boxes = np.concatenate([corner, corner + draw.random((anchors, 2)) * .3], 1)
    return boxes.astype(np.float32), (draw.random((anchors, classes)) ** 4).astype(np.float32)


def test_it_equals_mmdets_multiclass_nms():
    boxes, scores = some()
    found = detections(boxes, scores, Settings(0.05, 0.45, 40, 0, (300,)))
    padded = torch.from_numpy(np.concatenate([scores, np.zeros((300, 1), np.float32)], 1))
    dets, labels = multiclass_nms(torch.from_numpy(boxes), padded, 0.05,
                                  dict(type='nms', iou_threshold=0.45), 40)
    assert np.array_equal(found.labels, labels.numpy())
    assert np.allclose(np.column_stack([found.boxes, found.scores]), dets.numpy())


def test_by_hand():
    boxes = np.float32([[0, 0, 1, 1], [0, 0, 1, .9], [0, 0, .4, .4], [.5, .5, .5, 1]])
    scores = np.float32([[.5, .9], [.6, 0], [.01, .3], [.9, .9]])
    found = detections(boxes, scores, Settings(0.02, 0.5, 10, 0, (4,)))
    # box 3 has no width; box 0 loses to box 1 in class 0; in class 1 box 2 overlaps too little
    assert found.labels.tolist() == [1, 0, 1]
    assert found.scores.tolist() == pytest.approx([.9, .6, .3])
    assert found.boxes.tolist() == boxes[[0, 1, 2]].tolist()


def test_of_each_level_only_the_best_pairs_go_on():
    boxes, scores = some(100)
    settings = Settings(0.0, 1.0, 1000, 30, (60, 5, 35))
    found = detections(boxes, scores, settings)
    assert len(found.scores) == 30 + 15 + 30
    levels = scores[:60], scores[60:65], scores[65:]
    expected = np.concatenate([np.sort(level, None)[-30:] for level in levels])
    assert np.allclose(np.sort(found.scores), np.sort(expected))
    assert settings.cut(3) == [(slice(0, 60), 30), (slice(65, 100), 30)]


def test_nothing_found_is_an_empty_result():
    boxes, scores = some(5)
    found = detections(boxes, scores * 0, Settings(levels=(5,)))
    assert found.boxes.shape == (0, 4) and found.scores.shape == found.labels.shape == (0,)
    assert nms(np.zeros((0, 4), np.float32), .5).tolist() == []


def test_detections_scale_and_filter():
    found = Detections(np.float32([[0, .5, 1, 1], [0, 0, .1, .1]]), np.float32([.9, .1]), np.array([1, 0]))
    assert found.scaled(200, 100).boxes.tolist() == pytest.approx(np.float32([[0, 50, 200, 100],
                                                                             [0, 0, 20, 10]]))
    assert found.above(.5).labels.tolist() == [1]


def test_settings_are_those_of_the_test_cfg():
    assert Settings.of(CFG, [4, 2]) == Settings(0.02, 0.45, 200, 1000, (4, 2))
    assert Settings.of(CFG | dict(nms_pre=-1), []).before == 0


@pytest.mark.parametrize('change, word', [
    (dict(nms=dict(type='soft_nms', iou_threshold=.5)), 'soft_nms'),
    (dict(nms=dict(iou_threshold=.5, class_agnostic=True)), 'class_agnostic'),
    (dict(min_bbox_size=3), 'min_bbox_size=3'),
])
def test_what_a_graph_cannot_do_is_refused(change, word):
    with pytest.raises(UserError, match=word):
        Settings.of(CFG | change, [])
