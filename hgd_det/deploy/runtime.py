"""One way to run any form of a detector: checkpoint, ONNX file, `torch.export` program.

    model = open_model('student.onnx')
    model.classes, model.input_size
    model([image])          # RGB arrays of any size -> [Detections in pixels of the image]
    model.detect(batch)     # uint8 (B, H, W, 3) at input size -> [Detections in fractions]
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from hgd_det.deploy.postprocess import Detections, Settings, detections
from hgd_det.errors import RunError, UserError
from hgd_det.weights import refuse_not_finite

SUFFIXES = ('.pth', '.pt', '.safetensors', '.onnx', '.pt2')


class Model:
    """A detector that runs. Subclasses say how: `detect`, and `raw` where one can look inside.

    Attributes:
        kind: What runs it: ``torch``, ``onnxruntime``, ``torch.export``.
        classes: Names by label.
        input_size: (height, width) of `detect`'s batches; None: any.
        settings: How detections are chosen from raw outputs.
        meta: What the export noted in the file; {} for a checkpoint.
    """
    kind = ''
    meta: Mapping = {}

    def __init__(self, path: Path, classes: Sequence[str], input_size: tuple[int, int] | None,
                 settings: Settings | None):
        self.path, self.classes, self.settings = path, tuple(classes), settings
        self.input_size = input_size and tuple(input_size)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """RGB uint8 images of any sizes, in one batch; boxes in pixels of each image."""
        found = self.detect(np.stack([self.resize(image) for image in images]))
        return [each.scaled(image.shape[1], image.shape[0])
                for each, image in zip(found, images, strict=True)]

    def resize(self, image: np.ndarray) -> np.ndarray:
        """As the pipeline does in training: stretched, bilinear."""
        height, width = self.input_size
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)

    def raw(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Boxes (B, M, 4) and scores (B, M, C) of all anchors; None where these cannot be had."""
        return None

    def detect(self, batch: np.ndarray) -> list[Detections]:
        boxes, scores = finite(self.raw(batch), self.path)
        return [detections(*each, self.settings) for each in zip(boxes, scores, strict=True)]


