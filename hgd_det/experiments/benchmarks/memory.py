"""What a step of HGD takes in memory beyond a step of the student alone, beside what its teacher takes."""
from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from hgd_det.experiments.benchmarks.measure import Row, row

BATCHES = (1, 2, 4, 8)
GOAL = {8: '<=1.25'}
LOOKED = 2      # steps: the first one creates the optimizer's state


def run(options: argparse.Namespace) -> Iterator[Row]:
    rounds = max(1, options.rounds // 9)
    for batch in BATCHES:
        yield compare(batch, 300, rounds, GOAL.get(batch, ''))


def compare(batch: int, size: int, rounds: int, goal: str = '', pair: str = '') -> Row:
    """(HGD - student) / teacher of the peaks, each of a process of its own."""
    from hgd_det.experiments.benchmarks.step import SSD
    peaks = [[peak(what, pair or SSD, batch, size) / 1e6 for what in ('hgd', 'alone', 'teacher')]
             for _ in range(rounds)]
    extra, teacher = [hgd - alone for hgd, alone, _ in peaks], [last for *_, last in peaks]
    middle = sorted(range(rounds), key=lambda i: extra[i] / teacher[i])[rounds // 2]
    hgd, alone, _ = peaks[middle]
    return row(f'(HGD {hgd:.0f} MB - student {alone:.0f} MB) / teacher forward, {size}x{size}, batch {batch}',
               'MB', extra[middle], teacher[middle],
               [more / own for more, own in zip(extra, teacher, strict=True)], goal)


def peak(what: str, pair: str, batch: int, size: int) -> int:
    """Bytes that some steps take at most, beyond libraries, models and batch, in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(_peak, what, pair, batch, size).result()


def _peak(what: str, pair: str, batch: int, size: int) -> int:
    import torch

    from hgd_det.engine.cost import peak_of
    from hgd_det.experiments.benchmarks.step import HALFWAY, Steps
    torch.set_num_threads(1)
    steps = Steps(pair)
    side = steps.side('alone' if what == 'alone' else 'hgd')
    steps.take(batch, size)
    work = partial(side.step, HALFWAY)
    if what == 'teacher':
        steps.plain_teacher    # noqa: B018  its weights are no part of a forward pass
        work = steps.teach
    return peak_of(lambda: [work() for _ in range(LOOKED)])
