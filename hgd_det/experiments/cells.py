"""A cell of a table: a config with its method, options and seed, trained in a folder and evaluated there.

What there is to do for it is read off its folder alone, so a cell goes on after whatever ended it.
"""
from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from hgd_det.checkpoint import atomic_write
from hgd_det.errors import UserError
from hgd_det.experiments.processes import free_port
from hgd_det.experiments.results import COLUMNS, Key, software, write_classes
from hgd_det.paths import PACKAGE, config_name, method_name, read_config
from hgd_det.report.runs import Run, class_aps, mean_ap, read_run

VERB = [sys.executable, str(PACKAGE)]    # hgd-det, whatever is on the path
RECORD = 'cell.json'
TEST = 'test/test.json'    # in a folder of its own: only training writes beside a training's files


@dataclass(frozen=True)
class Cell:
    config: str    # a pair, or a detector that trains alone
    method: str = ''
    options: str = ''    # KEY=VALUE, separated by spaces
    seed: int = 0

    @property
    def key(self) -> Key:
        return self.config, self.method, self.options, self.seed

    @property
    def label(self) -> str:
        return ' '.join(filter(None, (self.config, self.method, self.options, f'seed {self.seed}')))

    @property
    def name(self) -> str:
        """Of its folder: `shapes-hgd_0`, `shapes-hgd_macro-none_micro-none_51fd2c_0`."""
        parts = [*config_name(self.config).split('/')[-2:], method_name(self.method)]
        words = ['-'.join(filter(None, parts))]
        if self.options:
            pairs = (option.partition('=') for option in self.options.split())
            told = (re.sub(r'[^\w.]+', '-', f'{key.rpartition(".")[2]}-{value}').strip('-')
                    for key, _, value in pairs)
            words += ['_'.join(told)[:80], hashlib.sha256(self.options.encode()).hexdigest()[:6]]
        return '_'.join([*words, str(self.seed)])


@dataclass(frozen=True)
class Work:
    """A cell in its folder.

    Attributes:
        teacher: The folder of its teacher's run, where it has one.
        extra: Options that change how it is trained and not what comes out, which no row tells.
        processes: So many, one per GPU, share the config's batch.
    """
    cell: Cell
    folder: Path
    teacher: Path | None = None
    extra: tuple[str, ...] = ()
    processes: int = 1

    @property
    def log(self) -> Path:
        return self.folder / 'log.txt'

    @cached_property
    def last(self) -> Path:
        """The folder of its run; of a chain of generations, of the last."""
        return self.folder / f'gen{count}' if (count := generations(*self.cell.key[:2])) else self.folder

    def run(self) -> Run | None:
        try:
            return read_run(self.last)
        except UserError:    # nothing there yet
            return None

    def metrics(self) -> Mapping[str, float] | None:
        """Of the finished run, evaluated with its last weights; None before."""
        run = self.run()
        if run is None or not run.finished:
            return None
        if run.final and run.final['iter'] >= _end(run):
            return run.final
        try:    # killed between its last checkpoint and the evaluation: tested afterwards
            return json.loads((self.folder / TEST).read_text())['metrics']
        except FileNotFoundError:
            return None

    def command(self) -> list[str] | None:
        """What there is to run next; None where all is done."""
        if self.metrics() is not None:
            return None
        run, options = self.run(), [*self.cell.options.split(), *self.extra]
        if run is not None and run.finished:
            last = self.last / Path((self.last / 'last_checkpoint').read_text().strip()).name
            return [*VERB, 'test', self.cell.config, str(last), '--json', str(self.folder / TEST),
                    '--work-dir', str(self.folder / 'test'), *self._given(options)]
        if self.teacher is not None:
            options.append(f'model.teacher.checkpoint={self.teacher}')
        if self.processes > 1:
            options.append(f'train_dataloader.batch_size={self._share()}')
        several = self.processes > 1
        return [*(_torchrun(self.processes) if several else VERB), 'train', self.cell.config,
                *(('--launcher', 'pytorch') if several else ()), '--resume', '--seed', str(self.cell.seed),
                '--work-dir', str(self.folder), *self._given(options)]

    def _given(self, options: Sequence[str]) -> list[str]:
        method = ['--method', self.cell.method] if self.cell.method else []
        return [*method, *(['--cfg-options', *options] if options else ())]

    def _share(self) -> int:
        batch = next((int(option.partition('=')[2]) for option in reversed(self.cell.options.split())
                      if option.startswith('train_dataloader.batch_size=')), None) \
            or read_config(self.cell.config, self.cell.method).train_dataloader.batch_size
        if batch % self.processes:
            raise UserError(f'{self.cell.config} trains on batches of {batch}, which {self.processes} GPUs '
                            'cannot share evenly; give another --gpus-per-cell')
        return batch // self.processes

    def note(self, commit: str) -> None:
        """Write down what the folder is for and at which commits it is trained; refuse another cell's."""
        record = self.record()
        if commit not in record['commits']:
            record['commits'].append(commit)
        atomic_write(json.dumps(record, indent=1) + '\n', self.folder / RECORD)

    def record(self) -> dict:
        mine = dict(zip(COLUMNS, self.cell.key, strict=False))
        try:
            record = json.loads((self.folder / RECORD).read_text())
        except FileNotFoundError:
            if self.run() is not None:
                raise UserError(f'{self.folder} holds a run, but no {RECORD} that says of what; move it '
                                'away, or give another --work-dir') from None
            return mine | dict(commits=[])
        except ValueError as error:
            raise UserError(f'{self.folder / RECORD} cannot be read ({error}); move {self.folder} away to '
                            'train it anew') from None
        if 'method' not in record and record.get('config') == self._file:    # of a time when it was one file
            record |= dict(config=self.cell.config, method=self.cell.method)
        if {name: record.get(name) for name in mine} != mine:
            told = ' '.join(str(record.get(name) or '') for name in ('config', 'method', 'options'))
            raise UserError(f'{self.folder} is of {" ".join(told.split())} seed {record.get("seed")}, not of '
                            f'{self.cell.label}; give another --work-dir')
        return record

    @property
    def _file(self) -> str:
        return f'configs/{"/".join(filter(None, self.cell.key[:2]))}.py'

    def row(self, device: str) -> dict[str, str]:
        """What goes into `results/*.csv`; the cell must be done."""
        run = self.run()
        return dict(zip(COLUMNS, map(str, self.cell.key), strict=False)) | dict(
            iterations=str(_end(run)), seconds=str(round(seconds(self.folder))), role='result',
            commit=' '.join(self.record()['commits']), device=device, **software(), **figures(self.metrics()))


