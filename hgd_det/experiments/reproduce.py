"""Runs the matrix of a table: every cell as a process of its own, resumed where it stands, several at a time
where there is room, and every finished one a row in `results/*.csv`.
"""
from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hgd_det.errors import UserError
from hgd_det.experiments import comparison, results
from hgd_det.experiments.cells import Cell, Work, teacher_of
from hgd_det.experiments.processes import (
    Line,
    clock,
    eta,
    interruptible,
    locked,
    start,
    stop,
    tail,
    threads,
)
from hgd_det.experiments.tables import Table

SLOW = 0.2    # seconds between two looks at what runs


@dataclass(frozen=True)
class Room:
    """Where cells run: the GPUs of each slot, none on a CPU."""
    slots: tuple[tuple[str, ...], ...]
    device: str
    threads: int = 1

    @property
    def processes(self) -> int:
        return max(1, len(self.slots[0]))


def room(jobs: int | None = None, gpus_per_cell: int = 1) -> Room:
    """A slot for each GPU, or group of them; on a CPU `jobs` of them (1), which share its cores."""
    import torch

    from hgd_det.deploy.bench import cores, cpu

    count = torch.cuda.device_count()
    if not count:
        jobs = jobs or 1
        each = threads(jobs)
        return Room(((),) * jobs, f'{cpu()}, {cores()} cores, {each} thread{"s" * (each > 1)} per run', each)
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    names = visible.split(',')[:count] if visible else [str(number) for number in range(count)]
    if gpus_per_cell > count:
        raise UserError(f'--gpus-per-cell {gpus_per_cell}, but the number of visible GPUs is {count}')
    groups = zip(*[iter(names)] * gpus_per_cell, strict=False)
    name = torch.cuda.get_device_name(0)
    return Room(tuple(groups)[:jobs], name if gpus_per_cell == 1 else f'{gpus_per_cell} x {name}')


@dataclass
class Running:
    work: Work
    process: subprocess.Popen
    slot: tuple[str, ...]
    began: float = field(default_factory=time.monotonic)


class Matrix:
    """The cells of some tables and what has become of them.

    Args:
        seeds: Of every line; a teacher has the first of them, 0, alone.
        extra: Options for every cell; a row tells them, after those of its line.
        again: Count a row of another commit as not measured.
    """

    def __init__(self, tables: Sequence[Table], seeds: Sequence[int], work_dir: Path, file: Path, where: Room,
                 *, extra: str = '', again: bool = False):
        self.tables, self.work_dir, self.file, self.where = tables, work_dir, file, where
        self.extra, self.again, self.commit = extra, again, results.commit()
        self.rows = results.read(file)
        self.failed: dict[Cell, str] = {}
        self.cells = {cell: None for seed in seeds for table in tables for line in table.lines
                      if seed == seeds[0] or not line.single
                      for cell in [Cell(line.config, line.method, comparison.options_of(line, extra),
                                        0 if line.single else seed)]}
        waiting = [cell for cell in self.cells if not self.measured(cell)]
        teachers = filter(None, map(self.teacher, waiting))
        self.waiting = list(dict.fromkeys([*(cell for cell in teachers if not self.done(cell)), *waiting]))
        self.total = len(self.cells) + sum(cell not in self.cells for cell in self.waiting)

    def teacher(self, cell: Cell) -> Cell | None:
        config = teacher_of(cell.config, cell.method)
        return config and Cell(config, options=self.extra)

    def measured(self, cell: Cell) -> bool:
        """Whether its row counts."""
        row = self.rows.get(cell.key)
        return row is not None and not (self.again and row['commit'] != self.commit)

    def done(self, cell: Cell) -> bool:
        """Whether a teacher's weights are there, whatever its row says."""
        return self.work(cell).metrics() is not None and not self._outdated(cell)

    def work(self, cell: Cell) -> Work:
        teacher = self.teacher(cell)
        return Work(cell, self.work_dir / cell.name, teacher and self.work_dir / teacher.name,
                    processes=self.where.processes)

    def _outdated(self, cell: Cell) -> bool:
        commits = self.work(cell).record()['commits']
        return self.again and bool(commits) and commits != [self.commit]

    def ready(self, running: Sequence[Running]) -> Cell | None:
        """The next cell whose teacher is trained."""
        busy = {each.work.cell for each in running}
        for cell in list(self.waiting):
            teacher = self.teacher(cell)
            if teacher in self.failed:
                self.waiting.remove(cell)
                self.failed[cell] = f'not run, as its teacher failed: {teacher.label}'
            elif teacher is None or (teacher not in busy and teacher not in self.waiting):
                self.waiting.remove(cell)
                return cell
        return None

    def begin(self, cell: Cell, slot: tuple[str, ...], lock: int) -> Running | None:
        """Start what there is to do for a cell, or else take its row."""
        work = self.work(cell)
        try:
            if self._outdated(cell):
                aside = work.folder.with_name(f'{work.folder.name}.{"-".join(work.record()["commits"])}')
                work.folder.rename(aside)
            work.note(self.commit)
            command = work.command()
        except (UserError, OSError) as error:
            self.failed[cell] = str(error)
            return None
        if command is None:
            self.finish(work)
            return None
        env = {'OMP_NUM_THREADS': str(self.where.threads)}
        if slot:
            env = {'CUDA_VISIBLE_DEVICES': ','.join(slot)}
        return Running(work, start(command, work.log, lock, env), slot)

    def end(self, running: Running) -> bool:
        """Note what a process came to; whether there is more to do for its cell."""
        work, status = running.work, running.process.returncode
        if status == 0 and work.metrics() is not None:
            self.finish(work)
            return False
        run = work.run()
        if status == 0 and run is not None and run.finished and work.command() != running.process.args:
            return True    # the evaluation is left
        why = f'exit status {status}' if status else 'it was stopped before its end'
        self.failed[work.cell] = f'{why}; the end of {work.log}:\n{tail(work.log)}'
        return False

    def finish(self, work: Work) -> None:
        row = work.row(self.where.device)
        results.add(row, self.file, replace=self.again and not self.measured(work.cell))
        self.rows = results.read(self.file)

    def left(self, running: Sequence[Running]) -> str:
        """The time left, from what measured cells took; of the same config where there are such."""
        took: dict[tuple[str, str], list[float]] = {}
        for row in self.rows.values():
            if row['device'] == self.where.device and row['seconds']:
                took.setdefault((row['config'], row['method']), []).append(float(row['seconds']))
        every = [value for values in took.values() for value in values]
        if not every and self.waiting:
            return '?'
        ahead = sum(statistics.fmean(took.get(cell.key[:2], every)) for cell in self.waiting)
        for each in running:
            told = eta(each.work.log)
            spent = time.monotonic() - each.began
            ahead += told if told is not None else max(0.0, statistics.fmean(
                took.get(each.work.cell.key[:2], every) or [0.0]) - spent)
        return clock(ahead / min(len(self.where.slots), max(1, len(self.waiting) + len(running))))

    def line(self, running: Sequence[Running]) -> str:
        done = self.total - len(self.waiting) - len(running) - len(self.failed)
        now = ', '.join(each.work.folder.name for each in running)
        failed = f', {len(self.failed)} failed' if self.failed else ''
        return f'{done}/{self.total} cells done{failed}, {self.left(running)} left; running: {now or "none"}'


