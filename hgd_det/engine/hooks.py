"""Hooks every run has: checkpoints that survive a crash, and a clean stop on a signal."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from hgd_det.checkpoint import atomic_write
from hgd_det.errors import RunError, UserError
from hgd_det.weights import compare


@register_backend('atomic', force=True)
class AtomicLocalBackend(LocalBackend):
    """Local files, of which a reader sees the old content or the new, never a part."""

    def put(self, obj: bytes, filepath) -> None:
        atomic_write(obj, filepath)

    def put_text(self, obj: str, filepath, encoding: str = 'utf-8') -> None:
        atomic_write(obj.encode(encoding), filepath)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's `CheckpointHook` that never leaves a run without an intact checkpoint.

    - A checkpoint and `last_checkpoint` are written beside their place and renamed.
    - The oldest checkpoint (`max_keep_ckpts`) and the previous best are removed after the new one
      stands, not before.
    - A full disk or another write error is reported and training goes on, with the earlier
      checkpoints untouched; only when the last checkpoint of the run cannot be written is it an
      error.
    - Resuming is strict: a checkpoint of another model is refused (mmengine warns and trains what
      did not fit anew).
    """

    def __init__(self, *args, backend_args: dict | None = None, **kwargs):
        super().__init__(*args, backend_args=backend_args or {'backend': 'atomic'}, **kwargs)
        self._failure: str | None = None

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if is_main_process():
            # of a run that was killed while it wrote
            for folder in {self.out_dir, runner.work_dir}:
                for leftover in Path(folder).glob('.*.tmp'):
                    leftover.unlink(missing_ok=True)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        hub, earlier = runner.message_hub, list(getattr(self, 'keep_ckpt_ids', ()))
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        keep = earlier if step in earlier[-1:] else [*earlier, step]
        with _restored_on_error(hub):
            if self.max_keep_ckpts > 0:
                hub.update_info('keep_ckpt_ids', keep[-self.max_keep_ckpts:])
            hub.update_info('last_ckpt', path)
            try:
                runner.save_checkpoint(
                    self.out_dir, self.filename_tmpl.format(step), self.file_client_args, meta=meta,
                    save_optimizer=self.save_optimizer,
                    save_param_scheduler=self.save_param_scheduler,
                    by_epoch=self.by_epoch, backend_args=self.backend_args, **self.args)
                if is_main_process():
                    atomic_write(path, os.path.join(runner.work_dir, 'last_checkpoint'))
            except OSError as error:
                self._failure = f'a checkpoint could not be written to {self.out_dir}: {error}'
                runner.logger.error(f'{self._failure}. Training goes on; the last good one is '
                                    f'{self.last_ckpt or "none yet"}')
                raise _NotSaved from error
        self.last_ckpt, self._failure = path, None
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(keep, self.max_keep_ckpts)
            for old in keep[:-self.max_keep_ckpts]:
                self._remove(self.file_backend.join_path(self.out_dir,
                                                         self.filename_tmpl.format(old)))

    def _save_checkpoint(self, runner) -> None:
        with contextlib.suppress(_NotSaved):
            super()._save_checkpoint(runner)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        # mmengine removes the previous best before it writes the new one: hold the removal back
        backend = self.file_backend
        paths = {name: copy.copy(value) for name, value in vars(self).items()
                 if name.startswith('best_ckpt_path')}
        self.file_backend = holding = _HoldingBackend(backend)
        try:
            with _restored_on_error(runner.message_hub), contextlib.suppress(_NotSaved):
                super()._save_best_checkpoint(runner, metrics)
        except OSError as error:
            vars(self).update(paths)
            runner.logger.error(f'the best checkpoint could not be written to {self.out_dir}: '
                                f'{error}. The previous best stays')
            return
        finally:
            self.file_backend = backend
        now = {getattr(self, 'best_ckpt_path', None),
               *getattr(self, 'best_ckpt_path_dict', {}).values()}
        for path in set(holding.held) - now:  # the new one may have the name of the old
            self._remove(path)

    def _remove(self, path: str) -> None:
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)

    def after_train(self, runner) -> None:
        if self._failure:
            raise RunError(f'{self._failure}. The run is over and its last state is lost; free '
                           f'space and resume from {self.last_ckpt or "the start"}')
        super().after_train(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        # training may use another memory format; readers such as safetensors want the plain one
        for weights in filter(None, (checkpoint.get(key) for key in ('state_dict', 'ema_state_dict'))):
            weights.update({key: value.contiguous() for key, value in weights.items()
                            if isinstance(value, torch.Tensor)})

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        if 'state_dict' not in checkpoint or 'optimizer' not in checkpoint:
            raise UserError('the checkpoint to resume from holds weights only, without the state '
                            'of the optimizer; to start a new run from these weights use '
                            '--cfg-options load_from=PATH')
        meta, steps = checkpoint.get('meta'), checkpoint['optimizer']
        absent = [f'meta.{key}' for key in ('epoch', 'iter') if not isinstance(meta, dict) or key not in meta]
        absent += ['message_hub'] * (not isinstance(checkpoint.get('message_hub'), dict))
        absent += ['optimizer.param_groups'] * (not isinstance(steps, dict) or not steps)
        if absent:
            raise UserError('the checkpoint to resume from is not whole: it has no '
                            f'{", ".join(absent)}; take another one')
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if difference := compare(model.state_dict(), checkpoint['state_dict']):
            raise UserError('the checkpoint to resume from is of another model than the config: '
                            f'{difference}')


class _NotSaved(Exception):
    """A checkpoint was not written; the reason has been reported."""


@contextlib.contextmanager
def _restored_on_error(hub):
    """What the hub says of a checkpoint and its predecessors must not outlive a failed write."""
    def mentions():
        return {key: value for key, value in hub.runtime_info.items()
                if 'ckpt' in key or 'best' in key}

    before = copy.deepcopy(mentions())
    try:
        yield
    except BaseException:
        for key in mentions():
            del hub.runtime_info[key]
        hub.runtime_info.update(before)
        raise


class _HoldingBackend:
    """A file backend that only notes what it should remove."""

    def __init__(self, backend):
        self._backend, self.held = backend, []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def remove(self, path) -> None:
        self.held.append(path)


@HOOKS.register_module()
class ClassesHook(Hook):
    """Refuse a head that knows more or fewer classes than the training data: it would learn some labels
    as background, in silence."""

    def before_train(self, runner) -> None:
        classes = (getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}).get('classes')
        for name, module in runner.model.named_modules() if classes else ():
            known = getattr(module, 'num_classes', None)
            if re.search(r'(^|\.)bbox_head(\.\d+)?$', name) and known not in (None, len(classes)):
                raise UserError(f'{name} has num_classes={known}, but the training data has {len(classes)} '
                                f'classes ({", ".join(map(str, classes[:8]))}); make them equal')