def _torchrun(processes: int) -> list[str]:
    return [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={processes}',
            f'--master_port={free_port()}', str(PACKAGE)]


def _end(run: Run) -> int:
    """The iteration at which a finished run ended."""
    return run.values['train_cfg'].get('max_iters') or run.train[-1]['iter']


@cache
def generations(config: str, method: str = '') -> int:
    """How many a config trains one after another; 0 for an ordinary run."""
    given = read_config(config, method).get('generations')
    return given if isinstance(given, int) else len(given or ())


@cache
def teacher_of(config: str, method: str = '') -> str | None:
    """The config of the teacher that must be trained first."""
    teacher = read_config(config, method).model.get('teacher') or {}
    if not teacher.get('checkpoint'):
        return None
    return config_name(teacher.model) if teacher.model.startswith('configs/') else teacher.model


def figures(metrics: Mapping[str, float]) -> dict[str, str]:
    """The columns that an evaluation fills. AP50 and AP75 of COCO stand before the classes."""
    mean, points = mean_ap(metrics), metrics.get('voc/mAP_11points')
    if 'voc/mAP_area' in metrics:    # then the first mode is that of eleven points
        mean, points = metrics['voc/mAP_area'], mean
    more = {f'AP{part}': metrics[f'coco/bbox_mAP_{part}'] for part in (50, 75)
            if f'coco/bbox_mAP_{part}' in metrics}
    return dict(mAP=f'{mean:.4f}', mAP_11points='' if points is None else f'{points:.4f}',
                per_class=write_classes(more | class_aps(metrics)))


def seconds(folder: Path) -> float:
    """How long something was running in a folder, however often it was started: each start's folder is
    named by its time, and the log in it is written to the end."""
    spent = 0.0
    for start in folder.rglob('[0-9]*_[0-9]*'):
        if re.fullmatch(r'\d{8}_\d{6}', start.name) and start.is_dir():
            began = time.mktime(time.strptime(start.name, '%Y%m%d_%H%M%S'))
            spent += max(path.stat().st_mtime for path in (start, *start.rglob('*'))) - began
    return max(spent, 0.0)
