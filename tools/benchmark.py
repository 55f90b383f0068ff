#!/usr/bin/env python
"""What is faster than what it replaces, measured: python tools/benchmark.py [--json OUT] [NAME ...]

Time is that of the process on the CPU, in one thread. Ours and the other take turns, so that a machine that
grows busy or hot slows both; the ratio is the median over the rounds, the spread its quartiles.

A benchmark is a function under `@benchmark('name')`. It gets the options of the command line and yields what
`compare` returns.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'
ROOT = Path(__file__).resolve().parent.parent
# the checkout instead of this folder, whose file names must not hide modules of Python's own
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from hgd_det.checkpoint import atomic_write  # noqa: E402
from hgd_det.compat.environment import versions  # noqa: E402
from hgd_det.deploy import tables  # noqa: E402
from hgd_det.deploy.bench import cpu  # noqa: E402
from hgd_det.errors import UserError  # noqa: E402

BENCHMARKS: dict[str, Callable] = {}


@dataclasses.dataclass(frozen=True)
class Row:
    """Medians of `unit` over the rounds; `ratio` above 1 where ours is faster, `spread` its quartiles."""
    benchmark: str
    what: str
    unit: str
    ours: float
    other: float
    ratio: float
    spread: tuple[float, float]


def benchmark(name: str) -> Callable:
    def register(function: Callable) -> Callable:
        BENCHMARKS[name] = function
        return function
    return register


def compare(what: str, unit: str, ours: Callable, other: Callable, *, work: int, rounds: int) -> Row:
    """Both do `work` units at each call, and are called in turn; a first call of each does not count."""
    times = np.array([[_seconds(one, number) for one in (ours, other)] for number in range(rounds + 1)])[1:]
    ratio = times[:, 1] / times[:, 0]
    speed = work / np.median(times, 0)
    return Row('', what, unit, *speed.tolist(), float(np.median(ratio)),
               tuple(np.quantile(ratio, (0.25, 0.75)).tolist()))


def _seconds(function: Callable, number: int) -> float:
    np.random.seed(number)
    start = time.process_time()
    function()
    return time.process_time() - start


# ------------------------------------------------------------------------------------------------ data
@benchmark('data')
def data(options: argparse.Namespace) -> Iterator[Row]:
    """SSD's augmentation, from the file to the packed sample, against mmdet's own steps."""
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
        for what, ours in ((f'SSDAugment / mmdet, {kind}', reduced(False)),
                           ('the same with reduce=True / mmdet', reduced(True)),
                           ('whole images decoded, nothing else / mmdet', decode)):
            yield compare(what, 'images/s', ours, mmdet, work=len(samples), rounds=options.rounds)


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
        corner = rng.uniform(0, 0.7, (1 + rng.poisson(1.4), 2)) * (width, height)
        size = np.exp(rng.uniform(np.log(0.08), np.log(0.8), corner.shape)) * (width, height)
        boxes = np.c_[corner, np.minimum(corner + size, (width, height))].round()
        samples.append(_sample(path, (width, height), boxes.tolist()))
    return samples


def _sample(path: Path, size: tuple[int, int], boxes: list) -> dict:
    return dict(img_path=str(path), img_id=path.stem, width=size[0], height=size[1],
                instances=[dict(bbox=box, bbox_label=0, ignore_flag=0) for box in boxes])


# ------------------------------------------------------------------------------------------------ command
def table(rows: list[Row]) -> str:
    cells = [[row.benchmark, row.what, f'{row.ours:.1f}', f'{row.other:.1f}', row.unit, f'{row.ratio:.2f}',
              f'{row.spread[0]:.2f} to {row.spread[1]:.2f}'] for row in rows]
    return tables.plain([['benchmark', 'what', 'ours', 'other', 'unit', 'ratio', 'spread'], *cells],
                        left=('benchmark', 'what', 'unit'))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Measure what is claimed to be fast.')
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(BENCHMARKS)}; else all')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write rows, processor and versions there')
    parser.add_argument('--rounds', type=int, default=9, help='turns of each side (%(default)s)')
    parser.add_argument('--images', type=Path, metavar='DIR',
                        help='data: a folder in VOC layout (Annotations, JPEGImages) instead of drawn images')
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f'no benchmark {", ".join(sorted(unknown))}; there is {", ".join(BENCHMARKS)}')
    if options.rounds < 1:
        parser.error('--rounds: at least 1')
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)
    rows = []
    try:
        for name in options.names or BENCHMARKS:
            rows += (dataclasses.replace(row, benchmark=name) for row in BENCHMARKS[name](options))
    except UserError as error:
        print(f'benchmark: {error}', file=sys.stderr)
        return 2
    print(table(rows))
    if options.json:
        report = dict(processor=cpu(), versions=versions(), date=time.strftime('%Y-%m-%d'),
                      rows=[dataclasses.asdict(row) for row in rows])
        atomic_write(json.dumps(report, indent=1), options.json)
    return 0


if __name__ == '__main__':
    sys.exit(main())
