"""Brings VOC and COCO into the layout the configs expect, from whatever the user has.

    DIR/VOCdevkit/VOC2007  DIR/VOCdevkit/VOC2012      Annotations, ImageSets/Main, JPEGImages
    DIR/coco/train2017  DIR/coco/val2017  DIR/coco/annotations
    DIR/downloads                                      archives that were fetched; may be removed

Every part is unpacked beside its place and moved there; the file that marks it as present (the
list, the JSON, the image folder) comes last. An interrupted run is simply run again.
"""
from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hgd_det.errors import UserError

from . import archives, download

VOC_URL = 'http://host.robots.ox.ac.uk/pascal/VOC/'
COCO_URL = 'http://images.cocodataset.org/'


@dataclass(frozen=True)
class Part:
    """One archive. `mark`: what exists below the set's folder once the part is in place."""
    key: str
    archive: str
    url: str
    md5: str
    mark: str
    images: int  # listed in the published set; 0 for annotations


PARTS = {
    'voc': (
        Part('trainval2007', 'VOCtrainval_06-Nov-2007.tar', VOC_URL + 'voc2007/',
             'c52e279531787c972589f7e41ab4ae64', 'VOC2007/ImageSets/Main/trainval.txt', 5011),
        Part('test2007', 'VOCtest_06-Nov-2007.tar', VOC_URL + 'voc2007/',
             'b6e924de25625d8de591ea690078ad9f', 'VOC2007/ImageSets/Main/test.txt', 4952),
        Part('trainval2012', 'VOCtrainval_11-May-2012.tar', VOC_URL + 'voc2012/',
             '6cd6e144f989b92b3379bac3b3de84fd', 'VOC2012/ImageSets/Main/trainval.txt', 11540)),
    'coco': (
        Part('train2017', 'train2017.zip', COCO_URL + 'zips/',
             'cced6f7f71b7629ddf16f17bbcfab6b2', 'train2017', 118287),
        Part('val2017', 'val2017.zip', COCO_URL + 'zips/',
             '442b8da7639aecaf257c1dceb8ba8c80', 'val2017', 5000),
        Part('annotations', 'annotations_trainval2017.zip', COCO_URL + 'annotations/',
             'f4bbac642086de4f52a3fdda2de5fa2c', 'annotations/instances_val2017.json', 0)),
}
FOLDERS = {'voc': 'VOCdevkit', 'coco': 'coco'}
VOC_FOLDERS = ('JPEGImages', 'Annotations', 'ImageSets')  # the lists last


def prepare(kind: str, out, *, sources=(), only=None, mirror: str | None = None,
            checksum: bool = True, say=print, progress: bool = True) -> Path:
    """Put every wanted part of `kind` in place below `out`; returns the set's folder."""
    out = Path(out).expanduser()
    final = out / FOLDERS[kind]
    parts = _wanted(kind, only)
    given = _given(kind, [Path(source).expanduser() for source in sources], parts)
    missing = []
    for part in parts:
        if _present(final, part):
            say(f'{part.key}: already in {final}')
        elif part.key in given:
            _take(kind, part, given[part.key], final, checksum, progress)
            say(f'{part.key}: {given[part.key]} -> {final}')
        elif sources:
            missing.append((part, 'not among the paths given with --from'))
        elif archive := _fetched(out, part, mirror, checksum, missing, progress):
            _take(kind, part, archive, final, checksum, progress)
            say(f'{part.key}: {archive} -> {final}')
        _count(kind, final, part, say)
    if missing and not (sources and any(_present(final, part) for part in parts)):
        raise UserError(_how_to_get(missing, out, kind))
    for part, _ in missing:
        say(f'{part.key}: not there yet ({part.archive}); give it with --from, or run without '
            '--from to download it')
    return final


def _wanted(kind: str, only) -> list[Part]:
    known = [part.key for part in PARTS[kind]]
    wrong = [key for key in only or () if key not in known]
    if wrong:
        raise UserError(f'--only {" ".join(wrong)}: no such part; choose among {" ".join(known)}')
    return [part for part in PARTS[kind] if not only or part.key in only]


def _present(final: Path, part: Part) -> bool:
    mark = final / part.mark
    return mark.is_file() or (mark.is_dir() and any(mark.iterdir()))


def _given(kind: str, paths: list[Path], parts: list[Part]) -> dict:
    """part key -> the archive or unpacked folder that has it."""
    found = {}
    for path in paths:
        if not path.exists():
            raise UserError(f'--from {path}: does not exist')
        before = len(found)
        for part in parts:
            if path.is_file() and path.name == part.archive:
                found.setdefault(part.key, path)
            elif path.is_dir():
                places = [path / part.archive, *_unpacked(kind, path, part)]
                hit = next((place for place in places if place.exists()), None)
                if hit is not None:
                    found.setdefault(part.key, hit)
        if len(found) == before and not _known(kind, path):
            names = ', '.join(part.archive for part in PARTS[kind])
            raise UserError(f'--from {path}: neither one of {names}, nor a folder that holds one '
                            'or its contents')
    return found


