"""A clean stop: the signal that ends a run is noted, and acted on where nothing is half done.

Batch systems, `timeout` and terminals signal whole groups of processes. Data workers let that pass, and the
main process decides: at once while it starts or waits for data, else after the iteration, the image of a
validation or the checkpoint it is at.
"""
from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.registry import HOOKS

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(SystemExit):
    """A run was stopped by a signal; the exit status is that of a program that the signal ended."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


class Interrupted(Stopped):
    """A stop that found nothing half done: between two iterations, and nothing is saved yet."""


class _State:
    received: int | None = None
    free = False     # nothing is half done: the handler itself may end the run


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """In the block the first SIGTERM, SIGINT or SIGHUP stops the run in order; the second acts as ever."""
    earlier = {}

    def restore():
        for number, handler in earlier.items():
            signal.signal(number, handler)
        earlier.clear()

    def caught(number, frame):
        _State.received = number
        restore()
        if _State.free:
            _State.free = False
            raise Interrupted(number)

    if threading.current_thread() is threading.main_thread():
        # nohup has SIGHUP ignored, and means it; a shell has SIGINT ignored in every job of its background
        heard = [number for number in STOPPING
                 if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        _State.free = True     # until training begins there is nothing to save
        earlier.update({number: signal.signal(number, caught) for number in heard})
    try:
        yield
    finally:
        restore()
        _State.received, _State.free = None, False


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """In the block, a wait for data, a stop need not wait too. Not in a job of several processes: one that
    left by itself would keep the others waiting for its gradients."""
    before = _State.free
    _State.free = get_world_size() == 1
    try:
        if _State.free and _State.received is not None:
            raise Interrupted(_State.received)
        yield
    finally:
        _State.free = before


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """In the block no such signal arrives, and none will in the processes that are started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_it_to_the_parent() -> None:
    """In a data worker: let stop signals pass, but for the SIGTERM with which the main process ends it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    threading.Thread(target=_answer, daemon=True).start()


def _answer() -> None:
    while True:
        told = signal.sigwaitinfo(STOPPING)
        if told.si_signo == signal.SIGTERM and told.si_pid == os.getppid():
            os._exit(0)


@HOOKS.register_module()
class StopHook(Hook):
    """Inside `listening()`, SIGTERM, SIGHUP or Ctrl-C saves and ends the run, with status 128 + the signal.

    A run counted in iterations is saved where it stands. One counted in epochs is saved if it stands at the
    end of one, as during the validation, and else goes on from the last saved epoch: its order of images is
    only reproducible by whole epochs.

    The processes of a data-parallel job stop together, after an iteration, whichever was signalled.
    """

    priority = 'LOWEST'  # after a checkpoint due at this very iteration, and the swap of averaged weights

    def __init__(self):
        self._began: int | None = None
        self._validating = self._whole = False

    def before_train(self, runner) -> None:
        self._began = runner.iter
        _State.free = False

    def before_train_epoch(self, runner) -> None:
        if _State.received is not None and get_world_size() == 1:
            self.save_and_stop(runner, _State.received)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._whole = False

    def after_train_epoch(self, runner) -> None:
        self._whole = True

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        received = torch.tensor(_State.received or 0)
        all_reduce(received, 'max')
        if received:
            self._save(runner, runner.iter + 1, None)
            self._stop(runner, runner.iter + 1, int(received))

    def before_val_epoch(self, runner) -> None:
        self._validating = True

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        # several processes may have different numbers of images left; they meet after the next step
        if _State.received is not None and get_world_size() == 1:
            self.save_and_stop(runner, _State.received)

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._validating = False
        if _State.received is not None and get_world_size() == 1 and runner.iter < runner.max_iters:
            self.save_and_stop(runner, _State.received)

    def save_and_stop(self, runner, number: int) -> None:
        """Between two iterations: while the run waits for data, or validates."""
        self.save(runner)
        self._stop(runner, runner.iter, number)

    def save(self, runner) -> None:
        """Save what has been trained, if something has, between two iterations."""
        if self._validating:  # its averaged weights stand where the trained ones belong
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)
            self._validating = False
        if self._began is not None and runner.iter > self._began:
            self._save(runner, runner.iter, runner.epoch if self._whole else None)

    def _save(self, runner, iteration: int, epoch: int | None) -> None:
        saver = _saver(runner)
        if saver is None or (saver.by_epoch and epoch is None):
            return
        step = epoch if saver.by_epoch else iteration
        if saver.last_ckpt != saver.file_backend.join_path(saver.out_dir, saver.filename_tmpl.format(step)):
            save = getattr(saver, 'save_now', saver._save_checkpoint_with_step)
            save(runner, step, dict(epoch=runner.epoch, iter=iteration))

    def _stop(self, runner, iteration: int, received: int) -> None:
        saver = _saver(runner)
        runner.logger.info(f'Stopped by {signal.Signals(received).name} at iteration {iteration}. '
                           'The same command with --resume goes on from '
                           f'{saver and saver.last_ckpt or "the start"}')
        raise Stopped(received)


def _saver(runner) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
