"""Every form is judged by the evaluator that judges checkpoints, on the same images."""
import pytest

from hgd_det.cli.test import evaluate as by_runner
from hgd_det.data.shapes import generate
from hgd_det.deploy.evaluate import evaluate
from hgd_det.deploy.runtime import open_model
from hgd_det.errors import UserError
from hgd_det.training.runner import load_config

CLASSES = ('disc', 'square', 'star')


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """A dozen images of 70 pixels, which the pipeline enlarges."""
    out = tmp_path_factory.mktemp('shapes') / 'set'
    generate(out, train=1, test=12, size=70)
    return out


@pytest.fixture
def cfg(shapes, tmp_path):
    from hgd_det.testing import tiny_ssd
    return load_config('configs/shapes/student.py', {
        'model': dict(tiny_ssd(), _delete_=True), 'work_dir': str(tmp_path),
        'test_dataloader.dataset.data_root': f'{shapes}/',
        'test_dataloader.dataset.metainfo.classes': CLASSES, 'test_dataloader.batch_size': 4,
        'test_evaluator': dict(type='VOCmAP', iou_thrs=[0.1, 0.3]),   # of a detector that was never trained
        'test_dataloader.num_workers': 0, 'test_dataloader.persistent_workers': False})


def test_a_checkpoint_gets_the_figures_that_hgd_det_test_prints(checkpoint, cfg):
    expected = by_runner(cfg, checkpoint)
    found = evaluate(open_model(checkpoint), cfg)
    assert found.keys() == expected.keys() and {'voc/mAP', 'voc/AP10/disc'} <= found.keys()
    assert expected['voc/mAP'] > 0
    for key, value in expected.items():
        assert f'{100 * found[key]:.2f}' == f'{100 * value:.2f}', key


def test_an_exported_file_gets_the_checkpoints_figures(checkpoint, onnx_nms, cfg):
    expected = evaluate(open_model(checkpoint), cfg)
    assert evaluate(open_model(onnx_nms), cfg) == pytest.approx(expected, abs=1e-4)


def test_the_figures_do_not_depend_on_the_batch_size(checkpoint, cfg):
    model = open_model(checkpoint)
    several = evaluate(model, cfg)
    cfg.test_dataloader.batch_size = 1
    assert evaluate(model, cfg) == pytest.approx(several, abs=1e-6)


def test_images_that_keep_their_shape_are_seen_one_shape_at_a_time(checkpoint, cfg):
    model = open_model(checkpoint)
    sizes = []
    model.input_size = None
    model.detect = lambda batch, detect=model.detect: sizes.append(batch.shape) or detect(batch)
    steps = cfg.test_dataloader.dataset.pipeline
    steps[1] = dict(type='RandomChoice', transforms=[
        [dict(type='Resize', scale=(96, 96), keep_ratio=False)],
        [dict(type='Resize', scale=(128, 96), keep_ratio=False)]])
    evaluate(model, cfg)
    assert sum(shape[0] for shape in sizes) == 12
    assert {shape[1:3] for shape in sizes} <= {(96, 96), (96, 128)}


def test_another_number_of_classes_is_refused(checkpoint, cfg):
    cfg.test_dataloader.dataset.metainfo.classes = ('disc', 'square')
    with pytest.raises(UserError, match=r'knows 3 classes \(disc, square, star\), the test set has 2'):
        evaluate(open_model(checkpoint), cfg)


def test_other_names_for_the_classes_are_pointed_out(checkpoint, cfg, capsys):
    cfg.test_dataloader.dataset.metainfo.classes = ('star', 'disc', 'square')
    evaluate(open_model(checkpoint), cfg)
    assert 'was trained for the classes disc, square, star, but the test set has star' in \
        capsys.readouterr().err


def test_a_pipeline_of_another_size_is_refused(checkpoint, cfg):
    cfg.test_dataloader.dataset.pipeline[1].scale = (64, 64)
    with pytest.raises(UserError, match=r'gives images of 64 x 64, .*tiny.pth takes 96 x 96'):
        evaluate(open_model(checkpoint), cfg)


def test_a_config_without_a_test_set_is_refused(checkpoint, cfg):
    cfg.test_dataloader = None
    with pytest.raises(UserError, match='nothing to test on'):
        evaluate(open_model(checkpoint), cfg)
