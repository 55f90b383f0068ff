"""The one place where student, teacher, taps and terms meet.

    batch -> student.loss()  with taps on  -> its own losses, maps and head outputs
          -> teacher forward with taps on  -> its maps and, if some term reads it, its head
          -> lesson -> each term -> {name: loss}   -> one flat dict of losses

Nothing flows back to the teacher and nothing is kept between steps.
"""
from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmengine.logging import MessageHub
from torch import Tensor, nn

import hgd_det.distill.terms  # noqa: F401  registers them
from hgd_det.distill import options
from hgd_det.distill.correspondence import with_shares
from hgd_det.distill.heads import HeadSpy, differing_classes, flatten, head_spec
from hgd_det.distill.lesson import Lesson, Side
from hgd_det.distill.registry import build_term, split_entry
from hgd_det.distill.schedule import Balance, Progress, Schedule
from hgd_det.distill.stages import survey
from hgd_det.distill.taps import Taps
from hgd_det.distill.teacher import Teacher, as_pair
from hgd_det.distill.term import Spec, Term
from hgd_det.errors import UserError

DEFAULT_INPUT = 256  # a multiple of every usual stride, for detectors that take any size


@MODELS.register_module()
class Distiller(BaseDetector):
    """A student that trains under a teacher, and is a plain student in every other respect.

    ``predict``, ``_forward`` and ``extract_feat`` are the student's. A checkpoint holds the student
    under its own root keys and what only training needs under ``distill.``: any checkpoint works
    as it is with the student's own config. Without terms (or with all weights 0) training is the
    student's own, bit for bit.

    Args:
        student: The model config of a detector that trains alone.
        teacher: Arguments of :class:`~hgd_det.distill.teacher.Teacher`: ``model``, ``checkpoint``.
        terms: ``{name: dict(type=..., weight=..., ...)}``; see :class:`~hgd_det.distill.term.Term`.
        input_size: Size of the dry run that finds the stages; default is the teacher config's
            ``input_size``, else 256.
        seed: Seed of the terms' initial weights. They have their own generator, so that adding a
            term leaves the student's initial weights as they were.
    """

    def __init__(self, student: dict, teacher: dict | None = None, terms: dict | None = None,
                 input_size: int | tuple[int, int] | None = None, seed: int = 0):
        student = MODELS.build(student)
        super().__init__(data_preprocessor=student.data_preprocessor)
        self.student = student
        self.distill = nn.ModuleDict()
        self.schedules: dict[str, Schedule] = {}
        self.teacher: Teacher | None = None
        self.progress: Progress | None = None  # set it to train without mmengine's runner
        self._register_state_dict_hook(_student_at_root)
        self._register_load_state_dict_pre_hook(self._root_to_student)
        if not isinstance(terms or {}, Mapping):
            raise UserError(f"model.terms={terms!r}; write dict(NAME=dict(type='HGD', ...), ...)")
        wanted = {name: split_entry(name, cfg) for name, cfg in (terms or {}).items() if cfg is not None}
        wanted = {name: parts for name, parts in wanted.items() if not parts[1].off}
        if not wanted:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if teacher is not None:
                if not isinstance(teacher, Mapping):
                    raise UserError(f'model.teacher={teacher!r}; write dict(model=..., checkpoint=...)')
                options.check('model.teacher', Teacher, teacher)
                self.teacher = Teacher(**teacher)
                self.teacher.fit_input(self.data_preprocessor)
                if input_size is None:
                    input_size = self.teacher.config.get('input_size')
            self.input_size = as_pair(DEFAULT_INPUT if input_size is None else input_size)
            spec = self._spec()
            for name, (config, schedule) in wanted.items():
                term = build_term(name, config)
                if term.needs_teacher and teacher is None:
                    raise UserError(f'model.teacher is missing: the term {name!r} ({type(term).__name__}) '
                                    'needs one, as dict(model=..., checkpoint=...)')
                term.setup(spec)
                if schedule.auto:
                    term.balance = Balance(schedule.ratio, schedule.average)
                self.distill[name] = term
                self.schedules[name] = schedule

    def _spec(self) -> Spec:
        teacher, mine = self.teacher, survey(self.student, self.input_size, 'student')
        if teacher is None:
            return Spec(mine, None, self.student, None,
                        lambda: (head_spec(self.student, self.input_size), None))
        theirs = teacher.input_size or self.input_size
        differ = None if not teacher.same_classes else differing_classes(self.student, teacher.detector)
        if differ:
            raise UserError(f'the student knows {differ[0]} classes, the teacher {differ[1]} '
                            f'({teacher.name}); take a teacher of the same data set, or, for feature '
                            'terms, allow it with model.teacher.same_classes=False')
        return Spec(mine, survey(teacher.detector, theirs, 'teacher'), self.student, teacher.detector,
                    lambda: (head_spec(self.student, self.input_size), head_spec(teacher.detector, theirs)))

    # -- the student's own life ------------------------------------------------------------------
    def predict(self, batch_inputs, batch_data_samples, **kwargs):
        return self.student.predict(batch_inputs, batch_data_samples, **kwargs)

    def _forward(self, batch_inputs, batch_data_samples=None):
        return self.student._forward(batch_inputs, batch_data_samples)

    def extract_feat(self, batch_inputs):
        return self.student.extract_feat(batch_inputs)

    def init_weights(self) -> None:
        self.student.init_weights()
        if self.teacher is not None:
            with torch.random.fork_rng(devices=[]):
                self.teacher.load()

    def _apply(self, fn, *args, **kwargs):
        if self.teacher is not None:
            self.teacher.detector._apply(fn)
        return super()._apply(fn, *args, **kwargs)

    def _root_to_student(self, state_dict, prefix, *unused) -> None:
        for key in [k for k in state_dict if k.startswith(prefix)]:
            rest = key[len(prefix):]
            if not rest.startswith(('distill.', 'student.')):
                state_dict[f'{prefix}student.{rest}'] = state_dict.pop(key)

    # -- one step --------------------------------------------------------------------------------
    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict:
        began = time.perf_counter()
        progress = self._now()
        factors = {name: schedule.factor(progress) for name, schedule in self.schedules.items()}
        active = {name: self.distill[name] for name, factor in factors.items() if factor > 0}
        if not active:
            losses = self.student.loss(batch_inputs, batch_data_samples)
            return losses | {f'loss_{name}': _touch(term, batch_inputs)
                             for name, term in self.distill.items()}
        needs = frozenset().union(*(term.requires for term in active.values()))
        if 'gradient' in needs and torch.is_grad_enabled():
            batch_inputs = batch_inputs.detach().requires_grad_()
        maps, spy = Taps(self.student, _taps(active, 'student_taps')), HeadSpy(self.student)
        spent: list[float] = []
        lesson = Lesson(Side(maps, spy.output), lambda: self._teach(batch_inputs, active, needs, spent),
                        batch_data_samples, progress=progress, input_shape=batch_inputs.shape[-2:],
                        targets=spy.targets, anchors=spy.anchors, neg_pos_ratio=spy.neg_pos_ratio,
                        images=batch_inputs)
        spy.changes = [partial(term.retarget, lesson) for term in active.values() if term.retarget]
        with maps, spy:
            losses = self.student.loss(batch_inputs, batch_data_samples)
        if any(term.needs_teacher for term in active.values()):
            lesson.teacher  # noqa: B018  it runs now, before autocast is switched off for the terms
        detection = _total(losses)
        self._silence(losses, active)
        with torch.autocast(batch_inputs.device.type, enabled=False):
            for name, term in self.distill.items():
                losses.update(self._taught(name, term, lesson, factors[name], detection))
        if spent:
            losses['teacher_share'] = batch_inputs.new_tensor(sum(spent) / (time.perf_counter() - began))
        return losses

    def _teach(self, batch: Tensor, active: Mapping[str, Term], needs: frozenset, spent: list) -> Side:
        """The teacher's side of the lesson; notes the seconds it took."""
        if self.teacher is None:
            raise UserError('a term read the teacher without saying so: its class sets needs_teacher=False')
        self.teacher.load()
        began = time.perf_counter()
        with_head, with_gradient = 'head' in needs, 'gradient' in needs
        with Taps(self.teacher.detector, _taps(active, 'teacher_taps'), stop=not with_head) as maps:
            outputs = self.teacher.forward(batch, with_head, with_gradient)
        head = self.teacher.detector.bbox_head if with_head else None
        spent.append(time.perf_counter() - began)
        return Side(maps, (lambda: flatten(head, outputs)) if with_head else None)

    def _taught(self, name: str, term: Term, lesson: Lesson, factor: float, detection: Tensor) -> dict:
        """One term's entries of the loss dict: weighted losses, raw value, weight, diagnostics."""
        idle = _touch(term, detection)
        if factor == 0:
            return {f'loss_{name}': idle}
        values = term(lesson)
        counted = {k.removeprefix('loss'): v for k, v in values.items() if 'loss' in k}
        aside = counted.pop('aside_loss', None)
        entries = {} if aside is None else {f'loss_{name}_aside': aside}
        if counted:
            raw = sum(counted.values())
            weight = self._weight(name, term, detection, raw) * factor
            entries |= {f'loss_{name}{k}': v * weight for k, v in counted.items()}
            entries |= {f'{name}_raw': raw.detach(), f'{name}_weight': raw.new_tensor(weight)}
        else:  # the term teaches by other means, or only itself so far
            entries[f'loss_{name}'] = idle
        first = next(iter(entries))
        entries[first] = entries[first] + idle
        return entries | {f'{name}_{k}': v.detach().float() for k, v in values.items() if 'loss' not in k}

    def _weight(self, name: str, term: Term, detection: Tensor, raw: Tensor) -> float:
        schedule = self.schedules[name]
        if not schedule.auto:
            return float(schedule.weight)
        if self.training:
            term.balance.update(detection, raw)
        return term.balance.factor

    def _silence(self, losses: dict, active: Mapping[str, Term]) -> None:
        """Scale the student's own losses where a term asks for it (Chen's mu) or its schedule does."""
        factor = math.prod(self.schedules[name].detection for name in active)
        scales = [(k, s) for term in active.values() for k, s in term.scales_detection.items()]
        for key, value in losses.items():
            scale = factor
            for prefix, s in scales:
                scale *= s if key.startswith(prefix) else 1.0
            if scale != 1.0 and 'loss' in key:
                losses[key] = [v * scale for v in value] if isinstance(value, (list, tuple)) \
                    else value * scale

    def _now(self) -> Progress:
        if self.progress is not None:
            return self.progress
        hub = MessageHub.get_current_instance()
        return Progress(int(hub.get_info('iter', 0) or 0), int(hub.get_info('max_iters', 0) or 1))

    # -- what the tools ask ----------------------------------------------------------------------
    def check(self, total: int | None = None, classes: tuple[str, ...] | None = None) -> None:
        """What can be known to be wrong before the first step."""
        for name, schedule in self.schedules.items():
            if total is not None:
                schedule.check(total, name)
        if self.teacher is not None:
            self.teacher.load()
            self.teacher.check_classes(classes)

    def describe(self) -> dict:
        """The correspondence of every term: ``{'terms': {name: {...}}, 'pairs': [...]}``."""
        terms = {name: dict(type=type(term).__name__, requires=sorted(term.requires),
                            schedule={k: getattr(self.schedules[name], k) for k in Schedule.KEYS},
                            pairs=with_shares(self, term))
                 for name, term in self.distill.items()}
        pairs = next((t['pairs'] for t in terms.values() if t['pairs']), [])
        return dict(terms=terms, pairs=pairs)


def _student_at_root(module, state_dict, prefix, local_metadata) -> None:
    """state_dict hook: ``student.backbone.x`` is saved as ``backbone.x``."""
    for key in [k for k in state_dict if k.startswith(f'{prefix}student.')]:
        state_dict[prefix + key[len(prefix) + len('student.'):]] = state_dict.pop(key)


def _taps(terms: Mapping[str, Term], which: str) -> list[str]:
    return list(dict.fromkeys(tap for term in terms.values() for tap in getattr(term, which)))


def _total(losses: Mapping) -> Tensor:
    """The detection loss as mmengine adds it up."""
    total = 0.0
    for key, value in losses.items():
        if 'loss' in key:
            total = total + (sum(v.mean() for v in value) if isinstance(value, (list, tuple))
                             else value.mean())
    return total


def _touch(term: Term, like: Tensor) -> Tensor:
    """A zero in which every parameter of the term takes part: data-parallel training then finds a
    gradient for each of them in every step, and needs no search for unused ones."""
    parameters = [p for p in term.parameters() if p.requires_grad]
    zero = like.new_zeros(())
    return zero + sum(p.sum() for p in parameters) * 0 if parameters else zero
