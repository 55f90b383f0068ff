"""What is only logged stays on its device until a line of the log is due.

mmengine asks for every loss and for the norm of the gradients in every iteration: on a GPU each is a wait
until all that was launched has run. Here they are kept, and fetched together; the log has the same numbers.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from mmengine.device import get_device
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from torch import Tensor, nn

SWAPPED = {'OptimWrapper': 'DeferredOptimWrapper', 'AmpOptimWrapper': 'DeferredAmpOptimWrapper'}


class _KeepsNorm:
    """An optimizer's wrapper that keeps the norm of the gradients instead of asking for it."""
    norm: Tensor | None = None

    def _clip_grad(self) -> None:
        learned = [p for group in self.optimizer.param_groups for p in group['params']
                   if p.requires_grad and p.grad is not None]
        if learned:
            self.norm = self.clip_func(learned, **self.clip_grad_kwargs)    # None where values are clipped

    def take_norm(self) -> dict[str, Tensor]:
        """What the last step clipped, once."""
        norm, self.norm = self.norm, None
        return {} if norm is None else {self.grad_name: norm.detach()}


@OPTIM_WRAPPERS.register_module()
class DeferredOptimWrapper(_KeepsNorm, OptimWrapper):
    """mmengine's `OptimWrapper` without a wait."""


@OPTIM_WRAPPERS.register_module()
class DeferredAmpOptimWrapper(_KeepsNorm, AmpOptimWrapper):
    """mmengine's `AmpOptimWrapper`; its scaler asks once a step whether a gradient overflowed."""


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(DeferredOptimWrapper):
    """Mixed precision in bfloat16, on a GPU or a CPU. It has float32's range: no scale, nothing to ask."""

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast(get_device(), torch.bfloat16):
            yield


def deferred(optim_wrapper: dict) -> dict:
    """The config of an optimizer's wrapper that does not wait, if it is one of mmengine's."""
    kind = optim_wrapper.get('type', 'OptimWrapper')
    return {**optim_wrapper, 'type': SWAPPED.get(kind, kind)}


@HOOKS.register_module()
class DeferredInfoHook(RuntimeInfoHook):
    """mmengine's `RuntimeInfoHook`; what an iteration logs is fetched when the logger will want it, at the
    end of an epoch, and before a checkpoint is written."""

    def __init__(self):
        self._pending: list[tuple[list[str], Tensor]] = []
        self._interval = 0

    def before_train(self, runner) -> None:
        super().before_train(runner)
        self._interval = min((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)),
                             default=10)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        found = {key: value for key, value in (outputs or {}).items()
                 if isinstance(value, Tensor) and value.numel() == 1}
        super().after_train_iter(runner, batch_idx, data_batch, {
            key: value for key, value in (outputs or {}).items() if key not in found})
        take = getattr(runner.optim_wrapper, 'take_norm', dict)
        found = {**take(), **found}
        if found:
            self._pending.append((list(found), torch.stack(
                [value.detach().float().reshape(()) for value in found.values()])))
        if self.every_n_inner_iters(batch_idx, self._interval) or \
                self.end_of_epoch(runner.train_dataloader, batch_idx):
            self.fetch(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self.fetch(runner)

    def after_train(self, runner) -> None:
        self.fetch(runner)

    def fetch(self, runner) -> None:
        """Give the message hub what is pending, in its order."""
        pending, self._pending = self._pending, []
        for names, values in pending:
            for name, value in zip(names, values.tolist(), strict=True):
                runner.message_hub.update_scalar(f'train/{name}', value)
