"""What `train` does: the run of a config, or its generations, each taught by the one before it.

    generations = 3                    # as a line of the config
    generations = [dict(), dict()]     # the same for two; an entry changes the config for its generation

Each generation is an ordinary run in a folder of its own (`gen1`, `gen2`, ...) with its own log and
checkpoints; beside them `generation.json` says what it is trained with and, at the end, which
checkpoint it came to. One process, or one group of them, walks through all.
"""
from __future__ import annotations

import contextlib
import copy
import gc
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import barrier, is_main_process

from hgd_det.checkpoint import atomic_write, sha256
from hgd_det.distill.registry import TERMS
from hgd_det.distill.teacher import UNTRAINED
from hgd_det.engine.folder import checkpoint_folder, one_writer, refuse_a_second, set_aside, writes
from hgd_det.engine.resume import finished, go_on, settings
from hgd_det.engine.runner import build_runner, plain
from hgd_det.errors import UserError
from hgd_det.paths import unsafe

RECORD = 'generation.json'

def train(cfg: Config, resume: str | None = None, anew: bool = False) -> None:
    """Train what a config describes, with `resume='auto'` from where it stands; with `anew`, what an earlier
    training left in the folder is set aside first."""
    if anew and resume:
        raise UserError('--anew begins from the start, --resume goes on; give one of them')
    if anew and writes(cfg):
        with one_writer(cfg.work_dir):
            set_aside(cfg)
    if cfg.get('generations') is not None:
        _walk(cfg, resume)
        return
    with alone(cfg):
        content = go_on(cfg, resume) if resume else None
        if content is not None and (told := finished(cfg, content)):
            print(f'{cfg.work_dir}: {told}')
            if Path(cfg.load_from).parent.resolve() == checkpoint_folder(cfg).resolve():
                return    # another run's is looked at first: it may not fit the config at all
        if content is None and writes(cfg):
            refuse_a_second(cfg)
        build_runner(cfg).train()


def alone(cfg: Config) -> contextlib.AbstractContextManager:
    """The run's folder, held by the one process of the job that writes into it."""
    return one_writer(cfg.work_dir) if writes(cfg) else contextlib.nullcontext()


def _walk(cfg: Config, resume: str | None) -> None:
    entries = _entries(cfg)
    if resume not in (None, 'auto'):
        raise UserError(f'--resume {resume}: this config trains generations, each from its own checkpoints; '
                        'give --resume alone')
    teacher = None
    for number, changes in enumerate(entries, 1):
        one = generation(cfg, number, changes, teacher)
        folder, table = Path(one.work_dir), settings(one)
        record = _read(folder)
        if 'checkpoint' in record:  # finished
            _same(record, table, folder)
            print(f'generation {number} of {len(entries)} is finished: {folder}')
        else:
            print(f'generation {number} of {len(entries)}: {folder}')
            if teacher and not Path(teacher['checkpoint']).exists():
                raise UserError(f'{folder} learns from {teacher["checkpoint"]}, which is gone; put it back, '
                                'or remove its folder to train that generation anew')
            with alone(one):
                if resume and go_on(one) is not None:
                    _same(record, table, folder)
                elif writes(one):
                    refuse_a_second(one)
                _run(one, dict(generation=number, settings=table))
        if number < len(entries):
            teacher = _teacher(one)


def generation(cfg: Config, number: int, changes: Mapping, teacher: Mapping | None) -> Config:
    """The config of one generation's run: its folder, its seed (the first's and one more each), its teacher.

    The first has the teacher of the config. Where that has no checkpoint, it has none, and of the
    terms only those that need none.
    """
    one = copy.deepcopy(cfg)
    one.pop('generations')
    one.merge_from_dict(dict(changes))
    one.work_dir = str(Path(cfg.get('work_dir') or 'work_dirs', f'gen{number}'))
    one.randomness = {**(one.get('randomness') or {})}
    one.randomness.seed = (one.randomness.get('seed') or 0) + number - 1
    # mmengine keeps loggers and visualizers by these names, for the whole life of a process
    name = cfg.get('experiment_name') or Path(cfg.filename or 'run').stem
    one.experiment_name = f'{name}_gen{number}'
    if one.get('visualizer'):
        one.visualizer.name = f'{one.visualizer.get("name", "visualizer")}_gen{number}'
    if teacher is not None:
        one.model.teacher = dict(teacher)
    elif not (one.model.get('teacher') or {}).get('checkpoint'):
        one.model.teacher = None
        one.model.terms = {name: term for name, term in (one.model.get('terms') or {}).items()
                           if not _needs_teacher(term)}
    return one


