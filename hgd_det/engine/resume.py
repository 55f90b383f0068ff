"""Going on with a run: from which checkpoint, and what of the config counts from there on.

A checkpoint gives the state (weights, momenta, where the run stands); the config gives the plan. As long as
both agree, the run goes on bit for bit. Where the plan was changed (the number of iterations, the learning
rate, the schedule), the rest is what it would be in a run that was planned so from the start.
"""
from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS

from hgd_det.checkpoint import load, newest
from hgd_det.distill.distiller import Distiller
from hgd_det.engine.folder import checkpoint_folder, saved
from hgd_det.errors import UserError

# what a run's result depends on ...
SETTINGS = ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'custom_hooks',
            'randomness', 'load_from', 'auto_scale_lr', 'sync_bn')
# ... but for these: replayed draws do not depend on workers, nor weights on validation
FREE = {'train_dataloader.num_workers', 'train_dataloader.persistent_workers', 'train_dataloader.pin_memory',
        'train_dataloader.prefetch_factor', 'train_dataloader.timeout', 'train_cfg.val_interval',
        'train_cfg.val_begin'}
PLAN = ('optim_wrapper.', 'param_scheduler', 'train_cfg.', 'auto_scale_lr.')
# the seed is kept; data and teacher are known by their content; what this package adds is not the user's
WATCHED_ELSEWHERE = re.compile(r'randomness|load_from|model\.teacher\.(checkpoint|config)|'
                               r'train_dataloader\.dataset\..*(data_root|ann_file|data_prefix)')
OVER = 1e-3     # of its highest value: a learning rate that stays at less teaches nothing more
LENGTHS = ('end', 'total_steps', 'T_max', 'milestones')


def settings(cfg: Mapping) -> dict[str, str]:
    """What decides the result of a run, as one flat table."""
    table = {key: repr(value) for name in SETTINGS for key, value in _leaves(cfg.get(name), name)
             if key not in FREE}
    if 'model.teacher.sha256' in table:  # this says who it is; its path changes when the folder is moved
        table = {key: value for key, value in table.items()
                 if not key.startswith(('model.teacher.checkpoint', 'model.teacher.model'))}
    return table


