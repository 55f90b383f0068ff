"""Runs a detector over images and videos: drawn pictures and one file of predictions, COCO style."""
from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from hgd_det.checkpoint import atomic_write, sha256
from hgd_det.compat import versions
from hgd_det.deploy import pictures
from hgd_det.deploy.pictures import Unreadable, Video, VideoFile
from hgd_det.deploy.postprocess import Detections
from hgd_det.deploy.runtime import Model
from hgd_det.deploy.sources import Source, check_places
from hgd_det.errors import UserError

BATCH_PIXELS = 100_000_000    # large images make small batches
RESULT = 'predictions.json'
T = TypeVar('T')


@dataclass(frozen=True)
class Frame:
    """An image, alone or of a video: then with its number, from 0."""
    source: Source
    image: np.ndarray
    number: int | None = None


@dataclass
class Report:
    """What was found; `skipped` are the files that could not be read, or not to their end."""
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)
    skipped: list[tuple[Source, str]] = field(default_factory=list)

    def add(self, frame: Frame, found: Detections) -> None:
        height, width = frame.image.shape[:2]
        number = {} if frame.number is None else {'frame': frame.number}
        image = len(self.images) + 1
        self.images.append(dict(id=image, file_name=frame.source.name, width=width, height=height, **number))
        for (x1, y1, x2, y2), score, label in zip(*(part.tolist() for part in found), strict=True):
            self.annotations.append(dict(
                id=len(self.annotations) + 1, image_id=image, category_id=label + 1,
                bbox=[round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
                area=round((x2 - x1) * (y2 - y1), 3), score=round(score, 6), iscrowd=0))

    def coco(self, model: Model, score: float) -> dict:
        return dict(
            info=dict(model=model.path.name, kind=model.kind, sha256=sha256(model.path),
                      score_threshold=score, versions=versions(),
                      skipped=[dict(file_name=source.name, reason=why) for source, why in self.skipped]),
            images=self.images,
            categories=[dict(id=label, name=name) for label, name in enumerate(model.classes, 1)],
            annotations=self.annotations)


def predict(model: Model, sources: Sequence[Source], out: str | Path, *, score: float = 0.3,
            batch_size: int = 8, draw: bool = True, force: bool = False) -> Report:
    """Look at every source, write `out/predictions.json` and, with `draw`, what was seen; over files that
    exist with `force` only."""
    out, report = Path(out), Report()
    check_places(sources, places(sources, out, draw), [model.path], force=force)
    progress, drawn = Progress(_total(sources)), Drawn(out, model.classes)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)    # a limit of ours comes later
        try:
            for batch in ahead(batches(frames(sources, report.skipped), batch_size)):
                for frame, found in look(model, batch, report.skipped):
                    found = found.above(score)
                    report.add(frame, found)
                    if draw:
                        drawn.add(frame, found)
                progress.show(len(report.images) + len(report.skipped))
        except BaseException:
            drawn.discard()
            raise
        else:
            drawn.close()
        finally:
            progress.close()
    atomic_write(json.dumps(report.coco(model, score)) + '\n', out / RESULT)
    return report


def places(sources: Sequence[Source], out: str | Path, draw: bool = True) -> list[Path]:
    """All that `predict` writes: the pictures of the sources in their order, then the result."""
    return [*(Path(out, source.drawn) for source in sources if draw), Path(out, RESULT)]


def frames(sources: Iterable[Source], skipped: list) -> Iterator[Frame]:
    """One after another; what cannot be read is noted in `skipped`."""
    for source in sources:
        try:
            if source.video:
                for number, image in enumerate(Video(source.path)):
                    yield Frame(source, image, number)
            else:
                yield Frame(source, pictures.read(source.path))
        except Unreadable as error:
            skipped.append((source, str(error)))


def batches(stream: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Up to `size` frames, fewer when they have more than `BATCH_PIXELS` together."""
    batch, pixels = [], 0
    for frame in stream:
        batch.append(frame)
        pixels += frame.image.size // 3
        if len(batch) == size or pixels > BATCH_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def look(model: Model, batch: Sequence[Frame], skipped: list) -> list[tuple[Frame, Detections]]:
    """What the model finds. An image so narrow that nothing of it is left at the model's size, which
    OpenCV refuses, is noted in `skipped`."""
    try:
        return list(zip(batch, model([frame.image for frame in batch]), strict=True))
    except cv2.error:
        if len(batch) > 1:
            return [pair for frame in batch for pair in look(model, [frame], skipped)]
        height, width = batch[0].image.shape[:2]
        skipped.append((batch[0].source, f'{width} x {height} pixels are too narrow for the model'))
        return []


def ahead(stream: Iterator[T]) -> Iterator[T]:
    """The same, but the next one is made while the last is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, stream, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, stream, None)
            yield item


def _total(sources: Sequence[Source]) -> int:
    """How many frames are to come, as far as files tell."""
    def count(source: Source) -> int:
        try:
            return max(1, Video(source.path).count) if source.video else 1
        except Unreadable:
            return 1
    return sum(map(count, sources))


class Drawn:
    """Where drawn frames go: a picture each, those of a video into one."""

    def __init__(self, out: Path, classes: Sequence[str]):
        self.out, self.classes = out, classes
        self._source, self._video = None, None

    def add(self, frame: Frame, found: Detections) -> None:
        image = pictures.draw(frame.image, found, self.classes)
        place = self.out / frame.source.drawn
        try:
            if frame.number is None:
                pictures.write(image, place)
                return
            if frame.source is not self._source:
                self.close()
                self._source = frame.source
                self._video = VideoFile(place, Video(frame.source.path).rate)
            self._video.add(image)
        except OSError as error:
            raise UserError(f'{place} cannot be written: {error.strerror or error}') from None

    def close(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video = None

    def discard(self) -> None:
        if self._video is not None:
            self._video.discard()


class Progress:
    """How far, and how long still: one line on a terminal, elsewhere one each half minute."""

    def __init__(self, total: int, stream=None):
        self.total, self.stream = total, stream or sys.stderr
        self._terminal = self.stream.isatty()
        self._started = self._shown = time.monotonic()

    def show(self, done: int) -> None:
        now = time.monotonic()
        if now - self._shown < (0.2 if self._terminal else 30) or not done:
            return
        self._shown = now
        rate, total = done / (now - self._started), max(self.total, done)
        left = time.strftime('%H:%M:%S', time.gmtime((total - done) / rate))
        text = f'{done}/{total} {rate:.1f} images/s, {left} left'
        filled = 24 * done // total
        self.stream.write(f'\r\x1b[Kpredict [{"#" * filled}{"." * (24 - filled)}] {text}'
                          if self._terminal else f'predict {text}\n')
        self.stream.flush()

    def close(self) -> None:
        if self._terminal:
            self.stream.write('\r\x1b[K')
            self.stream.flush()
