"""Rows of `results/*.csv`: one per run, told apart by config, method, options and seed.

A row is added once, by however many processes that share the file: each reads and replaces it under a
lock on its folder, which leaves nothing behind.
"""
from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
import re
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hgd_det.checkpoint import atomic_write
from hgd_det.compat import versions
from hgd_det.errors import UserError
from hgd_det.paths import ROOT

COLUMNS = ('config', 'method', 'options', 'seed', 'iterations', 'mAP', 'mAP_11points', 'seconds', 'role',
           'commit', 'device', 'torch', 'mmdet', 'python', 'per_class')
FOLDER = ROOT / 'results' if (ROOT / 'results').is_dir() else Path('results')
Key = tuple[str, str, str, int]


def key(row: Mapping[str, str]) -> Key:
    """What a row is the row of: config (a pair, or a detector that trains alone), method, options, seed."""
    return row['config'], row['method'], row['options'], int(row['seed'])


def read(path: str | Path) -> dict[Key, dict[str, str]]:
    """The rows of a file by their keys; none if there is no file. Of two with one key the first counts."""
    path = Path(path)
    if not path.exists():
        return {}
    with path.open(newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f'{path} has the columns {", ".join(reader.fieldnames or ("none",))}; rows of '
                            f'results have {", ".join(COLUMNS)}. Give another file with --results')
        found: dict[Key, dict[str, str]] = {}
        for number, row in enumerate(reader, 2):
            if None in row or None in row.values() or not row['seed'].isdigit():
                raise UserError(f'{path}, line {number}: it has not {len(COLUMNS)} cells, or its seed is no '
                                'number; mend or remove the line')
            found.setdefault(key(row), row)
        return found


def add(row: Mapping[str, str], path: str | Path, replace: bool = False) -> bool:
    """Add a row, unless its run has one (with `replace`, in that one's place). Whether it was written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.parent):
        rows = read(path)
        if key(row) in rows and not replace:
            return False
        rows[key(row)] = {name: row.get(name, '') for name in COLUMNS}
        atomic_write(as_csv(rows.values(), COLUMNS), path)
    return True


def as_csv(rows: Iterable[Mapping[str, str]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One process at a time in this block, of those that name the same folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_classes(values: Mapping[str, float]) -> str:
    """`{'disc': .9, 'ring': .8}` as a cell of the column per_class."""
    return ' '.join(f'{name}={value:.4f}' for name, value in values.items())


def read_classes(cell: str) -> dict[str, float]:
    """The reverse; names may have spaces in them."""
    return {name: float(value) for name, value in re.findall(r'(\S.*?)=(-?\d+\.\d+)(?=\s|$)', cell)}


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the standard deviation of the sample where there are two or more."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def measured_by() -> dict[str, str]:
    """The columns that say with what something was measured: commit, device and versions."""
    from hgd_det.deploy.bench import cores, cpu

    return dict(commit=commit(), device=f'{cpu()}, {cores()} cores', **software())


def software() -> dict[str, str]:
    """The columns of versions."""
    known = versions()
    return {name: known[name] for name in ('torch', 'mmdet', 'python')}


def commit() -> str:
    """The checkout's commit, with a + where tracked files differ from it; empty outside a checkout."""
    def git(*words: str) -> str:
        try:
            done = subprocess.run(['git', '-C', str(ROOT), *words], capture_output=True, text=True)
            return done.stdout.strip()
        except FileNotFoundError:
            return ''
    if not (ROOT / '.git').exists():    # an installed package, whose folder may lie in somebody's repository
        return ''
    return git('rev-parse', '--short', 'HEAD') + '+' * bool(git('status', '--porcelain', '-uno'))
