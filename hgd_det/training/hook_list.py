"""The hooks of every run, in one list."""
from __future__ import annotations

from collections.abc import Mapping

from mmengine.config import Config

from hgd_det.errors import UserError, near

# Beside the six of mmengine's runner (its `default_hooks`); priorities are their own.
EVERY_RUN = {
    'DistillHook': {},                      # a distillation's checks; idle without one
    'NumClassCheckHook': {},                # mmdet's: head and data know as many classes,
    'ClassesHook': {},                      # and the same ones
    'CheckInvalidLossHook': dict(interval=50, priority='VERY_LOW'),     # mmdet's: stops at a loss of NaN
    'HealthHook': {},                       # what sickens before that: teachers, terms, gradients
    'DataIdentityHook': {},                 # which data a checkpoint has seen
    'EqualStepsHook': {},                   # data-parallel processes take as many steps
    'ResumeHook': {},                       # what comes from the checkpoint, what from the config
    'StopHook': {},                         # signals
    'ProgressHook': {},                     # the line on the screen
}
# of `default_hooks` and the log, where the config has mmengine's own
OURS = {'CheckpointHook': 'AtomicCheckpointHook', 'RuntimeInfoHook': 'DeferredInfoHook',
        'LogProcessor': 'DistillLogProcessor'}


def list_hooks(cfg: Config) -> None:
    """Write into a config which hooks its run has: its own, and those of every run.

    ``hooks=dict(NAME=dict(...))`` gives one of these other arguments, ``NAME=None`` leaves it out;
    one that ``custom_hooks`` names already is the config's own.
    """
    defaults = dict(cfg.get('default_hooks') or {})
    saver = defaults.get('checkpoint', dict(interval=1))  # None switches it off
    if saver is not None:
        defaults['checkpoint'] = _ours(saver, 'CheckpointHook')
    defaults['runtime_info'] = _ours(defaults.get('runtime_info') or {}, 'RuntimeInfoHook')
    cfg.default_hooks = defaults
    cfg.log_processor = _ours(cfg.get('log_processor') or {}, 'LogProcessor')

    own, changes = list(cfg.get('custom_hooks') or []), cfg.get('hooks') or {}
    for name, change in changes.items():
        if name not in EVERY_RUN:
            meant = near(name, EVERY_RUN, 1, 0.4)
            raise UserError(f'hooks.{name}: no such hook of every run'
                            + (f'; did you mean {meant[0]}?' if meant else '')
                            + f' There are {", ".join(EVERY_RUN)}; others go into custom_hooks')
        if change is not None and not isinstance(change, Mapping):
            raise UserError(f'hooks.{name}={change!r}; give dict(...) of its arguments, or None')
    named = {hook.get('type') for hook in own if isinstance(hook, Mapping)}
    cfg.custom_hooks = own + [
        dict(type=name, **{**arguments, **changes.get(name, {})}) for name, arguments in EVERY_RUN.items()
        if name not in named and changes.get(name, {}) is not None]


def _ours(given: Mapping, kind: str) -> dict:
    return {**given, 'type': OURS[kind]} if given.get('type', kind) == kind else dict(given)
