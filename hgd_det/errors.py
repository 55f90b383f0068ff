"""The errors users see.

A `UserError` means that something the user controls (a config, a file, an installation) must
change. Its message says what came, what was wanted and what to do; the command line prints that
message alone and exits with status 2, or with 1 where it showed only as the run went on.
"""
from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave. Programming mistakes are `assert` or other exceptions."""
    status = 2


class RunError(UserError):
    """What was given made sense, but the run cannot go on: its losses are no numbers any more."""
    status = 1


class MissingOpError(UserError, NotImplementedError):
    """An operator was called that only the compiled extension of mmcv offers."""


def near(word: object, names: Iterable[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """The names that come nearest to a word, in any case: what a mistake may have meant.

    Those one slip of the fingers away come first; by the share of common letters alone, short names would not
    be found.
    """
    word, known = str(word).lower(), {str(name).lower(): str(name) for name in names}
    found = sorted((name for name in known if _one_slip(word, name)), key=lambda name: name != word)
    found += [name for name in difflib.get_close_matches(word, known, count, cutoff) if name not in found]
    return [known[name] for name in found[:count]]


def _one_slip(a: str, b: str) -> bool:
    """Whether one letter more, less or other, or two exchanged, makes the words the same (or they are)."""
    same = len(os.path.commonprefix([a, b]))
    a, b = a[same:], b[same:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
