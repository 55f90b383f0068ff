"""How far a run is, at the bottom of a terminal."""

from __future__ import annotations

import sys
import time

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class ProgressHook(Hook):
    """One line on a terminal: what runs, how far, how long it will take. Silent elsewhere."""

    interval = 0.2  # seconds between two drawings

    def __init__(self, stream=None):
        self.stream = stream or sys.stderr
        self.shown = is_main_process() and self.stream.isatty()
        self._started, self._first, self._drawn = 0.0, 0, 0.0

    def before_run(self, runner) -> None:
        if self.shown:
            # log lines stay whole: the bar makes way for each
            for handler in runner.logger.handlers:
                handler.addFilter(self._wipe)

    def _wipe(self, record=None) -> bool:
        if self.shown:
            self.stream.write('\r\x1b[K')
            self.stream.flush()
        return True

    def _draw(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.shown or now - self._drawn < self.interval:
            return
        self._drawn = now
        rate = (now - self._started) / max(done - self._first, 1)
        known = done > self._first
        left = time.strftime('%H:%M:%S', time.gmtime(rate * (total - done))) if known else '?'
        filled = 24 * done // max(total, 1)
        self.stream.write(f'\r\x1b[K{what} [{"#" * filled}{"." * (24 - filled)}] {done}/{total} '
                          f'{rate:.2f} s/it, {left} left')
        self.stream.flush()

    def _start(self, first: int = 0) -> None:
        self._started, self._first, self._drawn = time.monotonic(), first, 0.0

    def before_train(self, runner) -> None:
        self._start(runner.iter)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._draw('train', runner.iter, runner.max_iters)

    def before_val_epoch(self, runner) -> None:
        self._start()

    def before_test_epoch(self, runner) -> None:
        self._start()

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._draw('val', batch_idx, len(runner.val_dataloader))

    def before_test_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._draw('test', batch_idx, len(runner.test_dataloader))

    def after_val_epoch(self, runner, metrics=None) -> None:
        self._wipe()

    def after_test_epoch(self, runner, metrics=None) -> None:
        self._wipe()

    def after_train(self, runner) -> None:
        self._wipe()
