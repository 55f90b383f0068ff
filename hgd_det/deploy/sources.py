"""Which files are meant: images, folders of images and videos, each with a name of its own."""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hgd_det.data.images import SUFFIXES
from hgd_det.errors import UserError
from hgd_det.outputs import keep_originals

VIDEOS = ('.mp4', '.avi', '.mov', '.mkv')


@dataclass(frozen=True)
class Source:
    """A file to look at. `name` is what the results call it: its place below the output folder."""
    path: Path
    name: str

    @property
    def video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS

    @property
    def drawn(self) -> str:
        """The name of the drawn one, in a format that can be written."""
        return self.name if self.video or self.path.suffix.lower() in SUFFIXES else f'{self.name}.png'


def collect(inputs: Sequence[str | Path], out: str | Path) -> list[Source]:
    """The files that are meant, each once. A folder stands for the images below it, without hidden
    ones and without `out`.

    A name is the path below the folder given, or the file's name; equal ones are lengthened by the
    folders above until they differ.
    """
    names: dict[Path, Path] = {}
    for given in map(Path, inputs):
        if not given.exists():
            raise UserError(f'{given} does not exist; give images, videos or folders')
        found = _below(given, _absolute(out)) if given.is_dir() else [given]
        if not found:
            raise UserError(f'{given} holds no image, a file that ends in {", ".join(SUFFIXES)}; '
                            'videos are given one by one')
        for path in found:
            names.setdefault(_absolute(path), path.relative_to(given if given.is_dir() else given.parent))
    while len(count := Counter(names.values())) < len(names):
        for path, name in names.items():
            if count[name] > 1:
                names[path] = Path(*path.parts[1:][-len(name.parts) - 1:])
    return [Source(path, name.as_posix()) for path, name in names.items()]


def _below(folder: Path, out: Path) -> list[Path]:
    def refuse(error: OSError):
        raise UserError(f'{error.filename} cannot be listed: {error.strerror}')

    found, own = [], os.path.realpath(out)
    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders
                      if not name.startswith('.') and os.path.realpath(Path(root, name)) != own]
        found += [Path(root, name) for name in files
                  if not name.startswith('.') and name.lower().endswith(SUFFIXES)]
    return sorted(found)


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))


def check_places(sources: Sequence[Source], places: Sequence[Path], reads: Sequence[str | Path] = (), *,
                 force: bool = False) -> None:
    """Nothing may take the place of an original, or of another picture. `places` are the sources' pictures,
    then other files."""
    taken, originals = {}, [source.path for source in sources]
    for place, source in zip(places, sources, strict=False):
        if taken.setdefault(os.path.realpath(place), source) is not source:
            raise UserError(f'the picture of {source.path} would overwrite {place}; choose another '
                            'folder with --out, or leave pictures out with --no-pictures')
    real = {os.path.realpath(path): path for path in originals}
    for place in places:    # a look at each pair would take long with many
        near = [original for original in [real.get(os.path.realpath(place))] if original]
        keep_originals([place], [*near, *(originals if _linked(place) else ()), *reads], force=force)


def _linked(place: Path) -> bool:
    """Whether the file that is there has another name too."""
    try:
        return os.stat(place).st_nlink > 1
    except OSError:
        return False
