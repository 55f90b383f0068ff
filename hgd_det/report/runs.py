"""What a run left behind in its folder, finished or not: its config, its log, its evaluations.

    run = read_run('work_dirs/shapes/hgd')
    run.mAP, run.per_class['disc'], run.train[-1]['loss'], run.finished

Nothing is executed and torch is not needed: the log is JSON, and the config, which mmengine wrote there
with all its values spelled out, is parsed.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from hgd_det import literal
from hgd_det.errors import UserError


class NoTraining(UserError):
    """A folder in which nothing was trained; a checkpoint may have been tested there."""


@dataclass(frozen=True)
class Run:
    """
    Attributes:
        config: The copy of the config in the folder, all values spelled out; None if there is none.
        train: The log's rows of training, each with its `iter`, ascending.
        evaluations: Those of evaluations, each with the `iter` after which it was made.
    """
    folder: Path
    config: Path | None = None
    train: list[dict] = field(default_factory=list)
    evaluations: list[dict] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name; of a generation, with the name of its chain before it."""
        folder = self.folder.absolute()
        return f'{folder.parent.name}/{folder.name}' if re.fullmatch(r'gen\d+', folder.name) else folder.name

    @cached_property
    def values(self) -> dict:
        """The config as plain values; {} without a config."""
        if self.config is None:
            return {}
        try:
            return literal.read(self.config.read_text(encoding='utf-8'))
        except UserError as error:
            raise UserError(f'{self.config}: {error}') from None

    @property
    def final(self) -> dict | None:
        """The last evaluation."""
        return self.evaluations[-1] if self.evaluations else None

    @property
    def mAP(self) -> float | None:
        """Of the last evaluation, 0 to 1: `voc/mAP`, `coco/bbox_mAP` or another metric's."""
        return mean_ap(self.final or {})

    @property
    def per_class(self) -> dict[str, float]:
        """AP by class in the last evaluation, at the first of its thresholds."""
        return class_aps(self.final or {})

    @cached_property
    def checkpoint(self) -> Path | None:
        """The newest intact one that training can go on from. Reads it; needs torch."""
        from hgd_det.checkpoint import newest_intact
        return newest_intact(self.folder)[0]

    @property
    def total(self) -> int | None:
        """How many iterations, or else epochs, the config asks for."""
        loop = self.values.get('train_cfg') or {}
        return loop.get('max_iters') or loop.get('max_epochs')

    @property
    def finished(self) -> bool:
        """Trained to the end: its last checkpoint is that of the last iteration or epoch."""
        try:
            last = Path((self.folder / 'last_checkpoint').read_text().strip()).stem
        except OSError:
            return False
        number = re.fullmatch(r'(?:iter|epoch)_(\d+)', last)
        return bool(number and self.total and int(number[1]) >= self.total)


def read_run(folder: str | Path) -> Run:
    """The run of a work directory. One that was stopped and resumed is one run: what a later log says
    takes the place of what an earlier one said from that iteration on."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{folder} ' + ('is a file; give the work directory of a run' if folder.exists() else
                                        'does not exist; give the work directory of a run'))
    # a test logs elsewhere, in a file of its time
    logs = {log: list(_rows(log)) for log in sorted(folder.glob('*/vis_data/scalars.json'))}
    if not any(logs.values()) and not (folder / 'last_checkpoint').is_file():
        raise NoTraining(f'{folder} holds no run: there is no log of a training (*/vis_data/scalars.json) in '
                         'it, nor a last_checkpoint')
    run = Run(folder, _config(folder, list(logs)))
    loop = (run.values.get('train_cfg') or {})
    for rows in logs.values():
        _append(run, rows, loop)
    return run


def runs_in(folder: str | Path) -> list[Run]:
    """The run of a folder; of a chain of generations, each of its runs."""
    generations = sorted(Path(folder).glob('gen[0-9]*'), key=lambda path: int(path.name[3:]))
    return [read_run(each) for each in generations or [Path(folder)]]


def mean_ap(row: dict) -> float | None:
    """The mean average precision in a row of an evaluation, whatever its metric."""
    return next((value for key, value in row.items() if re.fullmatch(r'(.+/)?(bbox_)?mAP', key)), None)


def class_aps(row: dict) -> dict[str, float]:
    """AP by class: `voc/AP50/<class>` of the first mode and threshold, `coco/AP/<class>`."""
    found = [re.fullmatch(r'((?:.+?/)?AP\d*)/(.+)', key) for key in row]
    found = [match for match in found if match]
    return {match[2]: row[match[0]] for match in found if match[1] == found[0][1]}


def _config(folder: Path, logs: list[Path]) -> Path | None:
    """The copy of the config. What was trained lies beside the log of the last training; a copy in the folder
    may be that of another start, or of a test that older versions ran there."""
    beside = logs[-1].with_name('config.py') if logs else None
    copies = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime_ns)
    if beside is None or not beside.is_file():
        return copies[-1] if copies else None
    trained = beside.read_bytes()
    return next((path for path in reversed(copies) if path.read_bytes() == trained), beside)


def _rows(log: Path) -> Iterable[dict]:
    """Lines of JSON; one that a killed run left half-written is passed over."""
    for line in log.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _append(run: Run, rows: list[dict], loop: dict) -> None:
    begin = next((row['iter'] for row in rows if 'iter' in row), None)
    if begin is not None:
        for earlier in (run.train, run.evaluations):
            earlier[:] = [row for row in earlier if row['iter'] < begin]
    for row in rows:
        if 'iter' in row:
            run.train.append(row)
        else:
            last, before = (part[-1]['iter'] if part else 0 for part in (run.train, run.evaluations))
            run.evaluations.append({**row, 'iter': _evaluated(last, before, loop)})


def _evaluated(last: int, before: int, loop: dict) -> int:
    """After which iteration an evaluation was made: the row does not say, but it stands behind the training
    row of iteration `last` and the evaluation at `before`, and evaluations lie `val_interval` apart."""
    total, interval = loop.get('max_iters'), loop.get('val_interval')
    if not total or not interval:
        return last
    return min(total, -(-max(last, before + 1) // interval) * interval)
