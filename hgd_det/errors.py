"""The errors users see.

A `UserError` means that something the user controls (a config, a file, an installation) must
change. Its message says what came, what was wanted and what to do; the command line prints that
message alone and exits with status 2, or with 1 where it showed only as the run went on.
"""
from __future__ import annotations

import difflib
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
    """The names that come nearest to a word, in any case: what a mistake may have meant."""
    known = {str(name).lower(): str(name) for name in names}
    return [known[name] for name in difflib.get_close_matches(str(word).lower(), known, count, cutoff)]
