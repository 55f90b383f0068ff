"""Whether a file may be written: asked for every output of every verb, before anything slow.

Files are compared by themselves, not by their names: links are followed, and two names of one file are one
file. What is asked here is then written by `checkpoint.replacing`, so that it is whole or as it was.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hgd_det.errors import UserError
from hgd_det.paths import CONFIGS, ROOT

START = re.compile(r'\d{8}_\d{6}')    # the folder of one start of a run, named by its time
CHECKPOINT = re.compile(r'(iter|epoch|best)_.*\.pth')


def keep_originals(outs: Iterable[str | Path], inputs: Iterable[str | Path] = (), *,
                   force: bool = False) -> None:
    """Refuse if writing any of `outs` would destroy something; see `would_overwrite`."""
    inputs = list(inputs)
    for out in outs:
        if reason := would_overwrite(out, inputs, force=force):
            raise UserError(reason)


def would_overwrite(out: str | Path, inputs: Iterable[str | Path] = (), *, force: bool = False) -> str | None:
    """Why `out` must not be written, in words; None where it may.

    Never written, with `force` or without: what a command reads (`inputs`, by the file itself), and
    anything among the files of a training, which are training's alone. Anything else that exists is
    replaced with `force` only.
    """
    out = Path(out)
    place = Path(os.path.realpath(out))
    for given in map(Path, inputs):
        if _same(out, given):
            return f'writing {out} would overwrite {given}, which this command reads; give another place'
    if folder := training_of(place):
        return (f'{out} would lie among the files of the training in {folder}, where only training '
                'writes; give another place, a folder of its own for instance')
    if place.is_dir():
        return f'{out} is a folder, and a file would be written there; give another place'
    if os.path.lexists(out) and not force:
        return f'{out} exists already; give another place, or --force to write over it'
    return None


def training_of(place: Path) -> Path | None:
    """The folder of the training among whose files `place` (absolute, links resolved) would lie: directly
    in its folder, or in that of one of its starts."""
    child = place
    for folder in place.parents:
        if (child == place or START.fullmatch(child.name)) and is_training(folder):
            return folder
        child = folder
    return None


def is_training(folder: Path) -> bool:
    """Whether a training has left checkpoints or its log here."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError:
        return False
    return 'last_checkpoint' in names or any(map(CHECKPOINT.fullmatch, names)) or any(
        (folder / name / 'vis_data' / 'scalars.json').is_file() for name in names if START.fullmatch(name))


def named_files(*values) -> Iterator[Path]:
    """The files that exist among the strings of configs, however deep: checkpoints, lists, other configs with
    their bases."""
    for value in values:
        if isinstance(value, Mapping):
            yield from named_files(*value.values())
        elif isinstance(value, (list, tuple)):
            yield from named_files(*value)
        elif isinstance(value, (str, Path)) and (path := _file(value)):
            yield path
            yield from bases(path)


def _file(text: str | Path) -> Path | None:
    if not 0 < len(str(text)) < 4096 or '\0' in str(text) or '\n' in str(text):
        return None
    path = Path(text)
    try:
        if path.is_file():
            return path
        if path.suffix in CONFIGS and (ROOT / path).is_file():
            return ROOT / path
    except (OSError, ValueError):
        pass
    return None


def bases(config: str | Path) -> Iterator[Path]:
    """The files that a config builds on, and those that these do."""
    waiting, seen = [Path(config)], set()
    while waiting:
        path = waiting.pop()
        if path.suffix not in CONFIGS or path.resolve() in seen or not path.is_file():
            continue
        seen.add(path.resolve())
        try:
            text = path.read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError):
            continue
        # whatever a base is given by, its name stands in the text as it is
        for name in re.findall(r"""['"\s]([^'"\s,\[\]()]+\.(?:py|ya?ml|json))\b""", text):
            base = path.parent / name
            if base.is_file():
                yield base
                waiting.append(base)


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False
