"""Logs a person can read: totals on the usual line, stage distances on one line of their own."""
from __future__ import annotations

import re
from collections.abc import Mapping

from mmdet.registry import LOG_PROCESSORS
from mmengine.runner import LogProcessor

from hgd_det.distill.stages import NAME

_STAGE = re.compile(rf'(?P<term>\w+)_(?P<what>[du])_(?P<stage>{NAME})')
_PRECISION = re.compile(r'(.+_)?m?AP(\d+)?(_\w+)?')


def is_precision(name: str) -> bool:
    """Whether a metric is an average precision, as `voc/mAP`, `voc/AP50/cat` and `coco/bbox_mAP_50` are.

    People are shown percent, in training, testing, reports and the docs; files for programs (`scalars.json`,
    `--json`, `results/*.csv`) hold the fraction.
    """
    return any(_PRECISION.fullmatch(part) for part in name.split('/')[:3])


@LOG_PROCESSORS.register_module()
class DistillLogProcessor(LogProcessor):
    """MMEngine's log line, with the per-stage values of terms gathered behind it::

        Iter(train) [ 150/500]  lr: 2.0e-03  eta: 0:02:01  loss: 3.1  loss_hgd: 1.2  hgd_raw: 1.2 ...
            hgd  s96 0.31 u.62 | s48 0.40 u.61 | s24 0.55 u.58 | ...

    ``0.31`` is the stage's mean distance to the teacher, ``u`` its weight. The JSON log and
    TensorBoard get every value under its own name.

    A term's ``raw`` and ``weight`` multiply to its part of the loss: ``raw`` is the mean over the iterations
    that the loss is the mean of, ``weight`` what turns one into the other. (The mean of a product is not the
    product of means; the last weight beside a mean of losses says little.)
    """

    def get_log_after_iter(self, runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        if mode != 'train':
            return tag, line
        stages: dict[str, dict[str, dict[str, float]]] = {}
        for key, value in tag.items():
            match = _STAGE.fullmatch(key.removeprefix(f'{mode}/'))
            if match:
                stages.setdefault(match['term'], {}).setdefault(match['stage'], {})[match['what']] = value
        if not stages:
            return tag, line
        line = re.sub(rf'\s*{_STAGE.pattern}: \S+', '', line)
        for term, found in stages.items():
            parts = [f"{stage} {v['d']:.3f}" + (f" u{v['u']:.2f}".replace('u0.', 'u.') if 'u' in v else '')
                     for stage, v in found.items() if 'd' in v]
            line += f'\n    {term}  ' + ' | '.join(parts)
        return tag, line

    def get_log_after_epoch(self, runner, batch_idx: int, mode: str, with_non_scalar: bool = False
                            ) -> tuple[dict, str]:
        tag, line = super().get_log_after_epoch(runner, batch_idx, mode, with_non_scalar)
        for name, value in tag.items():
            if isinstance(value, float) and value >= 0 and is_precision(name.removeprefix(f'{mode}/')):
                told = f'  {name}: {value:.{self.num_digits}f}'
                line = line.replace(told, f'  {name}: {100 * value:.2f}%', 1)
        return tag, line

    def _collect_scalars(self, custom_cfg: list[dict], runner, mode: str, reserve_prefix: bool = False
                         ) -> dict:
        tag = super()._collect_scalars(custom_cfg, runner, mode, reserve_prefix)
        if mode == 'train':
            prefix = 'train/' if reserve_prefix else ''
            _explain(tag, runner.message_hub.log_scalars, self.window_size, prefix)
        return tag


def _explain(tag: dict, history: Mapping, window: int, prefix: str) -> None:
    """Give a term's raw value and weight the meaning that its loss has in the same row."""
    terms = [key.removeprefix(prefix).removesuffix('_raw') for key in tag if key.endswith('_raw')]
    totals = dict.fromkeys(terms, 0.0)
    for key, value in tag.items():
        # of `kd` and `kd_late` the latter has `loss_kd_late`; what trains a term itself has no weight
        name = key.removeprefix(prefix)
        own = [term for term in terms if name == f'loss_{term}' or name.startswith(f'loss_{term}_')]
        if own and not key.endswith('_aside'):
            totals[max(own, key=len)] += value
    for term, total in totals.items():
        raw = float(history[f'train/{term}_raw'].mean(window))
        tag[f'{prefix}{term}_raw'] = raw
        if raw:
            tag[f'{prefix}{term}_weight'] = total / raw
