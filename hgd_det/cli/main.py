"""`hgd-det VERB ...`: finds the verb's module, parses its arguments, runs it, reports its errors.

A verb is a module of this package with `add_arguments(parser)` and `run(args) -> int | None`. The
first line of its docstring is its help. Verbs import nothing heavy at module level; even so only
the one that is asked for is imported.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from hgd_det.errors import UserError


def verbs() -> dict[str, Path]:
    """Verb -> its file; `list_classes.py` is called as `list-classes`."""
    files = sorted(Path(__file__).parent.glob('*.py'))
    return {file.stem.replace('_', '-'): file for file in files
            if not file.stem.startswith('_') and file.stem != 'main'}


def summary(file: Path) -> str:
    """First line of a module's docstring, without importing the module."""
    doc = ast.get_docstring(ast.parse(file.read_text(encoding='utf-8'))) or ''
    return doc.partition('\n')[0]


def top_parser() -> argparse.ArgumentParser:
    """The parser of everything up to the verb. Its help lists the verbs."""
    from hgd_det import __version__
    found = verbs()
    width = max(map(len, found), default=0)
    listing = '\n'.join(f'  {verb:<{width}}  {summary(file)}' for verb, file in found.items())
    parser = argparse.ArgumentParser(
        prog='hgd-det', usage='hgd-det [--help] [--version] VERB ...',
        description='Distil object detectors on MMDetection.',
        epilog=f'verbs:\n{listing}\n\nhgd-det VERB --help explains one of them.',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action='version', version=f'hgd-det {__version__}')
    return parser


def load(verb: str):
    """The module of a verb; near names are suggested for an unknown one."""
    found = verbs()
    if verb not in found:
        near = difflib.get_close_matches(verb, found, n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else f'there are {", ".join(found)}'
        raise UserError(f"unknown verb '{verb}'; {hint} (hgd-det --help)")
    return importlib.import_module(f'hgd_det.cli.{found[verb].stem}')


def dispatch(argv: list[str]) -> int:
    parser = top_parser() if not argv or argv[0].startswith('-') else None
    if parser:
        parser.parse_args(argv)  # --help and --version end here
        parser.print_help(sys.stderr)
        return 2
    verb, *rest = argv
    module = load(verb)
    doc = (module.__doc__ or '').strip()
    parser = argparse.ArgumentParser(prog=f'hgd-det {verb}', description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    module.add_arguments(parser)
    return module.run(parser.parse_args(rest)) or 0


def users_error(error: BaseException | None) -> str | None:
    """The message for the user if the error, or a cause of it, is the user's to mend; else None.

    The outermost `UserError` speaks, cleared of what others wrap around it: some versions of
    mmengine raise a constructor's error anew as "class `X` in x.py: MESSAGE", and a data loader's
    worker sends its traceback along as text.
    """
    while error is not None:
        if isinstance(error, UserError):
            inner = error.__cause__ or error.__context__
            if str(error).startswith('class `') and isinstance(inner, UserError):
                return users_error(inner)
            text = str(error)
            if text.startswith('Caught ') and 'Original Traceback' in text:
                text = text.rpartition(f'{type(error).__name__}: ')[2].rstrip()
            return text
        if isinstance(error, ImportError):
            from hgd_det.compat.environment import explain
            if message := explain(error):
                return message
        error = error.__cause__
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def main(argv: list[str] | None = None) -> int:
    """Run a verb; returns the exit status: 0, the verb's own, 2 for a user's error (1 if the run showed it,
    or the system refused a file), 130 for ^C."""
    # a log that cannot be written, on a full disk for instance, is no reason for a traceback
    logging.raiseExceptions = 'HGD_DET_TRACEBACK' in os.environ
    try:
        return dispatch(sys.argv[1:] if argv is None else list(argv))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except BrokenPipeError:  # `hgd-det ... | head`: nobody reads on, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = users_error(error)
        status = next((e.status for e in _causes(error) if isinstance(e, UserError)), 2)
        if message is None and isinstance(error, OSError):  # a folder that may not be written to, a full disk
            message, status = f'{error.filename}: {error.strerror}' if error.filename else str(error), 1
        if message is None or os.environ.get('HGD_DET_TRACEBACK'):
            raise
        sys.stdout.flush()
        print(f'error: {message}', file=sys.stderr)
        return status


if __name__ == '__main__':
    sys.exit(main())
