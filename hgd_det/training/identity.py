"""Which data a run has seen: the lists of its images, by their content."""
from __future__ import annotations

import os

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from hgd_det.checkpoint import sha256


def data_lists(dataset) -> dict[str, str]:
    """``{path: sha256}`` of the lists or annotation files of a dataset and of those inside it."""
    found = {}
    for inner in (*getattr(dataset, 'datasets', ()), *filter(None, [getattr(dataset, 'dataset', None)])):
        found |= data_lists(inner)
    listing = getattr(dataset, 'ann_file', None)
    if isinstance(listing, (str, os.PathLike)) and os.path.isfile(listing):
        found[str(listing)] = sha256(listing)
    return found


@HOOKS.register_module()
class DataIdentityHook(Hook):
    """Note in every checkpoint what was trained on; say so where a resumed run has other data.

    It is no error: a run may go on after an annotation was mended. But it is not the run it was.
    """
    priority = 'NORMAL'

    def __init__(self):
        self._lists: dict[str, str] | None = None

    def _now(self, runner) -> dict[str, str]:
        if self._lists is None:
            self._lists = data_lists(runner.train_dataloader.dataset)
        return self._lists

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint['meta']['data'] = self._now(runner)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        before = (checkpoint.get('meta') or {}).get('data')
        if not runner._resume or not before:
            return
        now = self._now(runner)
        if sorted(before.values()) == sorted(now.values()):
            return
        changed = [path for path in now if before.get(path) != now[path]] or list(now)
        runner.logger.warning(
            f'the training data is not what this run began with: {", ".join(changed)} '
            f'{"has" if len(changed) == 1 else "have"} other content. Training goes on with it')
