"""The one place where student, teacher, taps and terms meet.

    seen   = teacher.observe(batch)             first, without a gradient; not at all while no term counts
    losses = student.loss(batch)                watched: taps, head output, targets
    lesson = Lesson(student, seen, batch)       what it holds has the gradient that it should have
    losses |= each term of the lesson, weighed

Nothing flows back to the teacher and nothing is kept between steps.
"""
from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from functools import cache

import torch
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmengine.logging import MessageHub
from torch import Tensor, nn

import hgd_det.distill.terms  # noqa: F401  registers them
from hgd_det.distill.correspondence import pairs_with_shares
from hgd_det.distill.detection import mean_of, total_loss
from hgd_det.distill.heads import Watching, head_spec
from hgd_det.distill.lesson import Lesson, Side, Targets
from hgd_det.distill.registry import build_term, split_entry
from hgd_det.distill.schedule import Balance, Progress, Schedule
from hgd_det.distill.stages import survey
from hgd_det.distill.teacher import Teacher, as_pair
from hgd_det.distill.teachers import Teachers
from hgd_det.distill.term import Spec, Term, check_returned
from hgd_det.distill.touch import touch
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
        teachers: Several of them instead, by name; each term says whom it learns from: ``teacher='a'``.
        terms: ``{name: dict(type=..., weight=..., ...)}``; see :class:`~hgd_det.distill.term.Term`.
        input_size: Size of the dry run that finds the stages; default is the teacher config's
            ``input_size``, else 256.
        seed: Seed of the terms' initial weights. They have their own generator, so that adding a
            term leaves the student's initial weights as they were.
    """

    def __init__(self, student: dict, teacher: dict | None = None, terms: dict | None = None,
                 input_size: int | tuple[int, int] | None = None, seed: int = 0,
                 teachers: dict | None = None):
        student = MODELS.build(student)
        super().__init__(data_preprocessor=student.data_preprocessor)
        self.student = student
        self.distill = nn.ModuleDict()
        self.schedules: dict[str, Schedule] = {}
        self.teachers = Teachers()
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
            self.teachers = Teachers(teacher, teachers)
            for one in self.teachers.values():
                one.fit_input(self.data_preprocessor)
            self.input_size = as_pair(self.teachers.common_size or DEFAULT_INPUT if input_size is None
                                      else input_size)
            spec_of = cache(self._spec)
            for name, (config, schedule) in wanted.items():
                asked = config.pop('teacher', None)
                term = build_term(name, config)
                mine = self.teachers.assign(name, term, asked, self.student, self.input_size)
                term.setup(spec_of(mine or self.teacher).shown_to(name, term))
                if schedule.auto:
                    term.balance = Balance(schedule.ratio, schedule.average)
                self.distill[name] = term
                self.schedules[name] = schedule
        if teachers is not None:
            self.teachers.forget_idle()

    def _spec(self, teacher: Teacher | None) -> Spec:
        mine = survey(self.student, self.input_size, 'student')
        if teacher is None:
            return Spec(mine, None, (self.student, None),
                        cache(lambda: (head_spec(self.student, self.input_size), None)))
        theirs = teacher.input_size or self.input_size

        def heads() -> tuple:
            own = head_spec(self.student, self.input_size)
            return own, teacher.as_student_counts(head_spec(teacher.detector, theirs), own)
        return Spec(mine, survey(teacher.detector, theirs, 'teacher'), (self.student, teacher.detector),
                    cache(heads))

    @property
    def teacher(self) -> Teacher | None:
        """The one teacher; None where there is none, or several."""
        return next(iter(self.teachers.values())) if len(self.teachers) == 1 else None

    # -- the student's own life ------------------------------------------------------------------
    def predict(self, batch_inputs, batch_data_samples, **kwargs):
        return self.student.predict(batch_inputs, batch_data_samples, **kwargs)

    def _forward(self, batch_inputs, batch_data_samples=None):
        return self.student._forward(batch_inputs, batch_data_samples)

    def extract_feat(self, batch_inputs):
        return self.student.extract_feat(batch_inputs)

    def init_weights(self) -> None:
        self.student.init_weights()
        with torch.random.fork_rng(devices=[]):
            self.teachers.load()

    def _apply(self, fn, *args, **kwargs):
        for teacher in self.teachers.values():
            teacher.detector._apply(fn)
        return super()._apply(fn, *args, **kwargs)

    def _root_to_student(self, state_dict, prefix, *unused) -> None:
        for key in [k for k in state_dict if k.startswith(prefix)]:
            rest = key[len(prefix):]
            if not rest.startswith(('distill.', 'student.')):
                state_dict[f'{prefix}student.{rest}'] = state_dict.pop(key)

    # -- one step --------------------------------------------------------------------------------
    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict:
        began, progress = time.perf_counter(), self._now()
        factors = {name: schedule.factor(progress) for name, schedule in self.schedules.items()}
        active = [name for name, factor in factors.items() if factor > 0]
        if not active:
            losses = self.student.loss(batch_inputs, batch_data_samples)
            for name, term in self.distill.items():
                losses |= _idle(name, term, batch_inputs)
            return losses
        self.teachers.load()
        lesson, losses = self.lesson(batch_inputs, batch_data_samples, active)
        detection = total_loss(losses)
        self._silence(losses, active)
        with torch.autocast(batch_inputs.device.type, enabled=False):
            for name, term in self.distill.items():
                losses |= self._weighed(name, term, lesson, factors[name], detection)
        if lesson.taught_in:
            share = lesson.taught_in / (time.perf_counter() - began)
            losses['teacher_share'] = batch_inputs.new_full((), share)
        return losses

    def parse_losses(self, losses: dict) -> tuple[Tensor, dict]:
        """mmengine's; what is one number already is taken as it is: its mean would be two operations."""
        log = {key: sum(map(mean_of, value)) if isinstance(value, (list, tuple)) else mean_of(value)
               for key, value in losses.items()}
        total = sum(value for key, value in log.items() if 'loss' in key)
        return total, dict(loss=total) | log

    def lesson(self, images: Tensor, samples: list, terms: Iterable[str] | None = None
               ) -> tuple[Lesson, dict]:
        """What one batch offers some terms (all of them by default), and the student's own losses.

        Training, ``inspect``, ``doctor`` and ``cost`` all get it from here.
        """
        active = {name: self.distill[name] for name in (self.distill if terms is None else terms)}
        needs = frozenset().union(*(term.needs for term in active.values()))
        mixed = images.device.type if torch.is_autocast_enabled(images.device.type) else None
        batch = dict(samples=samples, progress=self._now(), input_shape=images.shape[-2:],
                     autocast=mixed and torch.get_autocast_dtype(mixed))
        if 'gradient' in needs and torch.is_grad_enabled():
            images = images.detach().requires_grad_()

        began = time.perf_counter()
        seen = self.teachers.observe(images, samples, active)
        taught_in = time.perf_counter() - began if seen else 0.0

        def offered(mine: Watching, student: Side, **more) -> Lesson:
            if 'anchors' in needs:
                more |= dict(anchors=mine.anchors(), levels=mine.levels())
            return Lesson(student, seen, **batch, images=images, neg_pos_ratio=mine.neg_pos_ratio, **more)

        def retarget(targets: Targets) -> Targets:
            early = offered(mine, Side({}, mine.output() if 'head' in needs else None), targets=targets)
            for name, term in moving.items():
                targets = term.retarget(early.limited(name, term), targets)
            return targets

        moving = {name: term for name, term in active.items() if term.retarget is not None}
        with Watching(self.student, _taps(active, 'student_taps'), retarget if moving else None) as mine:
            losses = self.student.loss(images, samples)
        found = dict(targets=mine.targets(), assigned=mine.assigned()) if 'targets' in needs else {}
        lesson = offered(mine, Side(mine.maps, mine.output() if 'head' in needs else None), **found)
        lesson.taught_in = taught_in
        return lesson, losses

    def _weighed(self, name: str, term: Term, lesson: Lesson, factor: float, detection: Tensor) -> dict:
        """One term's entries of the loss dict: weighted losses, raw value, weight, diagnostics."""
        if factor == 0:
            return _idle(name, term, detection)
        idle = touch(term, detection)
        values = term(lesson.limited(name, term))
        check_returned(name, term, values)
        counted = {k.removeprefix('loss'): v for k, v in values.items() if 'loss' in k}
        aside = counted.pop('aside_loss', None)
        entries = {} if aside is None else {f'loss_{name}_aside': aside}
        if counted:
            raw = sum(counted.values())
            weight = self._weight(name, term, detection, raw) * factor
            weight = weight.to(raw) if isinstance(weight, Tensor) else raw.new_full((), weight)
            entries |= {f'loss_{name}{k}': v * weight for k, v in counted.items()}
            entries |= {f'{name}_raw': raw.detach(), f'{name}_weight': weight}
        else:  # the term teaches by other means, or only itself so far
            entries[f'loss_{name}'] = idle
        first = next(iter(entries))
        entries[first] = entries[first] + idle
        return entries | {f'{name}_{k}': v.detach().float() for k, v in values.items() if 'loss' not in k}

    def _weight(self, name: str, term: Term, detection: Tensor, raw: Tensor) -> float | Tensor:
        schedule = self.schedules[name]
        if not schedule.auto:
            return float(schedule.weight)
        if self.training:
            term.balance.update(detection, raw)
        return term.balance.factor

    def _silence(self, losses: dict, active: Iterable[str]) -> None:
        """Scale the student's own losses where a term asks for it (Chen's mu) or its schedule does."""
        factor = math.prod(self.schedules[name].detection for name in active)
        scales = [(k, s) for name in active
                  for k, s in self.distill[name].scales_detection.items()]
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
        self.teachers.load()
        self.teachers.learn_classes(classes, self.distill)

    def describe(self) -> dict:
        """The correspondence of every term: ``{'terms': {name: {...}}, 'pairs': [...]}``."""
        pairs = pairs_with_shares(self)
        terms = {name: dict(type=term.title, needs=sorted(term.needs),
                            teacher=self.teachers.of_term.get(name),
                            schedule={k: getattr(self.schedules[name], k) for k in Schedule.KEYS},
                            pairs=pairs[name])
                 for name, term in self.distill.items()}
        pairs = next((t['pairs'] for t in terms.values() if t['pairs']), [])
        return dict(terms=terms, pairs=pairs)


def _student_at_root(module, state_dict, prefix, local_metadata) -> None:
    """state_dict hook: ``student.backbone.x`` is saved as ``backbone.x``."""
    for key in [k for k in state_dict if k.startswith(f'{prefix}student.')]:
        state_dict[prefix + key[len(prefix) + len('student.'):]] = state_dict.pop(key)


def _taps(terms: Mapping[str, Term], which: str) -> list[str]:
    return list(dict.fromkeys(tap for term in terms.values() for tap in getattr(term, which)))


def _idle(name: str, term: Term, like: Tensor) -> dict:
    """A term that does not count in this iteration says so: a log line then holds no other phase's value."""
    nothing = touch(term, like)
    return {f'loss_{name}': nothing, f'{name}_raw': nothing.detach(), f'{name}_weight': nothing.detach()}
