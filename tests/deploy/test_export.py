"""What is exported is the plain student, whole and nothing else."""
import json

import numpy as np
import pytest
import torch
from mmengine.config import Config

from hgd_det.checkpoint import load
from hgd_det.deploy.export import export, stem_of
from hgd_det.deploy.runtime import TorchModel, open_model
from hgd_det.deploy.student import build, load_student
from hgd_det.deploy.verify import compare
from hgd_det.errors import UserError
from hgd_det.testing import make_student, tiny_ssd

pytestmark = pytest.mark.thorough

IMAGES = [np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)
          for i, shape in enumerate([(96, 96, 3), (50, 200, 3), (300, 120, 3)])]


@pytest.fixture
def student(tmp_path):
    made = make_student(tiny_ssd())
    torch.save(dict(state_dict=made.detector.state_dict(),
                    meta=dict(cfg=made.config.pretty_text, iter=500,
                              dataset_meta=dict(classes=('a', 'b', 'c')))), tmp_path / 'run.pth')
    return load_student(tmp_path / 'run.pth')


@pytest.mark.slow
def test_all_formats_hold_the_same_network(student, tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('safetensors')
    done = export(student, tmp_path / 'out', ['pth', 'safetensors', 'onnx', 'torch'])
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
        'model.json', 'model.md', 'model.onnx', 'model.pt2', 'model.pth', 'model.py', 'model.safetensors']
    models = [open_model(path) for path in done.files.values()]
    assert all(model.classes == ('a', 'b', 'c') and model.input_size == (96, 96) for model in models)
    for row in compare(TorchModel(student), models, IMAGES):
        assert row.holds and row.detections > 10 and row.alone == 0, row
        assert row.raw_score < 1e-5 and row.raw_box < 1e-2


def test_a_pth_is_weights_and_plain_values(student, tmp_path):
    done = export(student, tmp_path)
    content = torch.load(done.files['pth'], weights_only=True)
    assert set(content) == {'state_dict', 'meta'}
    assert list(content['state_dict']) == list(student.detector.state_dict())
    json.dumps(content['meta'])
    for key, value in student.detector.state_dict().items():
        assert torch.equal(content['state_dict'][key], value)


def test_the_config_stands_alone(student, tmp_path):

    done = export(student, tmp_path / 'student.pth')
    assert done.config == tmp_path / 'student.py'
    cfg = Config.fromfile(str(done.config))
    assert cfg.model.type == 'SingleStageDetector' and 'load_from' not in cfg
    build(cfg).load_state_dict(load(done.files['pth'])['state_dict'], strict=True)


def test_half_precision_halves_the_file(student, tmp_path):
    whole, half = export(student, tmp_path / 'a'), export(student, tmp_path / 'b', half=True)
    assert half.files['pth'].stat().st_size < .6 * whole.files['pth'].stat().st_size
    row, = compare(TorchModel(student), [open_model(half.files['pth'])], IMAGES, 'float16')
    assert 0 < row.raw_score < .02 and row.holds


def test_half_precision_keeps_what_it_cannot_hold(student, tmp_path):
    student.detector.backbone.features[1].running_var[0] = 1e6
    state = load(export(student, tmp_path, half=True).files['pth'])['state_dict']
    assert state['backbone.features.1.running_var'].dtype == torch.float32
    assert state['backbone.features.0.weight'].dtype == torch.float16


def test_nms_inside_onnx(student, tmp_path):
    pytest.importorskip('onnxruntime')
    done = export(student, tmp_path / 'x.onnx', with_nms=True)
    row, = compare(TorchModel(student), [open_model(done.files['onnx'])], IMAGES)
    assert row.holds and row.raw_score is None and row.detections > 10


def test_the_card_says_what_it_is(student, tmp_path):
    done = export(student, tmp_path)
    card, facts = done.card.read_text(), json.loads(done.card.with_suffix('.json').read_text())
    params = sum(p.numel() for p in student.detector.parameters())
    for text in ('a, b, c', '96 x 96', f'{params:,}', 'none: trained alone', '500', 'model.pth',
                 facts['files']['model.pth']['sha256'][:16]):
        assert text in card, text
    assert facts['params'] == params and facts['macs'] > 1e6 and facts['versions']['torch']


def test_a_second_export_replaces_the_first_with_force(student, tmp_path):
    export(student, tmp_path)
    first = (tmp_path / 'model.pth').read_bytes()
    with pytest.raises(UserError, match='model.pth exists already'):
        export(student, tmp_path)
    export(student, tmp_path, force=True)
    assert (tmp_path / 'model.pth').stat().st_size == len(first)
    assert not list(tmp_path.glob('.*'))


def test_where_the_files_go(tmp_path):
    assert stem_of(tmp_path, []) == (tmp_path / 'model', ['pth'])
    assert stem_of(tmp_path / 'a.onnx', []) == (tmp_path / 'a', ['onnx'])
    assert stem_of(tmp_path / 'a.pt2', ['torch']) == (tmp_path / 'a', ['torch'])
    with pytest.raises(UserError, match='give a folder'):
        stem_of(tmp_path / 'a.onnx', ['pth', 'onnx'])


def test_another_network_is_found_out(student, tmp_path):
    done = export(student, tmp_path)
    with torch.no_grad():
        student.detector.bbox_head.cls_convs[0][0].bias[0] += .1
    row, = compare(TorchModel(student), [open_model(done.files['pth'])], IMAGES)
    assert not row.holds and row.raw_score > 1e-4


def test_weights_of_a_detector_that_is_no_graph_are_verified_by_its_detections(tmp_path):
    made = make_student(tiny_ssd())
    config = made.config.copy()
    config.test_dataloader.dataset.pipeline[1] = dict(type='Resize', scale=(96, 96), keep_ratio=True)
    torch.save(dict(state_dict=made.detector.state_dict(), meta=dict(cfg=config.pretty_text)),
               tmp_path / 'run.pth')
    student = load_student(tmp_path / 'run.pth')
    with pytest.raises(UserError, match='keep_ratio=False'):
        export(student, tmp_path / 'x.onnx')
    done = export(student, tmp_path / 'out')
    row, = compare(TorchModel(student), [open_model(done.files['pth'])], IMAGES[:1])
    assert row.holds and row.raw_score is None and row.detections > 5