def _leaves(node, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    if not isinstance(node, Mapping):
        yield name, node
        return
    for key, value in node.items():
        yield from _leaves(value, f'{name}.{key}')


# ------------------------------------------------------------------------------------ from which one
def go_on(cfg: Config, what: str = 'auto') -> Mapping | None:
    """Let a run start from this checkpoint, or the newest intact one of its folder, if there is one; the
    content of that.

    Its seed is the checkpoint's, as only then the images come in the order in which they would have come.
    """
    folder = checkpoint_folder(cfg)
    if what == 'auto':
        found, content, skipped = newest(folder)
        for reason in skipped:
            print(f'skipped: {reason}')
        if found is None and skipped:
            raise UserError(f'none of the checkpoints in {folder} can be resumed from '
                            '(reasons above). Move them away to start anew, or give another one '
                            'with --resume PATH')
        if found is None:
            print(f'nothing to resume from in {folder}; a new run starts')
            return None
        print(f'resuming from {found}')
        what = str(found)
    else:
        content = {} if '://' in what else load(what)
        if 'optimizer' in content:    # else it is refused for that
            _refuse_to_mix(folder, Path(what).expanduser())
    _keep_the_seed(cfg, content)
    cfg.resume, cfg.load_from = True, what
    return content


def _refuse_to_mix(folder: Path, chosen: Path) -> None:
    """A run that goes on from an earlier checkpoint, or another run's, must not lie among later ones."""
    there = saved(folder)
    own = [number for number, path in enumerate(there) if path.samefile(chosen)]
    if there and own != [len(there) - 1]:
        raise UserError(
            f'--resume {chosen}: {folder} holds {there[-1].name}'
            + (', which is later' if own else ' of another training')
            + '; two runs in one folder would mix their checkpoints. Give another --work-dir to go on in'
            + (', or --resume alone to go on from the newest' if own else ''))


def _keep_the_seed(cfg: Config, content: Mapping) -> None:
    meta = content.get('meta')
    seed, given = (meta.get('seed') if isinstance(meta, Mapping) else None), (cfg.get('randomness') or {})
    if isinstance(seed, int) and seed >= 0 and seed != given.get('seed'):
        print(f'randomness.seed={given.get("seed")} is not taken up: the run began with {seed} and keeps it')
        cfg.randomness = {**given, 'seed': seed}


def finished(cfg: Config, content: Mapping) -> str | None:
    """Whether there is nothing left to train behind a checkpoint: `iteration 600 of 600`."""
    meta, loop = content.get('meta'), cfg.train_cfg
    word, key, total = ('iteration', 'iter', loop.get('max_iters')) if loop.get('max_iters') else (
        'epoch', 'epoch', loop.get('max_epochs'))
    done = meta.get(key) if isinstance(meta, Mapping) and 'optimizer' in content else None
    if not isinstance(done, int) or not total or done < total:
        return None
    option = f'train_cfg.max_{"iters" if key == "iter" else "epochs"}={2 * total}'
    return (f'the run is finished, {word} {done} of {total}, and nothing is left to train. To train on, say '
            f'up to where: --cfg-options {option}')


# ------------------------------------------------------------------------------- what counts from there
@HOOKS.register_module()
class ResumeHook(Hook):
    """Notes a run's settings in its checkpoints; a resumed run takes up those of the plan that changed, and
    says what is not as it was."""
    priority = 'LOWEST'    # the checkpoint is known to be whole, and put together again

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint['meta']['settings'] = settings(runner.cfg)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        _same_optimizer(runner, checkpoint)
        before, now = _told(runner, checkpoint), settings(runner.cfg)
        changed = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)
                   and not WATCHED_ELSEWHERE.match(key)] if before else []
        total = (checkpoint['message_hub'].get('runtime_info') or {}).get('max_iters')
        stretched = isinstance(total, int) and total != runner.max_iters
        if not changed and not stretched:
            return
        said = [f'{key} was {before.get(key, "not there")}, now {now.get(key, "it is not there")}'
                for key in changed] or [f'it was planned for {total} iterations, now for {runner.max_iters}']
        text = f'this run goes on with other settings than it began with: {"; ".join(said[:8])}' + (
            f'; and {len(said) - 8} more' if len(said) > 8 else '')
        if stretched or any(key.startswith(PLAN) for key in changed):
            text += f'. {_replan(runner, checkpoint)}'
        if any(not key.startswith(PLAN) for key in changed):
            text += '. It is not the run it was any more'
        runner.logger.warning(text)


def _told(runner, checkpoint: Mapping) -> dict:
    """The settings in a checkpoint; none in one of before they were noted, or of another tool."""
    told = checkpoint['meta'].get('settings')
    return told if isinstance(told, dict) else {}


def _same_optimizer(runner, checkpoint: Mapping) -> None:
    wrapper, theirs = runner.optim_wrapper, checkpoint['optimizer'].get('param_groups')
    if not isinstance(wrapper, OptimWrapper):
        return
    kind, mine = type(wrapper.optimizer).__name__, wrapper.optimizer.param_groups
    if not isinstance(theirs, list) or not all(isinstance(g, dict) and isinstance(g.get('params'), list)
                                               for g in theirs):
        raise UserError('the checkpoint to resume from is not whole: its optimizer has no groups of '
                        'parameters; take another one')
    sizes = [[len(group['params']) for group in groups] for groups in (theirs, mine)]
    if sizes[0] != sizes[1]:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        why = ('. It is of a distillation, whose terms train too, and the config is the student alone: '
               'resume with the config of the distillation, or start from its weights with --cfg-options '
               'load_from=PATH'
               if checkpoint.get('distill') and not isinstance(model, Distiller) else
               '. Resume with the config it was trained with')
        raise UserError(f'the checkpoint to resume from trained {sum(sizes[0])} parameters in {len(theirs)} '
                        f'groups, the config trains {sum(sizes[1])} in {len(mine)}{why}')
    lacking = sorted({key for key in wrapper.optimizer.defaults for group in theirs if key not in group})
    if lacking:
        raise UserError(f'the checkpoint to resume from is of another optimizer than {kind}, the one of the '
                        f'config: it knows no {", ".join(lacking)}. Resume with the one it was trained with, '
                        'or start from its weights with --cfg-options load_from=PATH')


