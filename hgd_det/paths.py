"""Where the project's own files are, and how a config is read."""
from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from hgd_det.errors import UserError, near

if TYPE_CHECKING:
    from mmengine.config import Config

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ('.py', '.yml', '.yaml', '.json')


def unsafe(name: str) -> bool:
    """Would `name`, joined to a folder, leave it?"""
    windows = PureWindowsPath(name)
    return (PurePosixPath(name).is_absolute() or bool(windows.drive) or bool(windows.root)
            or '..' in windows.parts or '\0' in name)


def find_config(path: str | Path) -> Path:
    """A config given from the working folder or from the project's root."""
    given, path = str(path), Path(path)
    for base in (Path(), ROOT):
        if (base / path).is_file():
            return base / path
    known = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').rglob('*.py'))
    meant = near(given, known)
    raise UserError(f'config {given!r} '
                    + ('is a folder; give a file in it' if given and path.is_dir() else
                       f'does not exist here or in {ROOT}')
                    + (f'; near names: {", ".join(meant)}' if meant else ''))


def read_config(path: str | Path, **options) -> Config:
    """mmengine's config from a file (see `find_config`). A config is the user's program: whatever it
    raises is theirs to mend."""
    from mmengine.config import Config

    path = find_config(path)
    if path.suffix not in CONFIGS:
        raise UserError(f'{path} is no config: the name of one ends in {", ".join(CONFIGS)}')
    try:
        return Config.fromfile(str(path), **options)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f'config {path} cannot be read: {_reason(error)}') from error


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return 'its _base_ leads back to itself'
    if isinstance(error, SyntaxError) and error.lineno:
        return f'line {error.lineno}: {error.msg}'
    if isinstance(error, KeyError):
        return f'it asks for {error}, which neither it nor its _base_ has'
    missing = re.search(r"""['"]([^'"]+\.\w+)['"]""", str(error))
    if isinstance(error, FileNotFoundError) and missing:
        missing = Path(missing[1])
        meant = near(missing.name, (other.name for other in missing.parent.glob('*') if other.is_file()))
        return (f'{missing} does not exist; a _base_ counts from the file that names it'
                + (f'; near names: {", ".join(meant)}' if meant else ''))
    return f'{type(error).__name__}: {error}'
