"""Finds the data sets a folder holds or a config names."""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hgd_det.errors import UserError

VOC_CLASSES = ('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair',
               'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep',
               'sofa', 'train', 'tvmonitor')
COCO_CLASSES = ('person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck',
                'boat', 'traffic light', 'fire hydrant', 'stop sign', 'parking meter', 'bench',
                'bird', 'cat', 'dog', 'horse', 'sheep', 'cow', 'elephant', 'bear', 'zebra',
                'giraffe', 'backpack', 'umbrella', 'handbag', 'tie', 'suitcase', 'frisbee',
                'skis', 'snowboard', 'sports ball', 'kite', 'baseball bat', 'baseball glove',
                'skateboard', 'surfboard', 'tennis racket', 'bottle', 'wine glass', 'cup', 'fork',
                'knife', 'spoon', 'bowl', 'banana', 'apple', 'sandwich', 'orange', 'broccoli',
                'carrot', 'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch', 'potted plant',
                'bed', 'dining table', 'toilet', 'tv', 'laptop', 'mouse', 'remote', 'keyboard',
                'cell phone', 'microwave', 'oven', 'toaster', 'sink', 'refrigerator', 'book',
                'clock', 'vase', 'scissors', 'teddy bear', 'hair drier', 'toothbrush')
# Class lists that a dataset type brings along when its config gives none.
DEFAULT_CLASSES = {'VOCDataset': VOC_CLASSES, 'CocoDataset': COCO_CLASSES}
VOC_TYPES = ('VOCDataset', 'XMLDataset', 'VOCFolder', 'VOCFolders')
COCO_TYPES = ('CocoDataset', 'CocoFolder')


@dataclass(frozen=True)
class Source:
    """One list of images. `role` is train, val, trainval or test."""
    form: str  # 'voc' or 'coco'
    name: str
    role: str
    listing: Path | None  # ImageSets list or JSON; None: every annotation of the folder
    images: Path
    annotations: Path | None = None
    classes: tuple | None = None
    jpg_only: bool = False  # mmdet's own VOC datasets read nothing else


def from_folder(folder: Path) -> list[Source]:
    found = []
    for root in [folder, *sorted(folder.glob('VOC*')), *sorted(folder.glob('VOCdevkit/VOC*'))]:
        if (root / 'Annotations').is_dir() or (root / 'ImageSets' / 'Main').is_dir():
            found += _voc(root)
    for root in (folder, folder / 'coco'):
        if (root / 'annotations').is_dir() and not (root / 'annotations').samefile(
                _or(root / 'Annotations', root)):
            found += _coco(root)
    if not found:
        raise UserError(
            f'{folder} holds no data set; wanted VOC layout (Annotations/, JPEGImages/, '
            'ImageSets/Main/*.txt) or COCO layout (annotations/*.json beside the images)')
    return found


def _or(path: Path, other: Path) -> Path:
    # On file systems that ignore case, VOC's Annotations/ is also COCO's annotations/.
    return path if path.exists() else other


def _voc(root: Path) -> list[Source]:
    # Per-class lists (dog_trainval.txt) hold flags beside the names and are no lists of images.
    lists = {path.stem: path for path in (root / 'ImageSets' / 'Main').glob('*.txt')
             if path.stem in ('train', 'val', 'trainval', 'test')}
    lists = lists or {path.stem: path for path in (root / 'ImageSets' / 'Main').glob('*.txt')
                      if '_' not in path.stem}
    common = dict(images=root / 'JPEGImages', annotations=root / 'Annotations')
    if not lists:
        return [Source('voc', root.name, 'trainval', None, **common)]
    return [Source('voc', f'{root.name}/{stem}', _role(stem), path, **common)
            for stem, path in sorted(lists.items(), key=lambda item: item[0] != 'trainval')]


def _role(name: str) -> str:
    for role in ('trainval', 'test', 'val', 'train'):
        if role in name:
            return role
    return 'trainval'


def _coco(root: Path) -> list[Source]:
    files = sorted((root / 'annotations').glob('instances_*.json')) or \
        sorted((root / 'annotations').glob('*.json'))
    return [Source('coco', path.name, _role(path.stem.removeprefix('instances_').replace(
        'trainval', 'train')), path, _image_folder(root, path)) for path in files]


