"""COCO layout: one JSON file, read once and judged entry by entry."""
from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import Repr

from hgd_det.paths import unsafe

from .findings import Finding
from .voc import MAX_PIXEL, judge

_SHORT = Repr()  # of what came in a file: neither long nor deep
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


@dataclass
class Image:
    """One image entry with its sound objects: `(class name, (x1, y1, x2, y2), annotation id)`."""
    id: int
    file_name: str
    size: tuple | None
    objects: list = field(default_factory=list)
    crowds: int = 0


def numbers(values, count: int, limit: int = MAX_PIXEL) -> bool:
    """Is this a list of so many numbers, none infinite, undefined or beyond any image?"""
    return (isinstance(values, list) and len(values) == count
            and all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) <= limit
                    for v in values))


def judge_box(bbox, size) -> str | None:
    """`voc.judge` of `[x, y, width, height]`, and mmdet's rule for COCO: none is thinner than a pixel."""
    x, y, w, h = bbox
    return judge((x, y, x + w, y + h), size) or ('box_zero' if min(w, h) < 1 else None)


def _key(value):
    """Ids as dictionary keys: numbers and strings as they are, anything else is unusable."""
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


def load(path: Path):
    """`(data, findings)`; data is None when nothing can be made of the file."""
    where = path.name
    try:
        data = json.loads(path.read_text(encoding='utf-8'))  # bytes may be UTF-16: no COCO reader takes it
    except OSError as error:
        return None, [Finding('split_missing', where, str(error))]
    except (ValueError, RecursionError) as error:
        return None, [Finding('json_broken', where, str(error)[:200])]
    if not isinstance(data, dict):
        return None, [Finding('json_keys', where, f'a {type(data).__name__}, not an object')]
    missing = [key for key in ('images', 'annotations', 'categories')
               if not isinstance(data.get(key), list)]
    if missing:
        return None, [Finding('json_keys', where, f'no list {", ".join(missing)}')]
    return data, []


def read(path: Path):
    """`(images, categories, findings)` of one annotation file; categories are {id: name}."""
    data, findings = load(path)
    if data is None:
        return [], {}, findings
    name = path.name

    def add(kind, where, detail=''):
        findings.append(Finding(kind, f'{name}: {where}', detail))

    categories = {}
    for entry in data['categories']:
        if not isinstance(entry, dict) or _key(entry.get('id')) is None \
                or not isinstance(entry.get('name'), str):
            add('json_keys', 'categories', _SHORT.repr(entry))
        else:
            categories[entry['id']] = entry['name']
    images = {}
    for entry in data['images']:
        if not isinstance(entry, dict) or _key(entry.get('id')) is None \
                or not isinstance(entry.get('file_name'), str):
            add('json_keys', 'images', _SHORT.repr(entry))
            continue
        where = f'image {entry["id"]}'
        if entry['id'] in images:
            add('id_duplicate', where, entry['file_name'])
            continue
        size = (entry.get('width'), entry.get('height'))
        if not numbers(list(size), 2):
            add('json_keys', where, 'width or height')
            size = None
        if unsafe(entry['file_name']):
            add('id_unsafe', where, entry['file_name'])
            continue
        images[entry['id']] = Image(entry['id'], entry['file_name'], size)
    for file_name, times in Counter(image.file_name for image in images.values()).items():
        if times > 1:
            add('id_duplicate', file_name, f'{times} image entries')
    if not data['images']:
        findings.append(Finding('split_empty', name))
    seen_ids, seen_boxes = set(), set()
    for entry in data['annotations']:
        if not isinstance(entry, dict) or _key(entry.get('id')) is None \
                or 'image_id' not in entry or 'category_id' not in entry:
            add('json_keys', 'annotations', _SHORT.repr(entry))
            continue
        where = f'annotation {entry["id"]}'
        if entry['id'] in seen_ids:
            add('annotation_id_duplicate', where)
        seen_ids.add(entry['id'])
        image = images.get(_key(entry['image_id']))
        if image is None:
            add('annotation_orphan', where, f'image_id {_SHORT.repr(entry["image_id"])}')
            continue
        where = f'{image.file_name} annotation {entry["id"]}'
        if _key(entry['category_id']) not in categories:
            add('class_unknown', where, f'category_id {_SHORT.repr(entry["category_id"])}')
            continue
        box = entry.get('bbox')
        if not numbers(box, 4):
            add('coordinate_bad', where, f'bbox {_SHORT.repr(box)}')
            continue
        if not numbers([entry.get('area')], 1, MAX_PIXEL ** 2):
            add('json_keys', where, f'area {_SHORT.repr(entry.get("area"))}')
        elif entry['area'] <= 0:
            add('box_zero', where, f'area {entry["area"]}, which mmdet believes whatever the box')
            continue
        image.crowds += bool(entry.get('iscrowd'))
        x, y, w, h = box
        corners = (x, y, x + w, y + h)
        if kind := judge_box(entry['bbox'], image.size):
            add(kind, where, f'{categories[entry["category_id"]]} {box}')
            continue
        if min(w, h) < 4:
            add('box_tiny', where, f'{box}')
        same = (image.id, entry['category_id'], *box)
        if same in seen_boxes:
            add('box_duplicate', where, f'{box}')
        seen_boxes.add(same)
        image.objects.append((categories[entry['category_id']], corners, entry['id']))
    return list(images.values()), categories, findings


