"""A run's folder belongs to one training at a time, and to nothing else.

    with one_writer('work_dirs/hgd'):    # by a lock that ends with the process, however that ends
        ...

A training is never begun over another, and nothing but a training writes into its folder.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config

from hgd_det.errors import UserError

LOCK = '.lock'
PATIENCE = 3.0     # seconds: a process that was killed may need some to be gone
CHECKPOINT = re.compile(r'(iter|epoch)_\d+\.pth')
RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}

_held: set[Path] = set()


def writes(cfg: Mapping) -> bool:
    """Whether this process is the one of its job that writes: known before the job's processes have met."""
    variable = RANKS.get(cfg.get('launcher') or 'none')
    return variable is None or os.environ.get(variable, '0') == '0'


@contextlib.contextmanager
def one_writer(folder: str | Path) -> Iterator[None]:
    """In the block no other process can hold this folder; refuse one that another holds.

    It is a lock on a file, of this process alone: data workers do not inherit it, and the system takes it
    back when the process is killed. What the file says is for the message.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    if place in _held:    # such a lock does not keep a process from itself
        raise UserError(f'this process trains in {folder} already; give another --work-dir')
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        until = time.monotonic() + PATIENCE
        while not _taken(handle):
            if time.monotonic() > until:
                who = os.pread(handle, 300, 0).decode(errors='replace').strip() or 'another process'
                raise UserError(f'{who} trains in {folder}. Two runs in one folder would mix their '
                                'checkpoints: wait for it, end it, or give another --work-dir')
            time.sleep(0.1)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f'process {os.getpid()} on {socket.gethostname()}, since '
                          f'{time.strftime("%Y-%m-%d %H:%M:%S")},\n'.encode(), 0)
        _held.add(place)
        yield
    finally:
        _held.discard(place)
        os.close(handle)


def _taken(handle: int) -> bool:
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def checkpoint_folder(cfg: Config) -> Path:
    """Where a run's checkpoints lie: its folder, or one of its name in `default_hooks.checkpoint.out_dir`."""
    work_dir = Path(cfg.work_dir)
    out_dir = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
    return Path(out_dir, work_dir.absolute().name) if out_dir else work_dir


def saved(folder: str | Path) -> list[Path]:
    """The checkpoints of a training in a folder, by their names."""
    found = [path for path in Path(folder).glob('*.pth') if CHECKPOINT.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem.rpartition('_')[2]))


def refuse_a_second(cfg: Config) -> None:
    """Refuse to begin a training where one has saved something."""
    there = saved(checkpoint_folder(cfg))
    if there:
        raise UserError(
            f'{cfg.work_dir} holds a training, up to {there[-1].name}. --resume goes on with it, --work-dir '
            f'DIR trains elsewhere, and --anew sets the whole folder aside, as '
            f'{_aside(Path(cfg.work_dir)).name}, and begins again')


def set_aside(cfg: Config) -> None:
    """Give a folder that holds a training a number behind its name."""
    folder = Path(cfg.work_dir)
    if checkpoint_folder(cfg) != folder and saved(checkpoint_folder(cfg)):
        raise UserError(f'the checkpoints of {folder} lie in {checkpoint_folder(cfg)}; move both away, or '
                        'give another --work-dir')
    if saved(folder) or any(saved(each) for each in folder.glob('gen[0-9]*')):
        aside = _aside(folder)
        folder.rename(aside)
        print(f'the earlier training is now in {aside}')


def _aside(folder: Path) -> Path:
    folder = folder.absolute()
    ends = (path.name.removeprefix(f'{folder.name}.') for path in folder.parent.iterdir())
    return folder.with_name(f'{folder.name}.{max(map(int, filter(str.isdigit, ends)), default=0) + 1}')


def is_a_trainings(folder: str | Path) -> bool:
    return bool(saved(folder)) or Path(folder, 'last_checkpoint').exists()


def not_a_trainings(folder: str | Path) -> None:
    """Refuse to write what is no training into the folder of one."""
    if is_a_trainings(folder):
        raise UserError(f'{folder} is the folder of a training, into which nothing else writes: its config '
                        'and its log would no longer be those of the training. Give another --work-dir')