def reproduce(matrix: Matrix, line: Line | None = None) -> int:
    """Run all that is not measured; the exit status: 1 if a cell failed."""
    line, running, told = line or Line(), [], set()
    with locked(matrix.work_dir) as lock, interruptible():
        try:
            while matrix.waiting or running:
                free = [slot for slot in _free(matrix.where.slots, running)]
                while free and (cell := matrix.ready(running)):
                    line.say(f'{cell.label}: {matrix.work_dir / cell.name}')
                    if each := matrix.begin(cell, free[0], lock):
                        running.append(each)
                        free.pop(0)
                for each in [each for each in running if each.process.poll() is not None]:
                    running.remove(each)
                    if matrix.end(each):
                        matrix.waiting.insert(0, each.work.cell)
                for cell in matrix.failed.keys() - told:
                    told.add(cell)
                    line.say(f'failed: {cell.label}\n  {matrix.failed[cell]}')
                line.draw(matrix.line(running))
                time.sleep(SLOW if running else 0)
        except KeyboardInterrupt:
            line.say('stopping; the same command goes on from here')
            raise
        finally:
            stop(each.process for each in running)
            line.clear()
    return 1 if matrix.failed else 0


def _free(slots: Sequence[tuple[str, ...]], running: Sequence[Running]) -> list[tuple[str, ...]]:
    free = list(slots)
    for each in running:
        free.remove(each.slot)
    return free


def plan(matrix: Matrix) -> str:
    """What would be run, for `--dry-run`."""
    lines = []
    for cell in dict.fromkeys([*matrix.waiting, *matrix.cells]):
        row = matrix.rows.get(cell.key)
        if cell not in matrix.waiting:
            state = f'measured at {row["commit"] or "an unknown commit"}'
        else:
            run = matrix.work(cell).run()
            state = 'to run' if run is None else 'to be evaluated' if run.finished else 'to be gone on with'
        lines.append(f'{state:<22} {cell.label}')
    end = f'{len(matrix.waiting)} of {matrix.total} cells to run on {matrix.where.device}, ' \
          f'{len(matrix.where.slots)} at a time; time left: {matrix.left([])}'
    return '\n'.join([*lines, end])


def costs(table: Table) -> dict[str, tuple[str, str, str]]:
    """Parameters, multiply-adds and images per second of the detectors of a table, without NMS."""
    from hgd_det.experiments.speed import cost
    return {line.label: cost(line.config) for line in table.lines if line.label in (table.costs or {})}