def _image_folder(root: Path, listing: Path) -> Path:
    """Where the images of a COCO file lie: the usual places, the first that has one of them."""
    import json
    split = listing.stem.removeprefix('instances_')
    places = [root / place for place in (split, f'images/{split}', 'images', 'JPEGImages',
                                         'VOC2007/JPEGImages', '.')]
    if places[0].is_dir():  # the usual case, and the files that are too large to read for this
        return places[0]
    try:
        names = [entry['file_name'] for entry in json.loads(listing.read_bytes())['images'][:50]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        names = []
    for place in places:
        if any(isinstance(name, str) and os.path.isfile(place / name) for name in names):
            return place
    return places[0]


def from_config(path: Path) -> list[Source]:
    import hgd_det  # noqa: F401  mmengine configs may name modules that need the operators
    from hgd_det.paths import read_config
    config = read_config(path, import_custom_modules=False)
    found, other = [], []
    for part, role in (('train', 'trainval'), ('val', 'test'), ('test', 'test')):
        if loader := _take(config, f'{part}_dataloader', Mapping):
            _walk(_take(loader, 'dataset', Mapping, {}), role, part, found, other)
    unique = {(s.form, s.role, s.listing, s.images): s for s in reversed(found)}
    if not unique:
        kinds = f' (found {", ".join(sorted(set(other)))})' if other else ''
        raise UserError(f'{path} names no data set that can be checked{kinds}; wanted one of '
                        f'{", ".join(VOC_TYPES + COCO_TYPES)} in a *_dataloader')
    return list(reversed(unique.values()))


def _walk(cfg, role: str, part: str, found: list, other: list) -> None:
    """Unwraps repeat, concat and class-balanced wrappers."""
    inner = _take(cfg, 'datasets', list) or [one for one in [_take(cfg, 'dataset', Mapping)] if one]
    for one in inner:
        if not isinstance(one, Mapping):
            raise UserError(f'{part}_dataloader has {one!r} for a data set; write dict(type=..., ...)')
        _walk(one, role, part, found, other)
    if inner:
        return
    kind = cfg.get('type')
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    kind = kind.split('.')[-1]
    root = _take(cfg, 'data_root', str, '')
    prefix = _take(cfg, 'data_prefix', Mapping, {})
    classes = _classes(_take(cfg, 'metainfo', Mapping, {}), DEFAULT_CLASSES.get(kind))
    if kind == 'VOCFolders':  # its lists may be several, and say where their folders are
        lists = cfg.get('ann_file') or []
        lists = [lists] if isinstance(lists, str) else lists
        if not isinstance(lists, (list, tuple)) or not all(isinstance(one, str) for one in lists):
            raise UserError(f'VOCFolders: ann_file={lists!r}; give a list of images or several')
        for one in lists:
            _walk(dict(cfg, type='VOCFolder', ann_file=one, data_prefix=dict(
                sub_data_root=one.partition('ImageSets')[0])), role, part, found, other)
        return
    listing = Path(os.path.join(root, _take(cfg, 'ann_file', str, '')))
    name = f'{part}: {listing}'
    if kind in VOC_TYPES:
        sub = _take(prefix, 'sub_data_root', str)
        folder = Path(os.path.join(root, sub)) if sub is not None else Path()
        found.append(Source('voc', name, role, listing,
                            folder / _take(cfg, 'img_subdir', str, 'JPEGImages'),
                            folder / _take(cfg, 'ann_subdir', str, 'Annotations'), classes,
                            jpg_only=kind != 'VOCFolder'))
    elif kind in COCO_TYPES:
        found.append(Source('coco', name, role, listing,
                            Path(os.path.join(root, _take(prefix, 'img', str, ''))), None, classes))
    else:
        other.append(kind)


def _take(cfg: Mapping, key: str, kind: type, default=None):
    """A value of a config, which must be of this type where it is given."""
    value = cfg.get(key)
    if value is None:
        return default
    if not isinstance(value, (list, tuple) if kind is list else kind):
        wanted = {Mapping: 'dict(...)', str: 'a string', list: 'a list'}[kind]
        raise UserError(f'the config gives {key}={value!r}; write {wanted}')
    return value


def _classes(metainfo: Mapping, default: tuple | None) -> tuple | None:
    names = metainfo.get('classes', default)
    if isinstance(names, str):  # mmengine: a file with one name a line
        try:
            names = Path(names).read_text(encoding='utf-8').split('\n') if os.path.isfile(names) else None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'the class names in {names} cannot be read: {error}') from error
    if names and not (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)):
        raise UserError(f"the config gives classes={names!r}; write names, ('a', 'b'), or a file of names")
    return tuple(name for name in names if name) if names else None
