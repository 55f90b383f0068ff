"""What is claimed to be fast, measured beside the plain way of doing it.

Time is that of the process on the CPU, in one thread, where nothing else is said. Ours and the other take
turns; the ratio is the median over the rounds, the spread its quartiles.
"""
from __future__ import annotations

import argparse
import csv
import json
import pkgutil
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

import hgd_det.experiments.benchmarks
from hgd_det.checkpoint import atomic_write
from hgd_det.compat.environment import versions
from hgd_det.deploy import tables
from hgd_det.deploy.bench import cpu
from hgd_det.errors import UserError
from hgd_det.experiments.benchmarks.measure import Row
from hgd_det.experiments.results import as_csv, commit, measured_by

NAMES = sorted({module.name for module in pkgutil.iter_modules(hgd_det.experiments.benchmarks.__path__)}
               - {'command', 'measure'})
COLUMNS = ('benchmark', 'what', 'unit', 'ours', 'other', 'ratio', 'low', 'high', 'goal', 'rounds', 'commit',
           'date', 'device', 'torch', 'mmdet', 'python')
MET = {None: '', True: 'yes', False: 'no'}
Found = list[tuple[str, Row]]


def table(found: Found) -> str:
    cells = [[name, row.what, _number(row.ours), _number(row.other), row.unit, f'{row.ratio:.2f}',
              f'{row.spread[0]:.2f} to {row.spread[1]:.2f}', row.goal, MET[row.met]] for name, row in found]
    head = ['benchmark', 'what', 'ours', 'other', 'unit', 'ratio', 'spread', 'goal', 'met']
    return tables.plain([head, *cells], left=('benchmark', 'what', 'unit', 'goal', 'met'))


def _number(value: float) -> str:
    return f'{value:.1f}' if abs(value) < 1e4 else f'{value:.0f}'


def write_csv(found: Found, rounds: int, path: Path) -> None:
    """The rows of the benchmarks that ran take the place of their former ones; those of others stay."""
    facts = dict(rounds=rounds, date=time.strftime('%Y-%m-%d'), **measured_by())
    rows = [facts | dict(
        benchmark=name, what=row.what, unit=row.unit, goal=row.goal, ours=f'{row.ours:.4g}',
        other=f'{row.other:.4g}', ratio=f'{row.ratio:.3f}', low=f'{row.spread[0]:.3f}',
        high=f'{row.spread[1]:.3f}') for name, row in found]
    ran = {name for name, _ in found}
    if path.exists():
        with path.open(newline='', encoding='utf-8') as file:
            rows += [row for row in csv.DictReader(file) if row['benchmark'] not in ran]
    atomic_write(as_csv(sorted(rows, key=lambda row: row['benchmark']), COLUMNS), path)


def write_json(found: Found, path: Path) -> None:
    rows = [dict(benchmark=name, **vars(row)) for name, row in found]
    report = dict(processor=cpu(), versions=versions(), date=time.strftime('%Y-%m-%d'), commit=commit(),
                  rows=rows)
    atomic_write(json.dumps(report, indent=1) + '\n', path)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'of {", ".join(NAMES)}; else all')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write rows, processor and versions there')
    parser.add_argument('--csv', type=Path, metavar='OUT', help='put the rows into this table')
    parser.add_argument('--rounds', type=int, default=9, help='turns of each side (%(default)s)')
    parser.add_argument('--images', type=Path, metavar='DIR',
                        help='data: a folder in VOC layout (Annotations, JPEGImages) instead of drawn images')
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f'no benchmark {", ".join(sorted(unknown))}; there is {", ".join(NAMES)}')
    if options.rounds < 1:
        parser.error('--rounds: at least 1')
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)
    found: Found = []
    try:
        for name in options.names or NAMES:
            print(f'{name} ...', file=sys.stderr)
            module = import_module(f'{hgd_det.experiments.benchmarks.__name__}.{name}')
            found += ((name, row) for row in module.run(options))
    except UserError as error:
        print(f'benchmark: {error}', file=sys.stderr)
        return 2
    print(table(found))
    if options.json:
        write_json(found, options.json)
    timed = [(name, row) for name, row in found if name != 'launches']      # which writes a table of its own
    if options.csv and timed:
        write_csv(timed, options.rounds, options.csv)
    return 0
