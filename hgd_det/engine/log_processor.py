"""Logs a person can read: totals on the usual line, stage distances on one line of their own."""
from __future__ import annotations

import re

from mmdet.registry import LOG_PROCESSORS
from mmengine.runner import LogProcessor

from hgd_det.distill.stages import NAME

_STAGE = re.compile(rf'(?P<term>\w+)_(?P<what>[du])_(?P<stage>{NAME})')


@LOG_PROCESSORS.register_module()
class DistillLogProcessor(LogProcessor):
    """MMEngine's log line, with the per-stage values of terms gathered behind it::

        Iter(train) [ 150/500]  lr: 2.0e-03  eta: 0:02:01  loss: 3.1  loss_hgd: 1.2  hgd_raw: 1.2 ...
            hgd  s96 0.31 u.62 | s48 0.40 u.61 | s24 0.55 u.58 | ...

    ``0.31`` is the stage's mean distance to the teacher, ``u`` its weight. The JSON log and
    TensorBoard get every value under its own name, as without this class.
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
