"""Whether options given in a config are such as the one they are for takes: judged by its signature."""
from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hgd_det.errors import UserError, near

WORDS = {bool: 'True or False', int: 'a whole number', float: 'a number', str: 'a string',
         Path: 'a path', type(None): 'None', Mapping: 'a dict', Sequence: 'a list'}


def check(owner: str, kind: Callable, given: Mapping, also: Sequence[str] = ()) -> None:
    """Refuse options that ``kind`` does not take (near names are told), lacks, or takes in another type.

    ``also``: names that somebody else takes, for the message. A type nobody wrote down is not judged.
    """
    accepted, hints = parameters(kind)
    for name, value in given.items():
        if name not in accepted:
            meant = near(name, [*accepted, *also], 1)
            raise UserError(f'{owner} has no option {name!r}'
                            + (f'; did you mean {meant[0]!r}?' if meant else '')
                            + f" It takes {', '.join(accepted) or 'none'}"
                            + (f'; and {", ".join(also)}' if also else ''))
        if name in hints and not _fits(value, hints[name]):
            raise UserError(f'{owner}: {name}={value!r}; give {words(hints[name])}')
    missing = [name for name, parameter in accepted.items()
               if parameter.default is parameter.empty and name not in given
               and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)]
    if missing:
        raise UserError(f'{owner} needs {", ".join(missing)}')


def parameters(kind: Callable) -> tuple[dict[str, inspect.Parameter], dict]:
    """What it takes, and the types that are written down.

    A class whose ``__init__`` ends in ``**more`` hands that to the class it is made from, whose options
    are then its own too.
    """
    if not inspect.isclass(kind):
        return dict(inspect.signature(kind).parameters), _hints(kind)
    accepted, hints = {}, {}
    for base in kind.__mro__:
        if '__init__' not in vars(base):
            continue
        mine = dict(inspect.signature(base.__init__).parameters)
        more = [name for name, p in mine.items() if p.kind is p.VAR_KEYWORD]
        accepted = {k: v for k, v in mine.items() if k not in ('self', *more)} | accepted
        hints = _hints(base) | hints
        if not more:
            break
    return accepted, hints


def _hints(kind: Callable) -> dict:
    try:
        return typing.get_type_hints(kind.__init__ if inspect.isclass(kind) else kind)
    except (NameError, TypeError):  # names that only a type checker imports
        return {}


def _fits(value, hint) -> bool:
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is typing.Literal:
        return any(value == one for one in inside)
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    kind = origin or hint
    if not inspect.isclass(kind):
        return True
    if issubclass(kind, Sequence) and kind is not str:
        if not isinstance(value, (list, tuple)):
            return False
        if kind is tuple and inside and Ellipsis not in inside:
            return len(value) == len(inside) and all(map(_fits, value, inside))
        return not inside or all(_fits(one, inside[0]) for one in value)
    if issubclass(kind, dict):
        kind = Mapping
    return isinstance(value, kind)


def words(hint) -> str:
    """``Sequence[int] | None`` as 'a list (a whole number each) or None'."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(dict.fromkeys(map(words, inside)))
    if origin is typing.Literal:
        return ' or '.join(map(repr, inside))
    kind = origin or hint
    if not inspect.isclass(kind):
        return str(kind)
    general = next((one for one in (str, Sequence, Mapping) if issubclass(kind, one)), kind)
    word = WORDS.get(general, kind.__name__)
    if general is Sequence and inside:
        each = ', '.join(words(one) for one in inside if one is not Ellipsis)
        word += f' ({each}{" each" if kind is not tuple else ""})'
    return word
