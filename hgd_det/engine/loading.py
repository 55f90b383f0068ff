"""Data loaders whose workers outlive a signal to their group, and that do not wait for ever."""
from __future__ import annotations

import contextlib
import multiprocessing.queues
import shutil
from collections.abc import Callable

from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from hgd_det.engine.signals import held_back, leave_it_to_the_parent, waiting
from hgd_det.errors import RunError

ROOM = ('Lower num_workers or batch_size of the data loader, or give a container more shared memory (docker '
        'run --shm-size=8g)')
PATIENCE = 600     # seconds for one batch; `train_dataloader.timeout` sets another number


class Stalled(RunError):
    """A batch did not come: between two iterations, so that what was trained can be saved."""


class PatientLoader(DataLoader):
    """torch's loader; :func:`patient` makes one of any."""

    def _get_iterator(self):
        with held_back():  # a worker would die of a signal that comes before it is set up
            return super()._get_iterator()

    def __iter__(self):
        return _Waiting(super().__iter__(), self)


def patient(loader: DataLoader) -> DataLoader:
    """Let a loader's workers leave signals to the main process, and give up on a batch that never comes."""
    if type(loader) is DataLoader:
        loader.__class__ = PatientLoader
        if loader.num_workers > 0:
            loader.timeout = loader.timeout or PATIENCE
            loader.worker_init_fn = _Worker(loader.worker_init_fn)
    return loader


class _Waiting:
    """A loader's iterator, in whose wait for a batch a run may be stopped."""

    def __init__(self, inner, loader: DataLoader):
        self._inner, self._number, self._timeout = inner, loader.num_workers, loader.timeout

    def __iter__(self):
        return self

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str):
        if name == '_inner':
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __next__(self):
        try:
            with waiting():
                return next(self._inner)
        except RuntimeError as error:
            if 'timed out after' not in str(error):
                raise
            raise Stalled(
                f'no batch came for {self._timeout:g} s from the {self._number} workers that load data. '
                'Either one hangs (a file on a disk that does not answer), or their batches do not fit into '
                f'shared memory: {shared_memory()}. {ROOM}; where reading is that slow, set '
                'train_dataloader.timeout=SECONDS') from error


def shared_memory() -> str:
    with contextlib.suppress(OSError):
        found = shutil.disk_usage('/dev/shm')
        return f'/dev/shm has {found.free / 2 ** 20:,.0f} of {found.total / 2 ** 20:,.0f} MB free'
    return '/dev/shm cannot be looked at'


class _Worker:
    """What a worker does first, then what the loader had for it."""

    def __init__(self, then: Callable[[int], object] | None):
        self.then = then

    def __call__(self, number: int) -> None:
        leave_it_to_the_parent()
        multiprocessing.queues.Queue._on_queue_feeder_error = _batch_lost
        if self.then is not None:
            self.then(number)


def _batch_lost(queue: multiprocessing.queues.Queue, error: BaseException, item: tuple) -> None:
    """Hand the reason over in place of a batch that cannot be. Python would print it, drop the batch, and let
    the main process wait for that for ever."""
    reason = Stalled(f'a batch could not be handed to the main process ({type(error).__name__}: {error}); it '
                     f'goes through shared memory: {shared_memory()}. {ROOM}')
    queue.put((item[0], ExceptionWrapper((Stalled, reason, error.__traceback__), 'in a data worker')))
