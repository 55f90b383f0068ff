"""The errors users see.

A `UserError` means that something the user controls (a config, a file, an installation) must
change. Its message says what came, what was wanted and what to do; the command line prints that
message alone and exits with status 2, or with 1 where it showed only as the run went on.
"""


class UserError(ValueError):
    """A mistake in what the user gave. Programming mistakes are `assert` or other exceptions."""
    status = 2


class RunError(UserError):
    """What was given made sense, but the run cannot go on: its losses are no numbers any more."""
    status = 1


class MissingOpError(UserError, NotImplementedError):
    """An operator was called that only the compiled extension of mmcv offers."""
