"""Where the project's own files are, and how a config is read: a file, or a pair and a method."""
from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from hgd_det.errors import UserError, near

if TYPE_CHECKING:
    from mmengine.config import Config

PACKAGE = Path(__file__).resolve().parent
# The folder that holds configs/: the checkout, or the package itself where it was installed as a wheel
ROOT = PACKAGE if (PACKAGE / 'configs').is_dir() else PACKAGE.parent
CONFIGS = ('.py', '.yml', '.yaml', '.json')


def unsafe(name: str) -> bool:
    """Would `name`, joined to a folder, leave it?"""
    windows = PureWindowsPath(name)
    return (PurePosixPath(name).is_absolute() or bool(windows.drive) or bool(windows.root)
            or '..' in windows.parts or '\0' in name)


def find_config(path: str | Path) -> Path:
    """A config given from the working folder, or from the project's root or its configs/, there also without
    its suffix: `configs/shapes/teacher.py`, `shapes/teacher.py`, `shapes/teacher`; a pair by its name alone:
    `shapes`."""
    given, path = str(path), Path(path)
    for base in (Path(), ROOT, ROOT / 'configs'):
        if (base / path).is_file():
            return base / path
    if not path.suffix and given:
        for base in (ROOT / 'configs', ROOT / 'configs/pairs'):
            if (base / f'{path}.py').is_file():
                return base / f'{path}.py'
    known = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').rglob('*.py'))
    meant = near(given, [*known, *names('pairs')])
    raise UserError(f'config {given!r} '
                    + ('is a folder; give a file in it' if given and path.is_dir() else
                       f'does not exist here or in {ROOT}')
                    + (f'; near names: {", ".join(meant)}' if meant else ''))


def config_name(path: str | Path) -> str:
    """What a run of this config is called: `shapes` for `configs/pairs/shapes.py`, `shapes/student` for
    `configs/shapes/student.py`, the name of the file for one that lies elsewhere."""
    if not Path(path).suffix:
        return str(path)
    parts = Path(path).with_suffix('').parts
    if 'configs' not in parts:
        return parts[-1]
    parts = parts[len(parts) - parts[::-1].index('configs'):]
    return '/'.join(parts[1:] if parts[0] == 'pairs' else parts)


def find_method(method: str) -> Path:
    """The file of a method, by its name in `configs/methods` or by its path."""
    if Path(method).suffix in CONFIGS:
        return find_config(method)
    path = ROOT / f'configs/methods/{method}.py'
    if unsafe(method) or not path.is_file():
        meant = near(method, names('methods'))
        raise UserError(f'there is no method {method!r}; give the name of a file in configs/methods, several '
                        'with a +, or the path of a file of your own'
                        + (f'; near names: {", ".join(meant)}' if meant else ''))
    return path


def names(folder: str) -> list[str]:
    """Of what lies in a folder of configs/: `names('methods')`, `names('pairs')`."""
    return sorted(path.stem for path in (ROOT / 'configs' / folder).glob('*.py'))


def method_name(method: str) -> str:
    """What a method is called in the name of a run: `hgd+mine` for `hgd+my/mine.py`."""
    return '+'.join(Path(each).stem for each in method.split('+'))


def read_config(path: str | Path, method: str | None = None, **options) -> Config:
    """mmengine's config from a file (see `find_config`), with a method, or several as `hgd+logit_kd`, added
    to the pair of detectors that it describes. A config is the user's program: whatever it raises is theirs
    to mend."""
    cfg = _read(find_config(path), options)
    return _teach(cfg, method.split('+')) if method else cfg


def _read(path: Path, options: dict) -> Config:
    from mmengine.config import Config

    if path.suffix not in CONFIGS:
        raise UserError(f'{path} is no config: the name of one ends in {", ".join(CONFIGS)}')
    try:
        return Config.fromfile(str(path), **options)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f'config {path} cannot be read: {_reason(error)}') from error


def _teach(cfg: Config, methods: list[str]) -> Config:
    """Add the terms of methods to a pair, with the values that were tuned for it, and what else they set.

    A method's file has `terms`; `teacher`, if it is not the pair's: None for no teacher, 'student' for one
    like the student; and settings of a config. The pair's `values` are such parts too, by method.
    """
    if (cfg.get('model') or {}).get('type') != 'Distiller':
        raise UserError(f'{cfg.filename} describes no pair of detectors that a method could be added to; '
                        f'give one that does: {", ".join(names("pairs"))}, or one of your own whose model '
                        'is a Distiller')
    values, teachers = cfg.pop('values', {}), []
    cfg.model.terms = cfg.model.get('terms') or {}
    for method in methods:
        path = find_method(method)
        added = _read(path, {})
        if not isinstance(added.get('terms'), dict):
            raise UserError(f"{path} is no method: it has no terms=dict(NAME=dict(type='HGD', ...))")
        for name in added.terms:
            if cfg.model.terms.get(name) is not None:
                raise UserError(f'--method {"+".join(methods)}: two of them have a term {name!r}; give the '
                                'terms other names in a method file of your own')
        teachers.append(added.pop('teacher', 'pair'))
        for part in (added._cfg_dict, values.get(path.stem, {})):
            _merge(cfg, {'model.terms' if key == 'terms' else key: value for key, value in part.items()})
    if 'student' in teachers:
        cfg.model.teacher = dict(model=dict(model=cfg.model.student))
    elif not any(teachers):
        cfg.model.pop('teacher', None)
    return cfg


def _merge(cfg: Config, settings: dict) -> None:
    try:
        cfg.merge_from_dict(settings)
    except (KeyError, TypeError, AssertionError, AttributeError, ValueError) as error:
        raise UserError(f'what a method sets does not fit {cfg.filename}: {error}') from error


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
