"""What a run adds to a distiller: checks before the first step, and the teacher's identity."""
from __future__ import annotations

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from hgd_det.distill.correspondence import log_correspondence
from hgd_det.distill.distiller import Distiller
from hgd_det.errors import UserError

PREFIX = 'distill.'


@HOOKS.register_module()
class DistillHook(Hook):
    """Refuse what cannot work before the first step, log the correspondence, remember the teacher.

    A checkpoint's ``state_dict`` is the plain student's, key for key; what only training needs lies
    beside it under ``distill``, and comes back on resume. A checkpoint carries the teacher's sha256;
    resuming under another teacher is refused, because half a run under each says nothing about either.

    Args:
        same_teacher: Set False to resume under another teacher on purpose.
    """
    priority = 'VERY_HIGH'  # on resume an EMAHook must find the checkpoint put together again

    def __init__(self, same_teacher: bool = True):
        self.same_teacher = same_teacher

    def before_run(self, runner) -> None:
        runner.register_hook(_Apart())

    def before_train(self, runner) -> None:
        distiller = _distiller(runner)
        if distiller is None:
            return
        metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}
        distiller.check(total=runner.max_iters, classes=metainfo.get('classes'))
        log_correspondence(distiller)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        distiller = _distiller(runner)
        if distiller is not None and distiller.teacher is not None:
            checkpoint['meta']['teacher'] = dict(config=distiller.teacher.name,
                                                 checkpoint=str(distiller.teacher.checkpoint),
                                                 sha256=distiller.teacher.digest)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        distiller = _distiller(runner)
        if distiller is None or not runner._resume:
            return
        checkpoint['state_dict'].update(checkpoint.get('distill') or {})
        before = (checkpoint.get('meta') or {}).get('teacher')
        if distiller.teacher is None or not (before and self.same_teacher):
            return
        if before['sha256'] == distiller.teacher.digest:
            return
        then, now = ((digest or 'none')[:12] for digest in (before['sha256'], distiller.teacher.digest))
        raise UserError(
            f"this run began under the teacher {before['checkpoint']} (sha256 {then}), but now it is "
            f'{distiller.teacher.checkpoint} ({now}); resume with the same one, or allow another with '
            "--cfg-options custom_hooks.2.same_teacher=False (the config's DistillHook)")


class _Apart(Hook):
    """Lays what only training needs beside a checkpoint's weights, once an EMAHook has averaged both."""
    priority = 'LOWEST'

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if _distiller(runner) is not None:
            weights = checkpoint['state_dict']
            beside = {key: weights.pop(key) for key in list(weights) if key.startswith(PREFIX)}
            checkpoint.setdefault('distill', {}).update(beside)


def _distiller(runner) -> Distiller | None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model if isinstance(model, Distiller) else None
