"""The detectors of runs, opened to be looked at, and the test images they are shown.

All of it is bounded: a report takes tens of seconds with small detectors and minutes with large ones.
"""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config

import hgd_det.registered  # noqa: F401  what configs name
from hgd_det.deploy import pictures
from hgd_det.deploy.bench import measure, summary, torch_threads
from hgd_det.deploy.postprocess import Detections
from hgd_det.deploy.runtime import TorchModel
from hgd_det.deploy.student import Student, build_test_set, load_student, nominal_size
from hgd_det.errors import UserError
from hgd_det.models.complexity import Complexity, count

DEFAULT_SIZE = (256, 256)   # of a detector that takes images of any size
SECONDS = 4                 # for timing a detector, warm-up included
REPEAT = (5, 60)            # timed calls, at least and at most


@dataclass(frozen=True)
class Detector:
    """A student ready to run; `size` (height, width) is what it is timed at and its maps are shown at."""
    name: str
    student: Student
    model: TorchModel
    size: tuple[int, int]
    cost: Complexity


@dataclass(frozen=True)
class Scene:
    """A test image, RGB, with its objects in pixels."""
    name: str
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


def open_detector(checkpoint: str | Path, config: str | Path | None = None, name: str = '') -> Detector:
    """The student of a checkpoint, with the config inside it unless another is given."""
    student = load_student(checkpoint, config)
    size = student.input_size or nominal_size(student.config) or DEFAULT_SIZE
    return Detector(name or Path(checkpoint).stem, student, TorchModel(student), size,
                    count(student.detector, size))


# ----------------------------------------------------------------------------------------- looking
class Scenes:
    """The images and objects that a config's test data set lists, in pixels of the files."""

    def __init__(self, cfg: Config):
        if not cfg.get('test_dataloader'):
            raise UserError('the config has no test_dataloader, so there are no images to look at')
        self.dataset = build_test_set(cfg)
        self.classes = tuple(self.dataset.metainfo.get('classes') or ())

    def __len__(self) -> int:
        return len(self.dataset)

    def scene(self, index: int) -> Scene:
        info = self.dataset.get_data_info(index)
        path, objects = Path(info['img_path']), info.get('instances') or []
        try:
            image = pictures.read(path)
        except pictures.Unreadable as error:
            raise UserError(f'{path}: {error}') from None
        return Scene(path.name, image,
                     np.array([each['bbox'] for each in objects], np.float32).reshape(-1, 4),
                     np.array([each['bbox_label'] for each in objects], np.int64),
                     np.array([bool(each.get('ignore_flag')) for each in objects], bool))


def look(detector: Detector, image: np.ndarray, score: float) -> Detections:
    """What a detector finds in an RGB image, in its pixels."""
    return detector.model([image])[0].above(score)


# ------------------------------------------------------------------------------------------ timing
def latencies(detectors: Sequence[Detector]) -> list[dict]:
    """`median_ms` and the rest of `deploy.bench.summary` for one image of noise on one thread, from pixels to
    boxes. Detectors take turns, so that what else happens on the machine meets all alike."""
    batches = [np.random.default_rng(0).integers(0, 256, (1, *each.size, 3), dtype=np.uint8)
               for each in detectors]
    calls = [lambda number, each=each, batch=batch: each.model.detect(batch)
             for each, batch in zip(detectors, batches, strict=True)]
    with torch_threads(1):
        for call in calls:
            call(0)
        began = time.perf_counter()
        for call in calls:
            call(0)
        slowest = time.perf_counter() - began
        repeat = int(np.clip(SECONDS * len(calls) / max(slowest, 1e-6) - 2, *REPEAT))
        return [summary(each, 1) for each in measure(calls, repeat, 1)]
