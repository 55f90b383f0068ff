"""What a long run would stumble over, looked at beforehand: data, teacher, pairs, one step, memory, disk."""
from __future__ import annotations

import copy
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from mmcv.transforms import Resize
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from torch import Tensor

import hgd_det.registered  # noqa: F401  what configs name
from hgd_det.distill.distiller import Distiller
from hgd_det.distill.schedule import Progress
from hgd_det.distill.teacher import Teacher
from hgd_det.engine.distill_hook import show_teachers
from hgd_det.engine.health import sick_maps
from hgd_det.engine.mistakes import user_errors
from hgd_det.errors import UserError

HOPELESS = 0.05   # a teacher of less mAP has hardly anything to teach
DOMINANT = 100.0  # a term whose gradient is so many times the detection's leaves that no say
MB = 2 ** 20


@dataclass(frozen=True)
class Finding:
    """``level`` is ok, warn or fail; ``about`` what was looked at."""
    level: str
    about: str
    text: str


def examine(cfg: Config, images: int = 64) -> Iterator[Finding]:
    """The findings, one by one as they are made. What fails early ends the examination."""
    model, total = None, 0
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet'), user_errors():
            train = DATASETS.build(cfg.train_dataloader.dataset)
            yield from _data('training data', train, images)
            test = DATASETS.build(cfg.val_dataloader.dataset) if cfg.get('val_dataloader') else None
            if test is not None:
                yield from _data('validation data', test, images)
            model = MODELS.build(cfg.model)
            model.init_weights()
            show_teachers(model, train)
            total = _iterations(cfg, len(train))
            yield from _model(model, train, total)
            for name, teacher in getattr(model, 'teachers', {}).items():
                about = name if name == 'teacher' else f'teacher {name}'
                yield from _teacher(about, teacher, cfg, test, images)
            yield from _steps(model, cfg, train, total)
    except UserError as error:
        yield Finding('fail', 'set-up', str(error))
    yield from _disk(cfg, model, total)


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` indices, evenly spread."""
    number = min(count, wanted)
    return [round(i * (count - 1) / max(1, number - 1)) for i in range(number)]


def _data(about: str, dataset, images: int) -> Iterator[Finding]:
    dataset.full_init()
    classes = dataset.metainfo.get('classes') or ()
    found, empty, unusable = Counter(), 0, []
    looked = spread(len(dataset), images)
    for index in looked:
        sample = dataset.prepare_data(index)
        if sample is None:
            unusable.append(index)
            continue
        labels = sample['data_samples'].gt_instances.labels.tolist()
        found.update(labels)
        empty += not labels
    text = (f'{len(dataset)} images of {len(classes)} classes; of {len(looked)} looked at, {empty} show no '
            f'object and the others {sum(found.values())}')
    if unusable:
        yield Finding('warn', about, f'{text}; {len(unusable)} could not be used, such as number '
                      f'{unusable[0]}: hgd-det data check names every one')
    elif not found:
        yield Finding('fail', about, f'{text}: there is nothing to learn from or to test on')
    else:
        yield Finding('ok', about, text)
    if lacking := [name for label, name in enumerate(classes) if label not in found and found]:
        few = f'{", ".join(lacking[:6])}{" ..." if len(lacking) > 6 else ""}'
        yield Finding('ok' if len(looked) < len(dataset) else 'warn', about,
                      f'no {few} among the objects looked at')


def _iterations(cfg: Config, images: int) -> int:
    loop = cfg.train_cfg
    if loop.get('max_iters'):
        return int(loop.max_iters)
    return int(loop.get('max_epochs', 1)) * max(1, images // int(cfg.train_dataloader.get('batch_size', 1)))


def _model(model, train, total: int) -> Iterator[Finding]:
    classes = train.metainfo.get('classes') or ()
    student = getattr(model, 'student', model)
    known = getattr(getattr(student, 'bbox_head', None), 'num_classes', None)
    if known is not None and known != len(classes):
        yield Finding('fail', 'student', f'its head knows {known} classes, the data has {len(classes)}')
    if not isinstance(model, Distiller):
        yield Finding('ok', 'student', 'the config trains a detector alone; there is no teacher')
        return
    model.check(total, classes)
    for name, term in model.distill.items():
        pairs = term.describe()
        if 'maps' in term.needs and not pairs and term.needs_teacher:
            yield Finding('fail', f'term {name}', 'it reads maps, but has no pair of them')
        else:
            yield Finding('ok', f'term {name}', term.title + (
                f', {len(pairs)} pairs: ' + ', '.join(
                    f"{p['size'][0]}x{p['size'][1]}" for p in pairs) if pairs else ''))
    if not model.distill:
        yield Finding('warn', 'terms', 'no term counts: this trains the student alone')


@torch.no_grad()
def _teacher(about: str, teacher: Teacher, cfg: Config, test, images: int) -> Iterator[Finding]:
    identity = f'{teacher.checkpoint} (sha256 {(teacher.digest or "none")[:12]})'
    if test is None or not cfg.get('val_evaluator'):
        yield Finding('warn', about, f'{identity}; no validation data to test it on')
        return
    classes = test.metainfo.get('classes')
    if teacher.classes and classes and tuple(teacher.classes) != tuple(classes):
        yield Finding('ok', about, f'{identity}; it knows other classes than the validation set and is not '
                      'tested on it')
        return
    test = _at_size(test, teacher.input_size)
    evaluator = Evaluator(cfg.val_evaluator)
    evaluator.dataset_meta = test.metainfo
    looked = spread(len(test), images)
    for index in looked:
        batch = pseudo_collate([test[index]])
        evaluator.process(data_samples=teacher.detector.test_step(batch), data_batch=batch)
    figures = evaluator.evaluate(len(looked))
    name, score = next(((k, v) for k, v in figures.items() if k.endswith(('/mAP', '/bbox_mAP'))),
                       (None, None))
    if name is None:
        yield Finding('warn', about, f'{identity}; the evaluator gives no mAP')
    elif score < HOPELESS:
        yield Finding('fail', about, f'{identity} has {100 * score:.1f} mAP on {len(looked)} images of '
                      'the validation set: it has nothing to teach. Is it the right file, of these classes '
                      'in this order, and of this input normalisation?')
    else:
        yield Finding('ok', about, f'{identity} has {100 * score:.1f} mAP on {len(looked)} images of the '
                      'validation set')


def _at_size(test, size: tuple[int, int] | None):
    """The data set as a teacher with a size of its own is tested on it."""
    if size is None:
        return test
    test = copy.copy(test)
    test.pipeline = copy.deepcopy(test.pipeline)
    for step in test.pipeline.transforms:
        if isinstance(step, Resize):
            step.scale = size[::-1]
    return test


def _steps(model, cfg: Config, train, total: int) -> Iterator[Finding]:
    """A step of the size of a real one; of a distillation one for each time at which a term begins."""
    size = int(cfg.train_dataloader.get('batch_size', 1))
    batch = pseudo_collate([train[i] for i in spread(len(train), size)] * max(1, size // len(train)))
    if torch.cuda.is_available():
        model.cuda()
    model.train()
    ready = model.data_preprocessor(batch, True)
    if not isinstance(model, Distiller):
        yield from _step(model, ready, total)
        return
    for name, tap, what in sick_maps(model, ready['inputs'], ready['data_samples']):
        yield Finding('fail' if 'finite' in what else 'warn', f'term {name}',
                      f'the teacher map {tap} is {what} on a training batch')
    waiting = {name: schedule.begins(total) for name, schedule in model.schedules.items()}
    while waiting:
        model.progress = Progress(min(waiting.values()), total)
        active = [n for n, s in model.schedules.items() if s.factor(model.progress) > 0]
        yield from _step(model, ready, total, active)
        waiting = {n: at for n, at in waiting.items() if n not in active and at > model.progress.iteration}
    model.progress = None


def _step(model, ready: dict, total: int, terms: list[str] = ()) -> Iterator[Finding]:
    student = [p for p in getattr(model, 'student', model).parameters() if p.requires_grad]
    for _ in range(2):  # the first is slower than those to come
        began = time.perf_counter()
        losses = model.loss(ready['inputs'], ready['data_samples'])
        loss, log = model.parse_losses(losses)
        model.zero_grad()
        loss.backward()
        seconds = time.perf_counter() - began
    at = f'step at iteration {model.progress.iteration}' if getattr(model, 'progress', None) else 'one step'
    values = {k: v.item() for k, v in log.items() if 'loss' in k and k != 'loss'}
    said = ', '.join(f'{k} {v:.4g}' for k, v in values.items())
    gradient = _length(p.grad for p in student)
    if not all(torch.isfinite(torch.tensor([*values.values(), gradient]))):
        yield Finding('fail', at, f'{said}; gradient {gradient:.3g}: not finite')
    else:
        yield Finding('ok', at, f'{said}; {seconds:.2f} s, so {_clock(seconds * total)} for {total} steps '
                      f'like it, data loading aside; {_memory()}')
    if not terms:
        return
    detection = [k for k in losses if 'loss' in k and not any(k.startswith(f'loss_{n}') for n in terms)]
    model.zero_grad()
    losses = model.loss(ready['inputs'], ready['data_samples'])
    mine = _gradient(losses, detection, student)
    for name in terms:
        theirs = _gradient(losses, [k for k in losses if k.startswith(f'loss_{name}')], student)
        raw = log[f'{name}_raw'].item() if f'{name}_raw' in log else None
        share = f'its gradient on the student is {theirs / max(mine, 1e-12):.3g} of that of detection'
        if raw == 0:
            yield Finding('warn', f'term {name}', 'it is exactly 0 on this batch')
        elif mine > 0 and theirs > DOMINANT * mine:
            yield Finding('warn', f'term {name}', f'{share}: it leaves detection no say; lower its weight')
        elif mine > 0 and raw is not None:
            yield Finding('ok', f'term {name}', share)


def _gradient(losses: dict, keys: list[str], parameters: list[Tensor]) -> float:
    total = sum(sum(v.mean() for v in losses[k]) if isinstance(losses[k], (list, tuple)) else losses[k].mean()
                for k in keys)
    if not isinstance(total, Tensor) or not total.requires_grad:
        return 0.0
    return _length(torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True))


def _length(gradients) -> float:
    return float(sum(g.double().square().sum() for g in gradients if g is not None)) ** 0.5


def _memory() -> str:
    if torch.cuda.is_available():
        return f'at most {torch.cuda.max_memory_allocated() / MB:.0f} MB on the GPU'
    return f'at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB in this process'


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f'{hours} h {rest // 60:02d} min' if hours else f'{rest // 60} min {rest % 60:02d} s'


def _disk(cfg: Config, model, total: int) -> Iterator[Finding]:
    folder = Path(cfg.get('work_dir') or 'work_dirs').absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if model is None or not total:
        yield Finding('ok', 'disk', f'{free / MB:,.0f} MB free in {folder}')
        return
    moments = 2 if 'Adam' in str((cfg.get('optim_wrapper') or {}).get('optimizer', {}).get('type')) else 1
    weights = sum(v.numel() * v.element_size() for v in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    each = weights + moments * trained
    saver = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    kept = saver.get('max_keep_ckpts', -1)
    length = total if not saver.get('by_epoch', True) else int(cfg.train_cfg.get('max_epochs') or 1)
    count = max(1, length // max(1, int(saver.get('interval', 1)))) if kept < 1 else kept + 1
    need = each * count
    level = 'fail' if need > free else 'warn' if 2 * need > free else 'ok'
    yield Finding(level, 'disk', f'{free / MB:,.0f} MB free in {folder}; {count} checkpoints of '
                  f'{each / MB:,.0f} MB need {need / MB:,.0f} MB'
                  + ('; keep fewer: default_hooks.checkpoint.max_keep_ckpts=3' if level != 'ok' else ''))
