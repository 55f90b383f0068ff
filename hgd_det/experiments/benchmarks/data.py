"""SSD's augmentation, from the file to the packed sample, against mmdet's own steps."""
from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from hgd_det.errors import UserError
from hgd_det.experiments.benchmarks.measure import Row, compare
from hgd_det.paths import ROOT


def run(options: argparse.Namespace) -> Iterator[Row]:
    import cv2
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.dataset import Compose

    import hgd_det.registered  # noqa: F401
    register_all_modules()
    cv2.setNumThreads(0)
    config = Config.fromfile(ROOT / 'configs/_base_/datasets/ssd300_pipelines.py')
    with tempfile.TemporaryDirectory() as folder:
        samples = voc_samples(options.images) if options.images else drawn_samples(Path(folder))
        encoded = [np.fromfile(sample['img_path'], np.uint8) for sample in samples]
        size = np.mean(list(map(len, encoded))) / 1000
        kind = f'{len(samples)} {"images" if options.images else "drawn JPEGs"} of {size:.0f} kB'

        def over(steps: list[dict]) -> Callable:
            pipeline = Compose(steps)
            return lambda: [pipeline(dict(sample)) for sample in samples]

        def reduced(reduce: bool) -> Callable:
            return over([{**step, 'reduce': reduce} if step['type'] == 'SSDAugment' else step
                         for step in config.train_pipeline])

        def decode() -> None:
            for one in encoded:
                cv2.imdecode(one, cv2.IMREAD_COLOR)

        mmdet = over(config.mmdet_train_pipeline)
        for what, ours, goal in ((f'SSDAugment / mmdet, {kind}', reduced(False), '>=3'),
                                 ('the same with reduce=True / mmdet', reduced(True), '>=3'),
                                 ('whole images decoded, nothing else / mmdet', decode, '')):
            yield compare(what, 'images/s', ours, mmdet, work=len(samples), rounds=options.rounds, goal=goal)


def voc_samples(folder: Path, most: int = 60) -> list[dict]:
    """The first images of a folder in VOC layout that have boxes, as a data set hands them on."""
    from hgd_det.data import images, voc
    samples = []
    for path in sorted((folder / 'Annotations').glob('*.xml')):
        image = images.find(folder / 'JPEGImages', path.stem)
        size = images.header_size(image) if image else None
        boxes = [voc.mmdet_box(thing.box) for thing in voc.read(path).objects if thing.box is not None]
        if size and boxes:
            samples.append(_sample(image, size, boxes))
        if len(samples) == most:
            break
    if not samples:
        raise UserError(f'{folder} has no image with boxes; give a folder that holds Annotations/*.xml and '
                        'JPEGImages/')
    return samples


def drawn_samples(folder: Path, count: int = 30, width: int = 500, height: int = 375) -> list[dict]:
    """JPEGs as large as VOC's, in pixels and about so in bytes, with as many boxes as VOC has (2.4).

    Noise whose amplitude falls as 1 / frequency, like that of photographs.
    """
    import cv2
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    samples = []
    for number in range(count):
        noise = rng.normal(size=(4, height, width))
        noise = np.fft.irfft2(np.fft.rfft2(noise) / frequency, (height, width))
        image = (noise[:1] + 0.3 * noise[1:]).transpose(1, 2, 0)
        image = np.clip(128 + 55 * image / image.std(), 0, 255).astype(np.uint8)
        path = folder / f'{number}.jpg'
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 87])
        boxes = voc_boxes(rng, width, height).round()
        samples.append(_sample(path, (width, height), boxes.tolist()))
    return samples


def voc_boxes(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(n, 4): as many boxes as VOC's images have (2.4), a side between 8 and 80 per cent of the image."""
    corner = rng.uniform(0, 0.7, (1 + rng.poisson(1.4), 2))
    size = np.exp(rng.uniform(np.log(0.08), np.log(0.8), corner.shape))
    return np.c_[corner, np.minimum(corner + size, 1)] * (width, height, width, height)


def _sample(path: Path, size: tuple[int, int], boxes: list) -> dict:
    return dict(img_path=str(path), img_id=path.stem, width=size[0], height=size[1],
                instances=[dict(bbox=box, bbox_label=0, ignore_flag=0) for box in boxes])
