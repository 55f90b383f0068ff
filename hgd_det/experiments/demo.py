"""From nothing to a finished report on a laptop: data, teacher, student alone, student with HGD, export,
latency, report. What each phase leaves in the work directory says whether it is done.
"""
from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from hgd_det.checkpoint import atomic_write
from hgd_det.deploy.tables import plain
from hgd_det.errors import RunError, UserError
from hgd_det.experiments import processes
from hgd_det.experiments.cells import Cell, Work
from hgd_det.experiments.processes import Bar, Line
from hgd_det.report.runs import mean_ap

SETTINGS = 'demo.json'
TEST_SHARE = 6       # one test image for so many training images
ROUNDS = 6           # in which the models are timed in turns, five calls each
RUNS = {'teacher': ('shapes/teacher', ''), 'student': ('shapes/student', ''), 'hgd': ('shapes', 'hgd')}


@dataclass(frozen=True)
class Settings:
    """What a demo's result depends on. The teacher's seed is 0 always: students of all seeds learn from
    the same one, as in results/shapes.csv."""
    seed: int = 0
    steps: int = 500
    images: int = 3000
    options: tuple[str, ...] = ()

    def keep(self, folder: Path) -> None:
        """Write them down, or refuse the folder of a demo with others."""
        mine = json.loads(json.dumps(asdict(self)))
        try:
            theirs = json.loads((folder / SETTINGS).read_text())
        except FileNotFoundError:
            atomic_write(json.dumps(mine) + '\n', folder / SETTINGS)
            return
        except ValueError as error:
            raise UserError(f'{folder / SETTINGS} cannot be read ({error}); remove {folder}') from None
        if theirs != mine:
            told = ', '.join(f'{key} was {theirs.get(key)!r}, now {value!r}' for key, value in mine.items()
                             if theirs.get(key) != value)
            raise UserError(f'{folder} holds a demo with other settings: {told}. Give another --work-dir, or '
                            'remove the folder')


