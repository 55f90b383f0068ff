"""What goes wrong around a run, not in its config: a full disk, a process that is gone or has less to do."""
from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import distributed

from hgd_det.engine.loading import shared_memory
from hgd_det.errors import RunError, UserError

# a full disk, a quota, a limit on the size of files
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LOST = re.compile('Connection (reset|closed) by peer|connectFullMesh failed|remote process exited')
DATA_WORKER = re.compile(r'DataLoader worker \(pid.*?\) (?:is killed by signal: \w+|exited unexpectedly)')
AGAIN = 'The same command with --resume goes on from the newest checkpoint'


@contextlib.contextmanager
def run_errors() -> Iterator[None]:
    """Faults of the machine as one message each."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise RunError(f'{error.filename or "a file"} could not be written: {error.strerror}. The '
                           f'checkpoints of before are intact. Free space. {AGAIN}') from error
        texts = [str(cause) for cause in _chain(error)]
        # whoever lost the others is told to stop, data workers and all: that comes second. Alone, a reset
        # connection is that to a data worker
        if distributed.is_initialized() and (found := _first(LOST, texts)):
            raise RunError(f'another process of the job is gone ({found}). Its own output says why; '
                           f'if it was killed, torchrun names the signal. {AGAIN}; MAX_RESTARTS=N before '
                           'tools/dist_train.sh makes it do so by itself') from error
        if found := _first(DATA_WORKER, texts):
            raise RunError(f'a process that loads data died ({found}). If the system killed it, memory ran '
                           'out, or shared memory, through which each batch comes: '
                           f'{shared_memory()}. Lower train_dataloader.num_workers or the size of the batch, '
                           f'or give a container more (docker run --shm-size=8g). {AGAIN}') from error
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first(pattern: re.Pattern, texts: list[str]) -> str | None:
    return next((found[0] for found in map(pattern.search, texts) if found), None)


@HOOKS.register_module()
class EqualStepsHook(Hook):
    """Refuse to start processes of which one would be done before the others, who would wait for ever."""

    def before_train(self, runner) -> None:
        most, least = torch.tensor(runner.max_iters), torch.tensor(runner.max_iters)
        all_reduce(most, 'max')
        all_reduce(least, 'min')
        if most != least:
            raise UserError(f'the processes have different numbers of steps, from {least} to {most}; one '
                            'would wait for another for ever. train_dataloader.sampler.round_up=True gives '
                            'all as many images')