def _known(kind: str, path: Path) -> bool:
    return any(path.name == part.archive or (path / part.archive).exists()
               or any(place.exists() for place in _unpacked(kind, path, part))
               for part in PARTS[kind])


def _unpacked(kind: str, path: Path, part: Part) -> list[Path]:
    """Where the contents of `part` would lie in a folder of the user: VOC gives the year's root."""
    if kind == 'voc':
        year, rest = part.mark.split('/', 1)
        roots = [path / year, path / 'VOCdevkit' / year, *([path] if path.name == year else [])]
        return [root for root in roots if (root / rest).is_file()]
    if part.images:
        own = [path] if path.name == part.mark else []
        return [*own, *(place for place in (path / part.mark, path / 'images' / part.mark)
                        if place.is_dir())]
    own = [path] if (path / PurePosixPath(part.mark).name).is_file() else []
    return [*own, *([path / 'annotations'] if (path / part.mark).is_file() else [])]


def _fetched(out: Path, part: Part, mirror, checksum: bool, missing: list, progress: bool):
    """The archive in `out` or its downloads folder, fetched if need be; None when it cannot be."""
    target = out / 'downloads' / part.archive
    for place in (out / part.archive, target):
        if place.is_file():
            return place
    url = (mirror.rstrip('/') + '/' if mirror else part.url) + part.archive
    if offline := [reason for _, reason in missing if reason.startswith('no network')]:
        missing.append((part, offline[0]))  # do not wait again for every file
        return None
    try:
        download.fetch(url, target, part.md5 if checksum else None, progress=progress)
        return target
    except download.Unreachable as error:
        answered = any(f': {code} ' in str(error) for code in (403, 404, 410))
        missing.append((part, f'{"" if answered else "no network: "}{error}'))
        return None


def _how_to_get(missing: list, out: Path, kind: str) -> str:
    lines = [f'{len(missing)} file(s) are missing:']
    for part, _ in missing:
        lines.append(f'  {part.archive}  md5 {part.md5}  {part.url}{part.archive}')
    reasons = dict.fromkeys(reason for _, reason in missing)
    lines.append('because: ' + '; '.join(reasons))
    lines.append(f'Put them into {out / "downloads"} and run this again, or give archives or '
                 f'unpacked folders: hgd-det data {kind} {out} --from PATH ...')
    return '\n'.join(lines)


def _take(kind: str, part: Part, source: Path, final: Path, checksum: bool, progress: bool):
    """Unpack an archive, or link (copy where links cannot be) an unpacked folder, into place."""
    final.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{part.key}-', dir=final) as work:
        stage = Path(work)
        if source.is_file():
            if checksum:
                download.verify(source, part.md5, progress)
            count = archives.extract(source, stage, lambda name: _place(kind, part, name),
                                     progress=progress)
            if not count or not (stage / part.mark).exists():
                raise UserError(f'{source} does not contain {part.mark}; is it the right archive?')
        else:
            _link(kind, part, source, stage)
        _move(kind, part, stage, final)


def _place(kind: str, part: Part, name: str) -> str | None:
    """Target of an archive's member, relative to the set's folder; None: not needed."""
    pieces = PurePosixPath(name).parts
    top = part.mark.split('/')[0]
    if top not in pieces:
        return None
    pieces = pieces[pieces.index(top):]
    if kind == 'voc':
        wanted = len(pieces) > 2 and pieces[1] in VOC_FOLDERS
    else:
        wanted = len(pieces) == 2 and (part.images or pieces[1].startswith('instances_'))
    return '/'.join(pieces) if wanted else None


def _link(kind: str, part: Part, source: Path, stage: Path) -> None:
    if kind == 'voc':
        folders = [(source / name, stage / part.mark.split('/')[0] / name)
                   for name in ('JPEGImages', 'Annotations', 'ImageSets/Main')]
    else:
        folders = [(source, stage / part.mark.split('/')[0])]
    for old, new in folders:
        new.mkdir(parents=True)
        if not old.is_dir():
            raise UserError(f'{old} is not there')
        for entry in os.scandir(old):
            if entry.is_file() and (kind == 'voc' or part.images
                                    or entry.name.startswith('instances_')):
                real = os.path.realpath(entry.path)
                try:
                    os.link(real, new / entry.name)
                except OSError:  # another disk, or a file system without links
                    shutil.copyfile(real, new / entry.name)


def _move(kind: str, part: Part, stage: Path, final: Path) -> None:
    top = part.mark.split('/')[0]
    if not (final / top).exists():
        (stage / top).rename(final / top)
        return
    folders = [f'{top}/{name}' for name in VOC_FOLDERS] if kind == 'voc' else [top]
    for folder in folders:
        for path in sorted((stage / folder).rglob('*')):
            if path.is_file():
                target = final / path.relative_to(stage)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)


def _count(kind: str, final: Path, part: Part, say) -> None:
    """A word when the part is smaller than the published one (a subset, or an unfinished copy)."""
    if not part.images or not _present(final, part):
        return
    mark = final / part.mark
    count = len(mark.read_bytes().split()) if kind == 'voc' else sum(1 for _ in os.scandir(mark))
    if count != part.images:
        say(f'{part.key}: {count} images; the published set has {part.images}')