class Demo:
    """The phases, each a method that says what it does and whether that was already done."""

    def __init__(self, folder: Path, settings: Settings, lock: int, line: Line):
        self.folder, self.settings, self.lock, self.line = folder, settings, lock, line
        self.report, self.bench = folder / 'report.html', folder / 'bench.json'

    def phases(self) -> list[tuple[str, Callable[[Bar], object], Callable[[], bool]]]:
        """(sentence, what to do, whether it is done) in order."""
        steps = f'{self.settings.steps} steps'
        return [
            (f'draw {self.settings.images:,} training images of shapes and {self._tests:,} test images',
             self.draw, self.drawn),
            (f'train the teacher, {steps}', *self._training('teacher')),
            (f'train the student alone, {steps}', *self._training('student')),
            (f'train the same student taught with HGD, {steps}', *self._training('hgd')),
            ('export the taught student, without its teacher, as weights and as ONNX', self.export,
             lambda: all(path.exists() for path in self._exported)),
            ('time teacher, student, taught student and its ONNX file', self.time, self.bench.exists),
            ('write the report', self.write, self.report.exists)]

    # ------------------------------------------------------------------------------------------ data
    @property
    def _tests(self) -> int:
        return max(1, self.settings.images // TEST_SHARE)

    @property
    def data(self) -> Path:
        return self.folder / 'data'

    def drawn(self) -> bool:
        from hgd_det.data.shapes import existing
        return existing(self.data) is not None

    def draw(self, bar: Bar) -> None:
        from hgd_det.data.shapes import generate

        total, done = self.settings.images + self._tests, 0

        def progress(number: int) -> None:
            nonlocal done
            done += number
            bar.draw(done, total)
        generate(self.data, train=self.settings.images, test=self._tests, progress=progress,
                 workers=len(os.sched_getaffinity(0)))

    # ------------------------------------------------------------------------------------- trainings
    @cached_property
    def works(self) -> dict[str, Work]:
        steps = self.settings.steps
        options = [f'{part}_dataloader.dataset.data_root={self.data}/' for part in ('train', 'val', 'test')]
        options += [f'train_cfg.max_iters={steps}', f'train_cfg.val_interval={max(1, steps // 5)}',
                    'default_hooks.logger.interval=10', 'default_hooks.checkpoint.interval=50',
                    *self.settings.options]
        return {name: Work(Cell(*run, ' '.join(options), 0 if name == 'teacher' else self.settings.seed),
                           self.folder / name, self.folder / 'teacher' if name == 'hgd' else None)
                for name, run in RUNS.items()}

    def _training(self, name: str) -> tuple[Callable[[Bar], None], Callable[[], bool]]:
        work = self.works[name]
        return lambda bar: self.train(work, bar), lambda: work.metrics() is not None

    def train(self, work: Work, bar: Bar) -> None:
        """Train, and evaluate where the training was killed before it did."""
        done = None
        while command := work.command():
            if command == done:
                raise RunError(f'{work.folder}: the training was stopped; the same command goes on there')
            threads = {'OMP_NUM_THREADS': str(processes.threads())}
            process = processes.start(command, work.log, self.lock, threads)
            try:
                while process.poll() is None:
                    bar.draw(*(processes.reached(work.log) or (0, self.settings.steps)))
                    time.sleep(0.2)
            finally:
                processes.stop([process])
            if process.returncode:
                raise RunError(f'{work.folder}: the training ended with status {process.returncode}; the end '
                               f'of {work.log}:\n{processes.tail(work.log)}')
            done = command

    def checkpoint(self, name: str) -> Path:
        return self.folder / name / f'iter_{self.settings.steps}.pth'

    # ---------------------------------------------------------------------------------- what follows
    @property
    def _exported(self) -> list[Path]:
        return [self.folder / 'export' / f'model{suffix}' for suffix in ('.pth', '.onnx', '.md')]

    def export(self, bar: Bar) -> None:
        bar.draw(0, 1)
        with quiet():
            from hgd_det.deploy.export import export
            from hgd_det.deploy.student import load_student

            student = load_student(self.checkpoint('hgd'))
            export(student, self.folder / 'export', ('pth', 'onnx'), with_nms=True, force=True)

    def time(self, bar: Bar) -> None:
        with quiet():
            from hgd_det.deploy.bench import TURN, bench, summary
            from hgd_det.deploy.samples import samples

        paths = [str(self.checkpoint(name)) for name in RUNS] + [str(self._exported[1])]
        images = list(samples([self.data / 'VOC2007/JPEGImages'], 64))
        found, spent = None, {}
        for number in range(ROUNDS):
            bar.draw(number, ROUNDS)
            with quiet():
                one = bench(paths, batches=(1,), threads=(1,), repeat=TURN, images=images, memory=False)
            found = found or one
            for row in one['times']:
                spent.setdefault(row['model'], []).extend(row['ms'])
        for row in found['times']:
            row.update(summary([1e6 * ms for ms in spent[row['model']]], row['batch']))
        found['repeat'] = ROUNDS * TURN
        atomic_write(json.dumps(found, indent=1) + '\n', self.bench)

    def write(self, bar: Bar) -> None:
        bar.draw(0, 1)
        with quiet():
            from hgd_det.report.page import write_report

            write_report([self.folder / name for name in RUNS], self.report, bench=self.bench, force=True,
                         title=f'Demo: shapes, {self.settings.steps} steps, seed {self.settings.seed}')

    # -------------------------------------------------------------------------------------- the table
    def table(self) -> str:
        """Teacher, student alone and taught student side by side."""
        found = json.loads(self.bench.read_text())
        mean = {name: 100 * mean_ap(self.works[name].metrics()) for name in RUNS}
        gain, gap = mean['hgd'] - mean['student'], mean['teacher'] - mean['student']
        rows = [['', 'mAP@.5', 'gain', 'share of the gap', 'parameters', 'multiply-adds', 'latency']]
        labels = ('teacher', 'student alone', 'student with HGD', '  exported to ONNX')
        for label, name, model, speed in zip(labels, (*RUNS, ''), found['models'], found['times'],
                                             strict=True):
            taught = name == 'hgd'
            rows.append([label, f'{mean[name]:.1f}' if name else '', f'{gain:+.1f}' if taught else '',
                         f'{100 * gain / gap:.0f} %' if taught and gap > 0 else '',
                         f'{model["params"] / 1e6:.2f} M', f'{model["macs"] / 1e6:.0f} M',
                         f'{speed["median_ms"]:.1f} ms'])
        return plain(rows, left=('',)) + '\n\n' + self._verdict(gain, gap)

    def _verdict(self, gain: float, gap: float) -> str:
        told = (f'Taught with HGD, the student finds {gain:.1f} points more than alone, at the same size and '
                'speed.') if gain > 0 else (
            f'Here HGD did not help: {gain:+.1f} points. With {self.settings.steps} steps the teacher has '
            f'{gap:+.1f} points against the student alone; more --steps may help.')
        return f'{told}\n(latency: median of {ROUNDS * 5} calls, one image, one thread, NMS included)'


def demo(folder: str | Path, settings: Settings, line: Line | None = None) -> str:
    """Run what is not done yet; the table at the end."""
    folder, line = Path(folder), line or Line(every=20)
    with processes.locked(folder) as lock, processes.interruptible():
        settings.keep(folder)
        this = Demo(folder, settings, lock, line)
        phases = this.phases()
        try:
            for number, (what, do, done) in enumerate(phases, 1):
                name = f'[{number}/{len(phases)}]'
                with quiet():
                    already = done()
                if already:
                    line.say(f'{name} already done: {what}')
                    continue
                line.say(f'{name} {what}')
                began = time.monotonic()
                do(Bar(line, name))
                line.say(f'{name} done in {processes.clock(time.monotonic() - began)}')
        except KeyboardInterrupt:
            line.say('stopped; the same command goes on from here')
            raise
        return f'{this.table()}\nreport: {this.report}'


@contextlib.contextmanager
def quiet():
    """Nothing that libraries print gets between the lines of the demo."""
    with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere), \
            contextlib.redirect_stderr(nowhere):
        yield