def each(cfg: Config) -> Iterator[Config]:
    """The config of every generation, its teacher untrained: what it costs, not what it comes to."""
    teacher = None
    for number, changes in enumerate(_entries(cfg), 1):
        one = generation(cfg, number, changes, teacher)
        yield one
        teacher = _as_teacher(one) | dict(checkpoint=UNTRAINED)


def _entries(cfg: Config) -> list[Mapping]:
    """The changes of each generation."""
    given = cfg.generations
    entries = [{}] * given if isinstance(given, int) else given
    if not (isinstance(entries, (list, tuple)) and entries and all(isinstance(e, Mapping) for e in entries)):
        raise UserError(f'generations={given!r}; it is their number, from 1, or a list of the changes of '
                        'each, as [dict(), dict()]')
    if cfg.model.get('type') != 'Distiller':
        raise UserError(f'generations teach each other, but the model is a {cfg.model.get("type")}; write '
                        "model=dict(type='Distiller', student=..., terms=...)")
    if 'checkpoint' in (hooks := cfg.get('default_hooks') or {}) and hooks['checkpoint'] is None:
        raise UserError('generations teach from their checkpoints, which default_hooks.checkpoint=None '
                        'switches off')
    return list(entries)


def _needs_teacher(term: Mapping | None) -> bool:
    # what is no term at all is left for the distiller to name
    kind = TERMS.get(term['type']) if term and 'type' in term else None
    return getattr(kind, 'needs_teacher', False)


def _run(one: Config, record: dict) -> None:
    folder = Path(one.work_dir)
    runner = build_runner(one)  # joins the processes
    if is_main_process():
        atomic_write(json.dumps(record, indent=1), folder / RECORD)
    runner.train()
    if is_main_process():
        last = checkpoint_folder(one) / Path((folder / 'last_checkpoint').read_text().strip()).name
        done = dict(checkpoint=os.path.relpath(last, folder), sha256=sha256(last))
        atomic_write(json.dumps(record | done, indent=1), folder / RECORD)
    barrier()
    del runner
    gc.collect()  # its circular references hold the model and the data loaders' workers


def _teacher(one: Config) -> dict:
    """Arguments of `Teacher` for who learns from this finished generation."""
    folder = Path(one.work_dir)
    record = _read(folder)
    kept, saver = record['checkpoint'], (one.get('default_hooks') or {}).get('checkpoint') or {}
    if not isinstance(kept, str) or unsafe(kept) and not saver.get('out_dir'):
        raise UserError(f'{folder / RECORD} names a checkpoint outside of its folder, {kept!r}; remove '
                        f'{folder} to train this generation anew')
    return _as_teacher(one) | dict(checkpoint=str(folder / kept), sha256=record['sha256'])


def _as_teacher(one: Config) -> dict:
    student = plain(one)
    return dict(model=dict(model=student.model, input_size=student.get('input_size')))


def _read(folder: Path) -> dict:
    try:
        return json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f'{folder / RECORD} cannot be read ({error}); remove {folder} to train this '
                        'generation anew') from error


def _same(record: Mapping, settings: Mapping, folder: Path) -> None:
    """Refuse to go on from, or to skip, what was trained with other settings."""
    before = record.get('settings')
    if before is None:
        raise UserError(f'{folder} holds checkpoints, but no {RECORD}, so they are of another run; give '
                        f'another --work-dir, or remove {folder}')
    differ = [f'{key} was {before.get(key, "not there")}, now {settings.get(key, "it is not there")}'
              for key in dict.fromkeys([*before, *settings]) if before.get(key) != settings.get(key)]
    if differ:
        more = f'; and {len(differ) - 4} more' if len(differ) > 4 else ''
        raise UserError(f'{folder} was trained with other settings: {"; ".join(differ[:4])}{more}. Give the '
                        f'earlier ones again, or another --work-dir, or remove {folder} to train it anew')
