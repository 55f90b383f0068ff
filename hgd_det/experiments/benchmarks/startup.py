"""How long a command takes before it works: new processes of `hgd-det`, beside importing mmdet alone."""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np

from hgd_det.experiments.benchmarks.measure import Row, compare, row, turns
from hgd_det.paths import ROOT

HELP_SECONDS = 0.5
CONFIG = ('shapes', '--method', 'hgd')
CLI = ('-m', 'hgd_det.cli.main')
IMPORT = ('-c', 'import hgd_det, mmdet.apis')    # hgd_det first: it stands in for operators mmcv may lack


def run(options: argparse.Namespace) -> Iterator[Row]:
    def from_start(*arguments: str):
        return lambda: python(arguments)

    asked, inspect = (from_start(*CLI, *verb) for verb in (['--help'], ['inspect', *CONFIG]))
    mmdet = from_start(*IMPORT)
    seconds = turns([asked], options.rounds, time.perf_counter)[:, 0]
    yield row(f'hgd-det --help / the {HELP_SECONDS:g} s it may take, wall clock', 's',
              float(np.median(seconds)), HELP_SECONDS, seconds / HELP_SECONDS, '<=1')
    yield compare('hgd-det --help / import mmdet.apis, CPU', 'starts/s', asked, mmdet, work=1,
                  rounds=options.rounds, clock=of_children)
    seconds = turns([inspect, mmdet], options.rounds, of_children)
    yield row(f'hgd-det inspect {" ".join(CONFIG)} / import mmdet.apis, CPU', 's',
              *np.median(seconds, 0).tolist(), seconds[:, 0] / seconds[:, 1], '<=1.25')


def python(arguments: Sequence[str]) -> str:
    """What a new Python prints; it runs in the checkout, and so with its modules."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True,
                          text=True).stdout


def of_children() -> float:
    """Seconds on the CPU of the processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system
