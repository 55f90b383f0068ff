"""The teachers of a run, and whose pupil each term is."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from hgd_det.distill import options
from hgd_det.distill.lesson import Side
from hgd_det.distill.teacher import Teacher
from hgd_det.distill.term import Term
from hgd_det.errors import UserError

GONE = {'config': 'it is now model=',
        'same_classes': 'it is gone: terms that compare features need no common classes; for those that read '
                        "class scores, say with classes={'mine': 'theirs'} which of the teacher's are yours"}


class Teachers(dict[str, Teacher]):
    """Those of a config, by name: of ``teacher=dict(...)``, or of ``teachers=dict(a=dict(...), ...)``."""

    def __init__(self, teacher=None, teachers=None):
        if teacher is not None and teachers is not None:
            raise UserError('model has teacher= and teachers=; name them all in teachers')
        if not isinstance(teachers or {}, Mapping):
            raise UserError(f'model.teachers={teachers!r}; write dict(NAME=dict(model=..., ...), ...)')
        super().__init__({} if teacher is None else dict(teacher=_made('model.teacher', teacher)))
        for name, given in (teachers or {}).items():
            if given is not None:
                self[name] = _made(f'model.teachers.{name}', given)
        self.of_term: dict[str, str] = {}

    def assign(self, name: str, term: Term, asked: str | None, student: nn.Module, size: tuple[int, int]
               ) -> Teacher | None:
        """Who teaches a term, which asks for one by name where there are several; None for nobody.

        Refused where that teacher can be seen not to fit the term and the student, whose pictures have this
        size.
        """
        who, known = f'the {term.called(name)}', ', '.join(map(repr, self))
        if asked is not None and not term.needs_teacher:
            raise UserError(f'{who} has teacher={asked!r}, but it learns from none')
        if not term.needs_teacher:
            return None
        if not self:
            raise UserError(f'model.teacher is missing: {who} needs one, as dict(model=..., checkpoint=...)')
        if asked is None and len(self) > 1:
            raise UserError(f'{who} does not say which of model.teachers it learns from; write teacher=NAME, '
                            f'one of {known}')
        if asked is not None and asked not in self:
            raise UserError(f'{who} has teacher={asked!r}, but the teachers are {known}')
        self.of_term[name] = asked or next(iter(self))
        teacher = self[self.of_term[name]]
        teacher.check_numbers(student, [name] if 'head' in term.needs else [])
        if 'gradient' in term.needs and teacher.input_size not in (None, size):
            raise UserError(f'{who} differentiates with respect to the picture that both see, but '
                            f'{teacher.owner} has input_size={teacher.input_size}; leave that out')
        return teacher

    def forget_idle(self) -> None:
        """Leave out those of several whose terms are all switched off."""
        for name in set(self) - set(self.of_term.values()):
            del self[name]

    @property
    def common_size(self) -> int | tuple[int, int] | None:
        """What both see, where the model does not say it: the size that a teacher's config names."""
        for teacher in self.values():
            if teacher.input_size:
                raise UserError(f'{teacher.owner}.input_size is {teacher.input_size}, but model.input_size, '
                                "the side of the student's pictures, is not said; write both")
        return next(filter(None, (teacher.config.get('input_size') for teacher in self.values())), None)

    @property
    def pictures(self) -> dict[str, tuple[int, int]]:
        """What samples shall carry for those that see their own resolution: ``{field: (height, width)}``."""
        return {one.picture: one.input_size for one in self.values() if one.picture}

    def load(self) -> None:
        for teacher in self.values():
            teacher.load()

    def observe(self, images: Tensor, samples: list, terms: Mapping[str, Term]) -> dict[str, Side]:
        """What each of these terms learns from: each teacher runs once for all its pupils among them."""
        seen = {}
        for teacher, pupils in self.classrooms(terms):
            taps = dict.fromkeys(tap for term in pupils.values() for tap in term.teacher_taps)
            needs = set().union(*(term.needs for term in pupils.values()))
            seen |= dict.fromkeys(pupils, teacher.observe(images, samples, taps=taps, head='head' in needs,
                                                          gradient='gradient' in needs))
        return seen

    def learn_classes(self, classes: tuple[str, ...] | None, terms: Mapping[str, Term]) -> None:
        """Tell each the student's classes; see :meth:`Teacher.learn_classes`."""
        for teacher, pupils in self.classrooms(terms):
            teacher.learn_classes(classes, [name for name, term in pupils.items() if 'head' in term.needs])

    def classrooms(self, terms: Mapping[str, Term]) -> Iterator[tuple[Teacher, dict[str, Term]]]:
        """Each teacher of some of these terms, with those."""
        for name, teacher in self.items():
            pupils = {key: term for key, term in terms.items() if self.of_term.get(key) == name}
            if pupils:
                yield teacher, pupils


def _made(owner: str, given) -> Teacher:
    if not isinstance(given, Mapping):
        raise UserError(f'{owner}={given!r}; write dict(model=..., checkpoint=...)')
    for option, words in GONE.items():
        if option in given:
            raise UserError(f'{owner}.{option}: {words}')
    options.check(owner, Teacher, given)
    try:
        teacher = Teacher(**given)
    except UserError as error:
        raise UserError(f'{owner}: {error}') from error
    teacher.owner = owner
    return teacher
