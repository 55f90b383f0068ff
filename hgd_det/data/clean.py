"""Writes cleaned lists and annotations beside a data set. No original file is changed.

VOC: `OUT/<set>/ImageSets/Main/<split>.txt` without the unfit images, and `OUT/<set>/Annotations`
with an annotation for each that is left: a copy, or a corrected one. COCO:
`OUT/annotations/*.json`. Images stay where they are; a link leads to them, so that OUT has the
layout of the original and takes its place as `data_root`.
"""
from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from hgd_det.checkpoint import atomic_write, replacing

from . import coco, images, voc


def write(out: Path, checked: list, classes) -> list[str]:
    """The lines that say what was done and how a config uses it."""
    out.mkdir(parents=True, exist_ok=True)
    lines, written = [], {}
    for number, one in enumerate(checked):
        wanted = tuple(classes) if classes else one.source.classes
        keep, names = [], set()
        for result in one.results:
            if result.fit and result.name not in one.leaked:
                keep.append(result)
                names.add(result.name)
        work = _voc if one.source.form == 'voc' else _coco
        lines += work(out, number, one, keep, names, wanted, written)
    lines.append(f'use it with data_root={str(out.resolve()) + "/"!r}')
    return lines


def _voc(out, number, one, keep, names, classes, written) -> list[str]:
    source = one.source
    key = source.annotations
    if key not in written:
        folder = out / (source.annotations.parent.name or 'VOC')
        while folder in [done[0] for done in written.values()]:
            folder = folder.with_name(f'{folder.name}-{number}')
        written[key] = (folder, {})
    folder, done = written[key]
    (folder / 'Annotations').mkdir(parents=True, exist_ok=True)
    (folder / 'ImageSets' / 'Main').mkdir(parents=True, exist_ok=True)
    stem = source.listing.stem if source.listing else 'trainval'
    listing = folder / 'ImageSets' / 'Main' / f'{stem}.txt'
    atomic_write(''.join(f'{result.name}\n' for result in keep), listing)
    spelling = _spelling(classes, one.results)
    for result in keep:
        if result.name not in done:
            done[result.name] = _annotation(source, result.name, classes, spelling,
                                            folder / 'Annotations')
    image_link(source.images, folder / 'JPEGImages')
    counts = sum((done[result.name] for result in keep), Counter())
    gone = len(one.results) - len(keep) + one.dropped
    return [f'cleaned {source.name}: {gone} of {len(one.results) + one.dropped} images left out, '
            f'{counts["removed"]} objects removed, {counts["changed"]} changed -> {listing}']


def image_link(images_folder: Path, link: Path) -> None:
    """Where links cannot be made, the config needs the images' own path as its prefix."""
    try:
        if not link.exists() and images_folder.is_dir():
            link.symlink_to(images_folder.resolve(), target_is_directory=True)
    except OSError:
        pass


def _spelling(classes, results) -> dict:
    """folded name -> the spelling meant: the class list's, or the commonest in the data."""
    from .check import fold
    if classes is not None:
        return {fold(name): name for name in classes}
    totals = sum((result.classes for result in results), Counter())
    meant = {}
    for name, _ in totals.most_common():
        meant.setdefault(fold(name), name)
    return meant


def _annotation(source, name: str, classes, spelling: dict, folder: Path) -> Counter:
    """Copy or correct one annotation; counts removed and changed objects."""
    from .check import fold
    path = source.annotations / f'{name}.xml'
    target = folder / f'{name}.xml'
    target.parent.mkdir(parents=True, exist_ok=True)
    annotation = voc.read(path)
    image = images.find(source.images, name)
    size = images.header_size(image) if image else None
    size = size or annotation.size
    counts, seen, rewrite = Counter(), set(), False
    if size and annotation.size != size:
        _set_size(annotation.root, size)
        rewrite = True
    for thing in annotation.objects:
        before = ET.tostring(thing.element)
        if not _correct(thing, size, classes, spelling, fold) or \
                (thing.name, *voc.mmdet_box(thing.box)) in seen:
            annotation.root.remove(thing.element)
            counts['removed'] += 1
            rewrite = True
            continue
        seen.add((thing.name, *voc.mmdet_box(thing.box)))
        if ET.tostring(thing.element) != before:
            counts['changed'] += 1
            rewrite = True
    if rewrite:
        with replacing(target) as file:
            ET.ElementTree(annotation.root).write(file, encoding='utf-8')
    else:
        atomic_write(path.read_bytes(), target)
    return counts


def _set_size(root, size) -> None:
    tag = root.find('size')
    if tag is None:
        tag = ET.SubElement(root, 'size')
    for key, value in (('width', size[0]), ('height', size[1])):
        inner = tag.find(key)
        (ET.SubElement(tag, key) if inner is None else inner).text = str(value)


def _correct(thing, size, classes, spelling: dict, fold) -> bool:
    """Repair one object in place; False when it must go."""
    if thing.name is None or thing.box is None:
        return False
    meant = spelling.get(fold(thing.name), thing.name)
    if classes is not None and thing.name in classes:
        meant = thing.name
    if classes is not None and meant not in classes:
        return False
    if meant != thing.name:
        thing.name = thing.element.find('name').text = meant
    if (difficult := thing.element.find('difficult')) is not None:
        difficult.text = str(thing.difficult)
    kind = voc.judge(voc.mmdet_box(thing.box), size)
    if kind == 'box_outside':
        limits = (size[0], size[1], size[0], size[1])
        clipped = [min(max(value, 1), limit)
                   for value, limit in zip(thing.box, limits, strict=True)]
        if voc.judge(voc.mmdet_box(clipped), size):
            return False
        thing.box = tuple(clipped)
        for corner, value in zip(voc.CORNERS, clipped, strict=True):
            thing.element.find(f'bndbox/{corner}').text = f'{value:g}'
        return True
    return kind is None


def _coco(out, number, one, keep, names, classes, written) -> list[str]:
    source = one.source
    data, images_gone, boxes_gone, clipped = coco.clean(source.listing, names, classes)
    if data is None:
        return [f'cleaned {source.name}: nothing can be made of it']
    folder = out / 'annotations'
    folder.mkdir(exist_ok=True)
    target = folder / source.listing.name
    if target.exists():
        target = folder / f'{number}-{source.listing.name}'
    try:
        text = json.dumps(data)
    except RecursionError:
        return [f'cleaned {source.name}: its values are nested too deep to be written']
    atomic_write(text, target)
    image_link(source.images, out / (source.images.name or 'images'))
    return [f'cleaned {source.name}: {images_gone} images and {boxes_gone} annotations left out, '
            f'{clipped} boxes clipped -> {target}']
