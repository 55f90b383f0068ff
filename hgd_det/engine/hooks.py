"""Hooks every run has: checkpoints that survive a crash and are the run's own, and classes that fit."""

from __future__ import annotations

import contextlib
import copy
import os
import re
from collections import deque
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from hgd_det.checkpoint import atomic_write, load
from hgd_det.engine.log_processor import is_precision
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
    - Which are kept, which is the last and which the best is read off the run's own folder. A checkpoint
      names files too, but those are of where it was written: they may be another run's, or anybody's.
    - Resuming is strict: a checkpoint of another model is refused (mmengine warns and trains what
      did not fit anew).
    """

    def __init__(self, *args, backend_args: dict | None = None, **kwargs):
        super().__init__(*args, backend_args=backend_args or {'backend': 'atomic'}, **kwargs)
        self._failure: str | None = None

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if runner._resume:
            self._take_stock(runner)
        if is_main_process():
            # of a run that was killed while it wrote
            for folder in {self.out_dir, runner.work_dir}:
                for leftover in Path(folder).glob('.*.tmp'):
                    leftover.unlink(missing_ok=True)

    def _take_stock(self, runner) -> None:
        """Of a resumed run: what is in its folder, up to where it stands; what is too much goes."""
        here, hub = runner.epoch if self.by_epoch else runner.iter, runner.message_hub
        steps = self._steps('', here)
        self.last_ckpt = str(steps[max(steps)]) if steps else None
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = deque(sorted(steps), self.max_keep_ckpts)
            for step in sorted(steps)[:-self.max_keep_ckpts]:
                self._remove(steps[step])
        for key in (self.key_indicators if self.save_best else ()):
            suffix = '' if len(self.key_indicators) == 1 else f'_{key}'
            hub.runtime_info.pop(f'best_score{suffix}', None)    # of a file that may not have come along
            best = self._best_there('.+' if key == 'auto' else re.escape(key.replace('/', '_')), here,
                                    f'best_score{suffix}')
            if best is not None:
                hub.update_info(f'best_score{suffix}', best[1])
            if suffix:
                self.best_ckpt_path_dict[key] = best and str(best[0])
            else:
                self.best_ckpt_path = best and str(best[0])

    def _steps(self, prefix: str, here: int) -> dict[int, Path]:
        """The files in the run's folder of a name that it gives, by the number in it, up to `here`."""
        before, _, after = self.filename_tmpl.partition('{}')
        name = re.compile(f'{prefix}{re.escape(before)}(\\d+){re.escape(after)}')
        found = ((name.fullmatch(path.name), path) for path in Path(self.out_dir).glob('*'))
        return {int(match[1]): path for match, path in found if match and int(match[1]) <= here}

    def _best_there(self, key: str, here: int, score: str) -> tuple[Path, float] | None:
        """The last best checkpoint that is intact, with its score; a kill may have left its predecessor."""
        steps, found = self._steps(f'best_{key}_', here), None
        for step in sorted(steps, reverse=True):
            if found:
                self._remove(steps[step])
                continue
            with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
                value = float(load(steps[step])['message_hub']['runtime_info'][score])
                found = (steps[step], value)
        return found

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        hub, earlier = runner.message_hub, list(getattr(self, 'keep_ckpt_ids', ()))
        path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
        keep = earlier if step in earlier[-1:] else [*earlier, step]
        with _restored_on_error(hub):
            if self.max_keep_ckpts > 0:
                hub.update_info('keep_ckpt_ids', keep[-self.max_keep_ckpts:])
            hub.update_info('last_ckpt', os.path.basename(path))
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

    def save_now(self, runner, step: int, meta: dict) -> None:
        with contextlib.suppress(_NotSaved):
            self._save_checkpoint_with_step(runner, step, meta)

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
                super()._save_best_checkpoint(_InItsWords(runner), metrics)
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

    def _remove(self, path: str | Path) -> None:
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
        hub = checkpoint['message_hub']
        names = {key: os.path.basename(value) for key, value in hub['runtime_info'].items()
                 if 'ckpt' in key and isinstance(value, str)}
        hub['runtime_info'] = {**hub['runtime_info'], **names}

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
        for part in ('runtime_info', 'resumed_keys'):    # see `_take_stock`
            told = checkpoint['message_hub'].get(part)
            for key in [key for key in told or () if 'ckpt' in str(key)]:
                del told[key]


class _InItsWords:
    """A runner whose log says of a best checkpoint what the rest of the training's output does: percent."""

    def __init__(self, runner):
        self._runner, self.logger = runner, self
        self.warning, self.error = runner.logger.warning, runner.logger.error

    def __getattr__(self, name: str):
        return getattr(self._runner, name)

    def info(self, text: str) -> None:
        found = re.fullmatch(r'(The best checkpoint with) (\d\.\d+) (\S+)( at .+)', text)
        if found and is_precision(found[3]):
            text = f'{found[1]} {found[3]} {100 * float(found[2]):.2f}%{found[4]}'
        self._runner.logger.info(text)


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