class TorchModel(Model):
    """A checkpoint, run by mmdet's own code: preprocessing, `predict`, NMS."""
    kind = 'torch'

    def __init__(self, student):
        super().__init__(student.path, student.classes, student.input_size, None)
        self.student = student
        self._pipeline = self._graph = None

    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        if self.input_size:
            return super().__call__(images)
        found = [self._pipeline_of(image) for image in images]     # shapes differ after resizing
        return [self._predict({key: [value] for key, value in data.items()}, rescale=True)[0]
                for data in found]

    def detect(self, batch: np.ndarray) -> list[Detections]:
        height, width = batch.shape[1:3]
        found = self._predict(as_data(batch))
        return [each.scaled(1 / width, 1 / height) for each in found]

    def raw(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        import torch
        if self._graph is None:
            from hgd_det.deploy.graph import DetectorGraph
            try:
                self._graph = DetectorGraph(self.student, fold=False)
            except UserError:    # a detector that is no graph
                return None
            self.settings = self._graph.settings
        with torch.inference_mode():
            return tuple(out.numpy() for out in self._graph(torch.from_numpy(batch)))

    def _predict(self, data: dict, rescale: bool = False) -> list[Detections]:
        import torch
        detector = self.student.detector
        with torch.inference_mode():
            data = detector.data_preprocessor(data, False)
            found = detector.predict(data['inputs'], data['data_samples'], rescale=rescale)
        found = [[sample.pred_instances[key].cpu().numpy() for key in ('bboxes', 'scores', 'labels')]
                 for sample in found]
        return [Detections(*finite(each, self.path)) for each in found]

    def _pipeline_of(self, image: np.ndarray) -> dict:
        if self._pipeline is None:
            from mmcv.transforms import Compose

            from hgd_det.deploy.student import building, test_pipeline
            steps = [dict(step) for step in test_pipeline(self.student.config)
                     if not step['type'].startswith(('Load', 'RobustLoad'))]
            with building(self.student.config):
                self._pipeline = Compose(steps)
        return self._pipeline(dict(img=np.ascontiguousarray(image[..., ::-1]), img_id=0, img_path='',
                                   img_shape=image.shape[:2], ori_shape=image.shape[:2]))


class ProgramModel(Model):
    """A `.pt2` file written by the export."""
    kind = 'torch.export'

    def __init__(self, path: Path):
        from hgd_det.deploy.program_file import load
        program, note = load(path)
        self.meta = _parsed(note, path)
        super().__init__(path, *_noted(self.meta, path))
        refuse_not_finite(program.state_dict, path)
        self.module = program.module()

    def raw(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch
        with torch.inference_mode():
            return tuple(out.numpy() for out in self.module(torch.from_numpy(batch)))


class OnnxModel(Model):
    """An `.onnx` file written by the export, run by onnxruntime on the CPU."""
    kind = 'onnxruntime'

    def __init__(self, path: Path, threads: int | None = None):
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f'{path} needs the onnxruntime package: pip install onnxruntime') from None
        from hgd_det.deploy.onnx_file import initializers, read_note
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, ['CPUExecutionProvider'])
        except Exception as error:  # onnxruntime's own exceptions share no base
            raise UserError(f'{path} cannot be run by onnxruntime: {error}') from None
        self.meta = _parsed(read_note(self.session), path)
        refuse_not_finite(initializers(path), path)
        self.with_nms = len(self.session.get_outputs()) == 3
        super().__init__(path, *_noted(self.meta, path))

    def raw(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        return None if self.with_nms else tuple(self.session.run(None, {'images': batch}))

    def detect(self, batch: np.ndarray) -> list[Detections]:
        if not self.with_nms:
            return super().detect(batch)
        boxes, scores, labels = finite(self.session.run(None, {'images': batch}), self.path)
        return [Detections(b[n >= 0], s[n >= 0], n[n >= 0])
                for b, s, n in zip(boxes, scores, labels, strict=True)]


def finite(outputs: Sequence[np.ndarray], path: Path) -> Sequence[np.ndarray]:
    """The same, unless some of it is NaN or inf: such scores are above no threshold, and nothing is found."""
    if not all(np.isfinite(each).all() for each in outputs):
        raise RunError(f'{path} puts out values that are not finite (NaN, inf); float16 may be too narrow '
                       'for it, or its weights are damaged')
    return outputs


def as_data(batch: np.ndarray) -> dict:
    """RGB uint8 (B, H, W, 3) as mmdet's data set would hand it to the preprocessor: BGR, a sample each."""
    import torch
    from mmdet.structures import DetDataSample
    shape = batch.shape[1:3]
    meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))
    return dict(
        inputs=[torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))
                for image in batch],
        data_samples=[DetDataSample(metainfo=dict(meta)) for _ in batch])


def open_model(path: str | Path, config: str | Path | None = None, options: Sequence[str] = (),
               threads: int | None = None) -> Model:
    """Any form of a detector. `config` is for checkpoints that do not hold theirs; `threads` 0 or
    None leaves the choice to the runtime (torch's is set for the whole process)."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f'model {path} does not exist' if not path.exists() else
                        f'model {path} is a folder; give one of its files')
    if path.suffix not in SUFFIXES:
        raise UserError(f'model {path}: a file ends in {", ".join(SUFFIXES)}')
    if path.suffix == '.onnx':
        return OnnxModel(path, threads)
    if threads:
        import torch
        torch.set_num_threads(threads)
    if path.suffix == '.pt2':
        return ProgramModel(path)
    from hgd_det.deploy.student import load_student
    return TorchModel(load_student(path, config, options))


def _parsed(note: str, path: Path) -> dict:
    """What the export wrote into the file; {} for files of other origin."""
    try:
        meta = json.loads(note or '{}')
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path}: what hgd-det export noted in it is damaged: {error}') from None
    return meta if isinstance(meta, dict) else {}


def _noted(meta: Mapping, path: Path) -> tuple[list[str], list[int], Settings]:
    """Classes, input size and settings."""
    if not {'classes', 'input_size', 'settings'} <= meta.keys():
        raise UserError(f'{path} does not say which classes and input size it has: it was not written '
                        'by hgd-det export')
    try:
        settings = dict(meta['settings'], levels=tuple(meta['settings']['levels']))
        return list(map(str, meta['classes'])), list(map(int, meta['input_size'])), Settings(**settings)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f'{path}: what hgd-det export noted in it is damaged: {error!r}') from None
