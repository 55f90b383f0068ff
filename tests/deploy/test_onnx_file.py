"""The ONNX file computes what the graph computes, and what mmdet does after it."""
import json

import numpy as np
import pytest
import torch

from hgd_det.deploy.graph import DetectorGraph
from hgd_det.deploy.onnx_file import OPSET, program, read_note, write
from hgd_det.deploy.postprocess import Settings, detections
from hgd_det.testing import make_student, tiny_ssd

pytestmark = pytest.mark.thorough

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

BATCHES = {n: np.random.default_rng(n).integers(0, 256, (n, 96, 96, 3), dtype=np.uint8) for n in (1, 2, 5)}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('onnx')
    graph = DetectorGraph(make_student(tiny_ssd()))
    traced = program(graph)
    write(traced, folder / 'raw.onnx', dict(classes=['a', 'b', 'c']))
    write(traced, folder / 'nms.onnx', dict(classes=['a', 'b', 'c']), graph.settings)
    return graph, traced, folder


def run(path, batch):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(None, {'images': batch})


@pytest.mark.parametrize('size', BATCHES)
def test_raw_outputs_equal_the_graphs_for_any_batch(made, size):
    graph, _, folder = made
    boxes, scores = run(folder / 'raw.onnx', BATCHES[size])
    expected = graph(torch.from_numpy(BATCHES[size]))
    assert np.abs(boxes - expected[0].numpy()).max() < 1e-5
    assert np.abs(scores - expected[1].numpy()).max() < 1e-5


@pytest.mark.parametrize('size', BATCHES)
def test_nms_inside_equals_nms_outside(made, size):
    graph, _, folder = made
    boxes, scores, labels = run(folder / 'nms.onnx', BATCHES[size])
    raw = run(folder / 'raw.onnx', BATCHES[size])
    assert boxes.shape == (size, 50, 4) and scores.shape == labels.shape == (size, 50)
    for i in range(size):
        expected = detections(raw[0][i], raw[1][i], graph.settings)
        found = labels[i] >= 0
        assert 5 < found.sum() == len(expected.scores)
        assert np.allclose(scores[i][found], expected.scores, atol=1e-6)
        assert np.allclose(boxes[i][found], expected.boxes, atol=1e-6)
        assert np.array_equal(labels[i][found], expected.labels)
        assert not scores[i][~found].any() and not boxes[i][~found].any()
        assert found[:found.sum()].all()


@pytest.mark.parametrize('settings', [
    Settings(0.02, 0.45, 10, 60),          # a bound on the pairs of each level
    Settings(0.02, 0.45, 10_000, 0),       # more wanted than there are pairs
    Settings(0.99999, 0.45, 10, 0),          # nothing is good enough
    Settings(0.3, 0.05, 7, 400),
], ids=['cut', 'all', 'nothing', 'strict'])
def test_every_setting_does_the_same_inside_and_outside(made, tmp_path, settings):
    graph, traced, folder = made
    settings = Settings(settings.score, settings.iou, settings.keep, settings.before, graph.settings.levels)
    write(traced, tmp_path / 'nms.onnx', {}, settings)
    boxes, scores, labels = run(tmp_path / 'nms.onnx', BATCHES[2])
    raw = run(folder / 'raw.onnx', BATCHES[2])
    for i in range(2):
        expected = detections(raw[0][i], raw[1][i], settings)
        found = labels[i] >= 0
        assert np.allclose(scores[i][found], expected.scores, atol=1e-6)
        assert np.allclose(boxes[i][found], expected.boxes, atol=1e-6)
    assert found.any() == (settings.score < .9)


def test_only_standard_operators_and_a_stated_opset(made):
    for name in ('raw.onnx', 'nms.onnx'):
        model = onnx.load(made[2] / name)
        assert [(each.domain, each.version) for each in model.opset_import] == [('', OPSET)]
        assert {node.domain for node in model.graph.node} <= {''}
        assert not model.functions
        assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
            'batch', 96, 96, 3]
    assert sum(node.op_type == 'NonMaxSuppression' for node in model.graph.node) == 1
    assert not any(node.op_type == 'BatchNormalization' for node in model.graph.node)


def test_the_file_knows_what_it_is(made):
    session = onnxruntime.InferenceSession(str(made[2] / 'raw.onnx'))
    assert json.loads(read_note(session)) == dict(classes=['a', 'b', 'c'])