class _Signals:
    """The stop signal received, if any.

    Handlers must stand before the data loader's workers start, which inherit them: Ctrl-C reaches
    the whole process group, and a worker that dies of it takes the last iteration with it.
    """

    received: int | None = None


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """In the block the first SIGTERM or SIGINT is noted for `StopHook`; the second acts as ever."""
    earlier = {}

    def restore():
        for number, handler in earlier.items():
            signal.signal(number, handler)
        earlier.clear()

    def caught(number, frame):
        _Signals.received = number
        restore()

    if threading.current_thread() is threading.main_thread():
        earlier.update({number: signal.signal(number, caught)
                        for number in (signal.SIGTERM, signal.SIGINT)})
    try:
        yield
    finally:
        restore()
        _Signals.received = None


@HOOKS.register_module()
class StopHook(Hook):
    """Inside `listening()`, SIGTERM or Ctrl-C ends training after this iteration, with status 0.

    A run counted in iterations is saved where it stands. One counted in epochs goes on from the
    last saved epoch, as its order of images is only reproducible by whole epochs.

    The processes of a data-parallel job stop together, whichever was signalled: one that left by
    itself would keep the others waiting for its gradients.
    """

    priority = 'LOWEST'  # after a checkpoint that is due at this very iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        received = torch.tensor(_Signals.received or 0)
        all_reduce(received, 'max')
        if not received:
            return
        saver = _saver(runner)
        if saver is not None and not saver.by_epoch:
            here = saver.filename_tmpl.format(runner.iter + 1)
            if saver.last_ckpt != saver.file_backend.join_path(saver.out_dir, here):
                saver._save_checkpoint(runner)
        self._stop(runner, runner.iter + 1, int(received))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        # several processes may have different numbers of images left; they meet after the next step
        if _Signals.received is not None and get_world_size() == 1:
            self._stop(runner, runner.iter, _Signals.received)

    def _stop(self, runner, iteration: int, received: int) -> None:
        saver = _saver(runner)
        runner.logger.info(f'Stopped by {signal.Signals(received).name} at iteration {iteration}. '
                           'The same command with --resume goes on from '
                           f'{saver and saver.last_ckpt or "the start"}')
        raise SystemExit(0)


def _saver(runner) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