def clean(path: Path, keep: set, classes: list | None):
    """`(data, dropped images, dropped boxes, clipped boxes)`: the file without what is wrong.

    `keep` holds the file names of the images to keep. Ids of annotations are numbered anew when
    two were equal.
    """
    data, _ = load(path)
    if data is None:
        return None, 0, 0, 0
    names = {entry['id']: entry['name'] for entry in data['categories']
             if isinstance(entry, dict) and _key(entry.get('id')) is not None
             and isinstance(entry.get('name'), str)}
    images, files = {}, set()
    for entry in data['images']:
        if isinstance(entry, dict) and _key(entry.get('id')) is not None \
                and isinstance(entry.get('file_name'), str) and entry['file_name'] in keep \
                and entry['id'] not in images \
                and entry['file_name'] not in files \
                and numbers([entry.get('width'), entry.get('height')], 2):
            images[entry['id']] = entry
            files.add(entry['file_name'])
    annotations, seen, clipped = [], set(), 0
    for entry in data['annotations']:
        if not isinstance(entry, dict) or _key(entry.get('image_id')) not in images \
                or _key(entry.get('category_id')) not in names \
                or (classes is not None and names[entry['category_id']] not in classes) \
                or not numbers(entry.get('bbox'), 4):
            continue
        size = [images[entry['image_id']][key] for key in ('width', 'height')]
        x, y, w, h = entry['bbox']
        kind = judge_box(entry['bbox'], size)
        if kind == 'box_outside':
            x1, y1 = max(x, 0), max(y, 0)
            w, h = min(x + w, size[0]) - x1, min(y + h, size[1]) - y1
            if w < 1 or h < 1:
                continue
            entry = dict(entry, bbox=[x1, y1, w, h], area=w * h)
            clipped += 1
        elif kind:
            continue
        if not numbers([entry.get('area')], 1, MAX_PIXEL ** 2) or entry['area'] <= 0:
            entry = dict(entry, area=w * h)
        same = (entry['image_id'], entry['category_id'], *entry['bbox'])
        if same not in seen:
            seen.add(same)
            annotations.append(entry)
    if len({_key(entry.get('id')) for entry in annotations} - {None}) < len(annotations):
        annotations = [dict(entry, id=i) for i, entry in enumerate(annotations, 1)]
    dropped = (len(data['images']) - len(images), len(data['annotations']) - len(annotations))
    data.update(images=list(images.values()), annotations=annotations,
                categories=[entry for entry in data['categories']
                            if isinstance(entry, dict) and _key(entry.get('id')) in names])
    return data, *dropped, clipped
