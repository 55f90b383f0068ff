"""Is the exported file the same network? Every form beside the checkpoint, on the same images."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from mmengine.config import Config

from hgd_det.deploy import tables
from hgd_det.deploy.pictures import read
from hgd_det.deploy.postprocess import Detections, Settings, detections
from hgd_det.deploy.runtime import Model, finite
from hgd_det.deploy.student import build_test_set
from hgd_det.errors import RunError, UserError

# what float32 arithmetic in another order may change, and what rounding to float16 does
LIMITS = {'float32': (1e-4, 0.05), 'float16': (2e-2, 2.0)}
ROUNDING = 1e-6    # of a float32 after a network's worth of additions, relative


@dataclass
class Comparison:
    """The largest differences from the checkpoint over all images; boxes in pixels of the image.

    `raw_*` compare every anchor before NMS, the others each detection with its partner: the nearest
    box of its class. `alone` counts detections without one, on either side. `ties` counts those that
    the checkpoint itself loses when its raw outputs are changed by their rounding: of candidates
    that score the same, as an untrained detector's do, chance decides which are chosen. On `broken` images
    one of the two puts out NaN or inf, which compares with nothing.
    """
    name: str
    precision: str = 'float32'
    images: int = 0
    raw_score: float | None = None
    raw_box: float | None = None
    score: float = 0.0
    box: float = 0.0
    detections: int = 0
    alone: int = 0
    ties: int = 0
    broken: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Within the limits. Beside ties, one detection in two hundred may be alone: at a threshold, or
        at NMS's overlap, it falls to either side."""
        if self.broken:
            return False
        score, box = LIMITS[self.precision]
        close = self.alone <= 2 * self.ties + max(self.detections / 200,
                                                  0 if self.precision == 'float32' else 2)
        if self.raw_score is None:
            return close and self.score <= score and self.box <= box
        return close and self.raw_score <= score and self.raw_box <= box


def compare(reference: Model, models: Sequence[Model], images: Iterable[np.ndarray],
            precision: str = 'float32') -> list[Comparison]:
    """Each model beside the reference on RGB images."""
    found = [Comparison(f'{model.path.name}', precision) for model in models]
    for image in images:
        height, width = image.shape[:2]
        batch = reference.resize(image)[None] if reference.input_size else image[None]
        truth, raw = _seen(reference, image, batch)
        for row, model in zip(found, models, strict=True):
            row.images += 1
            given, mine = _seen(model, image, batch if raw is not None else None)
            if truth is None or given is None:
                row.broken += 1
                continue
            if mine is not None:
                boxes = np.abs(mine[0] - raw[0]) * [width, height, width, height]
                row.raw_score = max(row.raw_score or 0.0, float(np.abs(mine[1] - raw[1]).max()))
                row.raw_box = max(row.raw_box or 0.0, float(boxes.max()))
            score, distance, alone = match(truth, given)
            row.detections += len(truth.scores)
            row.score, row.box = max(row.score, score), max(row.box, distance)
            row.alone += alone
            if alone and raw is not None:
                row.ties += _ties(raw, reference.settings)
    return found


def _seen(model: Model, image: np.ndarray, batch: np.ndarray | None):
    """Detections and raw outputs; (None, None) where either is not finite."""
    try:
        return model([image])[0], None if batch is None or (raw := model.raw(batch)) is None else \
            finite(raw, model.path)
    except RunError:
        return None, None


def pictures_of(cfg: Config, limit: int) -> Iterator[np.ndarray]:
    """The first images of the config's test set."""
    if not cfg.get('test_dataloader'):
        raise UserError('--verify test: the config has no test_dataloader; give a folder of images')
    dataset = build_test_set(cfg)
    for index in range(min(limit, len(dataset))):
        yield read(Path(dataset.get_data_info(index)['img_path']))


def _ties(raw: tuple[np.ndarray, np.ndarray], settings: Settings) -> int:
    """How many of an image's detections change when raw outputs do by one rounding."""
    noise = np.random.default_rng(0)
    boxes, scores = (part[0] for part in raw)
    moved = (part * (1 + ROUNDING * noise.uniform(-1, 1, part.shape)) for part in (boxes, scores))
    return match(detections(boxes, scores, settings),
                 detections(*(part.astype(np.float32) for part in moved), settings))[2]


def match(truth: Detections, given: Detections) -> tuple[float, float, int]:
    """Largest difference of score and of box between partners, and how many have none."""
    most_score = most_box = 0.0
    alone, free = 0, np.ones(len(given.scores), bool)
    for box, score, label in zip(*truth, strict=True):
        distance = np.where(free & (given.labels == label),
                            np.abs(given.boxes - box).max(1, initial=0), np.inf)
        best = int(distance.argmin()) if len(distance) else -1
        # a tenth of the box away is another object
        if best < 0 or not distance[best] <= 0.1 * (box[2:] - box[:2]).max():
            alone += 1
            continue
        free[best] = False
        most_score = max(most_score, float(abs(given.scores[best] - score)))
        most_box = max(most_box, float(distance[best]))
    return most_score, most_box, alone + int(free.sum())


def table(rows: Sequence[Comparison], metrics: Mapping[str, float] = {}, markdown: bool = False) -> str:
    """One line per form; above them the checkpoint's own `metrics`, if known."""
    head = ['form', 'images', 'raw score', 'raw box px', 'score', 'box px', 'detections', 'alone', 'ties',
            *(key.rpartition('/')[2] for key in metrics), 'same']
    body = [['checkpoint', *[''] * 8, *_percent(metrics, metrics), '']] if metrics else []
    body += [[row.name, str(row.images), _number(row.raw_score), _number(row.raw_box),
              _number(row.score), _number(row.box), str(row.detections), str(row.alone), str(row.ties),
              *_percent(row.metrics, metrics), 'yes' if row.holds else 'NO'] for row in rows]
    return tables.markdown([head, *body]) if markdown else tables.plain([head, *body], left=head)


def _percent(values: Mapping[str, float], keys: Iterable[str]) -> list[str]:
    return [f'{100 * values[key]:.3f}' if key in values else '' for key in keys]


def _number(value: float | None) -> str:
    return '-' if value is None else f'{value:.2g}'
