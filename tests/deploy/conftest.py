"""A tiny detector with random weights, as a run would have saved it and as the export writes it."""
from pathlib import Path

import pytest
import torch

CLASSES = ('disc', 'square', 'star')


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint with its config inside, as mmengine writes it; images of 96 pixels, three classes.

    Normalisation is fitted to a batch of noise and the head's weights are large: otherwise the features
    die out on their way, and every image gets the same detections.
    """
    from mmengine.config import Config

    from hgd_det.deploy.student import build
    from hgd_det.testing import tiny_ssd
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96), keep_ratio=False),
                dict(type='PackDetInputs')]
    cfg = Config(dict(
        default_scope='mmdet', model=tiny_ssd(num_classes=len(CLASSES)),
        test_dataloader=dict(batch_size=1, dataset=dict(
            type='VOCDataset', metainfo=dict(classes=CLASSES), pipeline=pipeline))))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = build(cfg)
        detector.init_weights()
        for module in detector.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            detector.train().extract_feat(4 * torch.randn(8, 3, 12, 12).repeat_interleave(8, 2)
                                          .repeat_interleave(8, 3))
        for name, weights in detector.bbox_head.named_parameters():
            if name.endswith('weight'):
                torch.nn.init.normal_(weights, std=0.1 if 'cls' in name else 0.05)
    path = tmp_path_factory.mktemp('deployed') / 'tiny.pth'
    torch.save(dict(state_dict=detector.state_dict(), meta=dict(
        cfg=cfg.pretty_text, dataset_meta=dict(classes=CLASSES), iter=4)), path)
    return path


@pytest.fixture(scope='session')
def write_onnx(checkpoint):
    """Write the checkpoint's network, traced once, to a file beside it."""
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    from hgd_det.deploy import onnx_file
    from hgd_det.deploy.graph import DetectorGraph
    from hgd_det.deploy.student import load_student
    student = load_student(checkpoint)
    graph = DetectorGraph(student)
    traced = onnx_file.program(graph)
    meta = dict(classes=student.classes, input_size=student.input_size, settings=graph.settings.as_dict())

    def write(name: str, with_nms: bool) -> Path:
        path = checkpoint.with_name(name)
        onnx_file.write(traced, path, meta, graph.settings if with_nms else None)
        return path

    return write


@pytest.fixture(scope='session')
def onnx_raw(write_onnx) -> Path:
    """The checkpoint's network without NMS."""
    return write_onnx('raw.onnx', False)


@pytest.fixture(scope='session')
def onnx_nms(write_onnx) -> Path:
    """The checkpoint's network with NMS inside."""
    return write_onnx('nms.onnx', True)
