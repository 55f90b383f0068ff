"""Training throughput by the number of processes (gloo, one thread each) and of loading workers.

By the clock on the wall: the figures mean something on a machine that does nothing else.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hgd_det.errors import UserError
from hgd_det.experiments.benchmarks.measure import Row, row
from hgd_det.experiments.processes import free_port, tail
from hgd_det.paths import ROOT

PAIR, METHOD, BATCH = 'shapes', 'hgd', 32
WARM, STEPS = 6, 12
ROUNDS = 3      # at most, since each starts four trainings
# what is measured, and beside what; each is (processes, workers of each)
SIDES = (('2 processes / 1', (2, 1), (1, 1)), ('1 loading worker / none', (1, 1), (1, 0)),
         ('2 loading workers / none', (1, 2), (1, 0)))


def run(options: argparse.Namespace) -> Iterator[Row]:
    from hgd_det.data import shapes
    kinds = sorted({side for _, *sides in SIDES for side in sides})
    with tempfile.TemporaryDirectory() as folder:
        shapes.generate(f'{folder}/data', train=200, test=2)
        rounds = [{kind: throughput(Path(folder), *kind) for kind in kinds}
                  for _ in range(min(options.rounds, ROUNDS))]
    for what, *sides in SIDES:
        ours, other = (np.array([found[side] for found in rounds]) for side in sides)
        yield row(f'{PAIR} --method {METHOD}, batch {BATCH}, {what}, wall clock', 'images/s',
                  float(np.median(ours)), float(np.median(other)), ours / other)


def throughput(folder: Path, processes: int, workers: int) -> float:
    """Images per second of all processes together, which share a batch; the median over some steps."""
    changes = {
        'model.teacher.checkpoint': 'untrained', 'train_dataloader.dataset.data_root': f'{folder}/data/',
        'train_dataloader.batch_size': BATCH // processes, 'train_dataloader.num_workers': workers,
        'train_dataloader.persistent_workers': workers > 0, 'train_cfg.max_iters': WARM + STEPS,
        'default_hooks.logger.interval': 1, 'log_processor.window_size': 1}
    log = folder / 'log.txt'
    with log.open('wb') as out:
        done = subprocess.run(
            ['bash', 'tools/dist_train.sh', PAIR, str(processes), '--method', METHOD, '--no-validate',
             '--work-dir', f'{folder}/run', '--cfg-options',
             *(f'{key}={value}' for key, value in changes.items())],
            cwd=ROOT, env=os.environ | dict(PYTHON=sys.executable, OMP_NUM_THREADS='1', PORT=free_port()),
            stdout=out, stderr=out)
    if done.returncode:
        raise UserError(f'training with {processes} processes failed; the end of its log:\n{tail(log)}')
    newest = max(folder.glob('run/*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime_ns)
    seconds = [line['time'] for line in map(json.loads, newest.read_text().splitlines()) if 'time' in line]
    assert len(seconds) == WARM + STEPS, len(seconds)
    return BATCH / float(np.median(seconds[WARM:]))
