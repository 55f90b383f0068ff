"""What a run adds to a distiller: pictures for its teachers, checks before the first step, who taught it."""
from __future__ import annotations

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn

from hgd_det.data import two_sizes
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
        loader, endless = runner.train_dataloader, getattr(runner.train_loop, 'dataloader_iterator', None)
        late = loader.num_workers and getattr(endless, '_iterator', None) is not None
        if show_teachers(distiller, loader.dataset) and late:
            raise UserError("the data loader's workers began before they could be told what picture the "
                            'teacher wants to see (its input_size); train with `hgd-det train`, or with '
                            'train_dataloader.num_workers=0')
        metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}
        distiller.check(total=runner.max_iters, classes=metainfo.get('classes'))
        log_correspondence(distiller)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if (distiller := _distiller(runner)) is None or not distiller.teachers:
            return
        known = {name: dict(config=teacher.name, checkpoint=str(teacher.checkpoint), sha256=teacher.digest)
                 for name, teacher in distiller.teachers.items()}
        checkpoint['meta'] |= known if set(known) == {'teacher'} else dict(teachers=known)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        distiller = _distiller(runner)
        if distiller is None or not runner._resume:
            return
        checkpoint['state_dict'].update(checkpoint.get('distill') or {})
        if not self.same_teacher:
            return
        meta = checkpoint.get('meta') or {}
        known = meta.get('teachers') or dict(teacher=meta.get('teacher'))
        for name, teacher in distiller.teachers.items():
            before = known.get(name)
            if not before or before['sha256'] == teacher.digest:
                continue
            then, now = ((digest or 'none')[:12] for digest in (before['sha256'], teacher.digest))
            raise UserError(
                f"this run began under the teacher {before['checkpoint']} (sha256 {then}), but now it is "
                f'{teacher.checkpoint} ({now}); resume with the same one, or allow another with '
                "--cfg-options custom_hooks.2.same_teacher=False (the config's DistillHook)")


def show_teachers(model: nn.Module, dataset) -> bool:
    """Let a training's samples carry the pictures of teachers that see their own resolution; whether that
    took a change of the data set."""
    distiller = model.module if is_model_wrapper(model) else model
    pictures = distiller.teachers.pictures if isinstance(distiller, Distiller) else {}
    return bool(pictures) and two_sizes.install(dataset, pictures)


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
