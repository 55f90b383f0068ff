"""Who is who among the runs of a report: teacher, students trained alone, distilled students."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hgd_det.report.runs import Run

ORDER = ('teacher', 'alone', 'distilled')
ALONE, DISTILLED = (1, 5, 7), (2, 3, 4, 6)    # colours of the style sheet; 0 is the teacher's


@dataclass(frozen=True)
class Member:
    """A run in its role, with the number of its colour; `method` names the terms of a distillation."""
    run: Run
    role: str
    colour: int
    method: str = ''

    @property
    def name(self) -> str:
        return self.run.name


@dataclass(frozen=True)
class Gain:
    """What distillation brought: mAP beyond that of the student `alone`, and the part of the distance
    between that and the `teacher` which it makes up; None where one of them is not there."""
    alone: float | None
    teacher: float | None
    points: float | None
    share: float | None


def cast(runs: Sequence[Run]) -> list[Member]:
    """Teachers first, then students alone, then the distilled, each in the order given."""
    roles = {id(run): role(run, runs) for run in runs}
    members, used = [], dict.fromkeys(ORDER, 0)
    palettes = dict(teacher=(0,), alone=ALONE, distilled=DISTILLED)
    for run in sorted(runs, key=lambda run: ORDER.index(roles[id(run)])):
        kind = roles[id(run)]
        palette = palettes[kind]
        members.append(Member(run, kind, palette[used[kind] % len(palette)], method(run)))
        used[kind] += 1
    return members


def leading(members: Sequence[Member], role: str) -> Member | None:
    """The run of the highest mAP in a role: it stands for the others where there is room for one."""
    return max((each for each in members if each.role == role), key=lambda each: each.run.mAP or 0,
               default=None)


def role(run: Run, runs: Sequence[Run]) -> str:
    """A run with terms is distilled, even if it teaches another; one that a distilled run was taught by is
    the teacher; any other trained alone."""
    if terms(run):
        return 'distilled'
    return 'teacher' if any(taught_by(other, run) for other in runs) else 'alone'


def terms(run: Run) -> dict[str, Mapping]:
    """The terms of a distillation's config that are not switched off."""
    model = run.values.get('model') or {}
    found = model.get('terms') if model.get('type') == 'Distiller' else None
    return {name: term for name, term in (found or {}).items() if isinstance(term, Mapping)}


def method(run: Run) -> str:
    return ' + '.join(str(term.get('type')) for term in terms(run).values())


def taught_by(run: Run, other: Run) -> bool:
    """Whether the other run made this one's teacher: its checkpoint comes from there, or its config is of
    that name."""
    teacher = (run.values.get('model') or {}).get('teacher') if terms(run) else None
    if not isinstance(teacher, Mapping):
        return False
    file = teacher.get('checkpoint')
    if isinstance(file, str) and other.folder.resolve() in (Path(file).resolve(),
                                                            Path(file).resolve().parent):
        return True
    config = teacher.get('model', teacher.get('config'))  # as it was called before
    return isinstance(config, str) and other.config is not None and Path(config).name == other.config.name


def gain(member: Member, members: Sequence[Member]) -> Gain:
    """Against the mean of the students alone that have the same detector, and of its teachers."""
    wanted = plain_model(member.run)
    alone = mean([other.run.mAP for other in members
                  if other.role == 'alone' and plain_model(other.run) == wanted])
    teacher = mean([other.run.mAP for other in members
                    if other.role == 'teacher' and taught_by(member.run, other.run)])
    points = None if member.role != 'distilled' or None in (alone, member.run.mAP) else member.run.mAP - alone
    share = None if points is None or teacher is None or teacher <= alone else points / (teacher - alone)
    return Gain(alone, teacher, points, share)


def plain_model(run: Run) -> dict:
    """The detector without what surrounds it in training."""
    model = run.values.get('model') or {}
    if model.get('type') == 'Distiller':
        model = model.get('student') or {}
    return {key: value for key, value in model.items() if key not in ('data_preprocessor', 'init_cfg')}


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
