"""Nothing wrong trains in silence: losses, terms and teacher maps are watched while a run goes on."""
from __future__ import annotations

import math
from collections import deque
from statistics import fmean

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from torch import Tensor

from hgd_det.distill.distiller import Distiller
from hgd_det.distill.functional import DEAD
from hgd_det.errors import RunError, UserError

ANSWERS = ('stop', 'warn', 'ignore')
GRACE = 50        # iterations of a term before its size is judged by what it was
EXPLODED = 100.0  # times its own mean, and the detection loss as well


@HOOKS.register_module()
class HealthHook(Hook):
    """Name what goes wrong, with term, stage and iteration, and stop or warn.

    Values stay on their device and are fetched together every ``interval`` iterations, and before a
    checkpoint is written: a run that went wrong never replaces its good checkpoints.

    Args:
        nonfinite: A loss, or a weight about to be saved, is NaN or infinite.
        exploding: A term is a hundred times what it was, and larger than the detection loss.
        silent: A term that counts has been exactly 0 for ``patience`` iterations.
        dead: A map that a term reads of the teacher is 0, or one constant, on the first batch (if it is
            not finite, that is ``nonfinite``).
        patience: Iterations in which a term may be 0, as it is in a batch without objects.
        interval: Iterations between two looks.
    """
    priority = 'NORMAL'

    def __init__(self, nonfinite: str = 'stop', exploding: str = 'warn', silent: str = 'warn',
                 dead: str = 'warn', patience: int = 100, interval: int = 10):
        self.answers = dict(nonfinite=nonfinite, exploding=exploding, silent=silent, dead=dead)
        for name, answer in self.answers.items():
            if answer not in ANSWERS:
                raise UserError(f'HealthHook: {name}={answer!r}; choose one of {", ".join(ANSWERS)}')
        if interval < 1 or patience < 1:
            raise UserError(f'HealthHook: patience={patience}, interval={interval}; both count iterations')
        self.patience, self.interval = patience, interval
        self._pending: list[tuple[int, list[str], Tensor]] = []
        self._history: dict[str, deque] = {}
        self._zero: dict[str, int] = {}
        self._said: set[str] = set()
        self._looked = False

    # -- when ----------------------------------------------------------------------------------
    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if self._looked or not isinstance(model, Distiller):
            self._looked = True
            return
        self._looked = True
        with torch.random.fork_rng(devices=[]), torch.no_grad():  # a preprocessor may draw
            batch = model.data_preprocessor(data_batch, True)
            for name, tap, what in sick_maps(model, batch['inputs'], batch['data_samples']):
                kind = 'nonfinite' if 'finite' in what else 'dead'
                self._say(runner, kind, f'{kind} {name} {tap}',
                          f'term {name!r}: the teacher map {tap} is {what} in the first batch. The teacher '
                          'may be untrained, damaged, or see images normalised in another way')

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        values = {k: v for k, v in (outputs or {}).items() if isinstance(v, Tensor) and v.numel() == 1}
        if values:
            self._pending.append((runner.iter + 1, list(values), torch.stack(
                [v.detach().float().reshape(()) for v in values.values()])))
        if len(self._pending) >= self.interval:
            self._look(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        self._look(runner)
        bad = [key for key, value in checkpoint['state_dict'].items()
               if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all()]
        if bad:
            more = f' and {len(bad) - 3} more' if len(bad) > 3 else ''
            self._say(runner, 'nonfinite', 'weights',
                      f'weights are NaN or infinite by iteration {runner.iter}: {", ".join(bad[:3])}{more}. '
                      'The checkpoint was not written; the one before it is sound. Lower the learning rate '
                      'or clip the gradients, then go on from it with --resume')

    def after_train(self, runner) -> None:
        self._look(runner)

    # -- what ----------------------------------------------------------------------------------
    def _look(self, runner) -> None:
        pending, self._pending = self._pending, []
        for iteration, names, values in pending:
            step = dict(zip(names, values.tolist(), strict=True))
            self._finite(runner, iteration, step)
            for term in [name.removesuffix('_raw') for name in step if name.endswith('_raw')]:
                self._judge(runner, iteration, term, step)

    def _finite(self, runner, iteration: int, step: dict[str, float]) -> None:
        bad = [name for name, value in step.items() if 'loss' in name and not math.isfinite(value)]
        if not bad:
            return
        parts = [name for name in bad if name != 'loss'] or bad
        finite = {k: round(v, 4) for k, v in step.items() if 'loss' in k and k not in bad}
        self._say(runner, 'nonfinite', 'loss',
                  f'at iteration {iteration} {", ".join(f"{name} is {step[name]}" for name in parts)}'
                  + (f' (finite: {finite})' if finite else '') +
                  '. The last checkpoint is of before; lower the learning rate, clip the gradients, or '
                  'give the term named here less weight')

    def _judge(self, runner, iteration: int, term: str, step: dict[str, float]) -> None:
        raw = step[f'{term}_raw']
        self._zero[term] = self._zero.get(term, 0) + 1 if raw == 0 else 0
        if self._zero[term] == self.patience:
            self._say(runner, 'silent', f'silent {term}',
                      f'term {term!r} has been exactly 0 for {self.patience} iterations, up to {iteration}: '
                      'it teaches nothing. Look at its pairs (hgd-det inspect) and at the boxes of the data')
        own = sum(abs(v) for k, v in step.items() if k == f'loss_{term}' or k.startswith(f'loss_{term}_'))
        rest = sum(abs(v) for k, v in step.items() if k.startswith('loss_')) - own
        earlier = self._history.setdefault(term, deque(maxlen=GRACE))
        usual = fmean(earlier) if len(earlier) == GRACE else 0.0
        if usual > 0 and own > EXPLODED * usual and own > rest:
            self._say(runner, 'exploding', f'exploding {term}',
                      f'term {term!r} was {own:.4g} at iteration {iteration}, {own / usual:.0f} times its '
                      f'mean of the {GRACE} iterations before, beside {rest:.4g} of all other losses')
        if math.isfinite(own):
            earlier.append(own)

    def _say(self, runner, kind: str, key: str, text: str) -> None:
        if self.answers[kind] == 'stop':
            raise RunError(text)
        if self.answers[kind] == 'warn' and key not in self._said and is_main_process():
            self._said.add(key)
            runner.logger.warning(text)


@torch.no_grad()
def sick_maps(distiller: Distiller, images: Tensor, samples: list) -> list[tuple[str, str, str]]:
    """``(term, tap, what)`` of the teachers' maps that cannot teach, seen on a batch."""
    distiller.teachers.load()
    sick = []
    for teacher, pupils in distiller.teachers.classrooms(distiller.distill):
        taps = list(dict.fromkeys(tap for term in pupils.values() for tap in term.teacher_taps))
        if taps:
            maps = teacher.observe(images, samples, taps=taps).maps
            found = {tap: what for tap in taps if (what := _sick(maps[tap]))}
            sick += [(name, tap, found[tap]) for name, term in pupils.items()
                     for tap in term.teacher_taps if tap in found]
    return sick


def _sick(x: Tensor) -> str | None:
    if not x.isfinite().all():
        return 'not finite'
    if x.float().abs().amax() < DEAD:
        return '0 everywhere'
    vectors = x.transpose(0, 1).flatten(1)    # (C, B H W)
    if vectors.shape[1] > 1 and (vectors.amax(1) - vectors.amin(1)).max() < DEAD:
        return 'the same in every cell of every image'
    return None