def _replan(runner, checkpoint: dict) -> str:
    """Put the plan of the config into a checkpoint that is being resumed; in words, what comes of it."""
    wrapper, schedulers = runner.optim_wrapper, runner.param_schedulers
    if not isinstance(wrapper, OptimWrapper) or not isinstance(schedulers, (list, type(None))) \
            or any(getattr(each, 'need_val_args', False) for each in schedulers or ()):
        return 'Its learning rates stay those of the checkpoint: they depend on more than the iteration'
    iteration, epoch = checkpoint['meta']['iter'], checkpoint['meta']['epoch']
    length = iteration // epoch if epoch else 0    # of an epoch
    rates = [_rate(wrapper)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)    # they expect the optimizer's steps between theirs
        try:
            for done in range(1, iteration + 1):
                rates.append(_step(wrapper, schedulers or (), done, length))
            _put(wrapper, schedulers or (), checkpoint)
            rest = [_step(wrapper, schedulers or (), done, length)
                    for done in range(iteration + 1, runner.max_iters)]
        except ValueError as error:
            raise UserError(f'the schedule of the learning rate is shorter than the run: {error}. '
                            f'{_how(runner)}') from error
    rest = [rates[-1], *rest]
    if len(rest) > 1 and max(rest) == min(rest) < OVER * max(rates):
        raise UserError(f'the schedule of the learning rate is over: from iteration {iteration} to '
                        f'{runner.max_iters} it would stay at {max(rest):.1e}, after {max(rates):.1e}. '
                        f'{_how(runner)}')
    return (f'The learning rate goes on as in a run so planned from the start: {rates[-1]:.3e} now, '
            f'{rest[-1]:.3e} at the end')


def _rate(wrapper: OptimWrapper) -> float:
    return max(float(group['lr']) for group in wrapper.optimizer.param_groups)


def _step(wrapper: OptimWrapper, schedulers, done: int, length: int) -> float:
    """As mmengine's ParamSchedulerHook after iteration `done`, and after the epoch that may end there."""
    for scheduler in schedulers:
        if not scheduler.by_epoch:
            scheduler.step()
    if length and done % length == 0:
        for scheduler in schedulers:
            if scheduler.by_epoch:
                scheduler.step()
    return _rate(wrapper)


def _put(wrapper: OptimWrapper, schedulers, checkpoint: dict) -> None:
    saved = checkpoint['optimizer']
    pairs = list(zip(wrapper.optimizer.param_groups, saved['param_groups'], strict=True))
    if saved.get('base_param_settings') and getattr(wrapper, 'base_param_settings', None):
        pairs.append((wrapper.base_param_settings, saved['base_param_settings']))
    for mine, theirs in pairs:
        theirs.update({key: copy.deepcopy(value) for key, value in mine.items() if key != 'params'})
    checkpoint['param_schedulers'] = [copy.deepcopy(each.state_dict()) for each in schedulers]


def _how(runner) -> str:
    """How to say how the schedule goes on."""
    found = runner.cfg.get('param_scheduler') or []
    found = [found] if isinstance(found, Mapping) else found
    told = [f'param_scheduler.{number}.{key}={each[key]!r}' for number, each in enumerate(found)
            for key in LENGTHS if key in each]
    return (f'Say with --cfg-options how it goes on; the config has {", ".join(told)}' if told else
            'Give the config a param_scheduler for the whole run')
