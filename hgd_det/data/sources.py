"""Finds the data sets a folder holds or a config names."""
from __future__ import annotations

import os
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
        if any(isinstance(name, str) and '\0' not in name and (place / name).is_file()
               for name in names):
            return place
    return places[0]


def from_config(path: Path) -> list[Source]:
    import hgd_det  # noqa: F401  mmengine configs may name modules that need the operators
    from hgd_det.paths import read_config
    config = read_config(path, import_custom_modules=False)
    found, other = [], []
    for part, role in (('train', 'trainval'), ('val', 'test'), ('test', 'test')):
        loader = config.get(f'{part}_dataloader')
        if loader:
            _walk(loader.get('dataset', {}), role, part, found, other)
    unique = {(s.form, s.role, s.listing, s.images): s for s in reversed(found)}
    if not unique:
        kinds = f' (found {", ".join(sorted(set(other)))})' if other else ''
        raise UserError(f'{path} names no data set that can be checked{kinds}; wanted one of '
                        f'{", ".join(VOC_TYPES + COCO_TYPES)} in a *_dataloader')
    return list(reversed(unique.values()))


def _walk(cfg, role: str, part: str, found: list, other: list) -> None:
    """Unwraps repeat, concat and class-balanced wrappers."""
    inner = cfg.get('datasets') or ([cfg['dataset']] if cfg.get('dataset') else [])
    for one in inner:
        _walk(one, role, part, found, other)
    if inner:
        return
    kind = cfg.get('type')
    kind = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    kind = kind.split('.')[-1]
    root = cfg.get('data_root') or ''
    prefix = cfg.get('data_prefix') or {}
    metainfo = cfg.get('metainfo') or {}
    classes = metainfo.get('classes', DEFAULT_CLASSES.get(kind))
    if isinstance(classes, str):  # mmengine: a file with one name a line
        classes = Path(classes).read_text().split('\n') if Path(classes).is_file() else None
    classes = tuple(name for name in classes if name) if classes else None
    if kind == 'VOCFolders':  # its lists may be several, and say where their folders are
        lists = cfg.get('ann_file') or []
        for one in [lists] if isinstance(lists, str) else lists:
            _walk(dict(cfg, type='VOCFolder', ann_file=one, data_prefix=dict(
                sub_data_root=one.partition('ImageSets')[0])), role, part, found, other)
        return
    listing = Path(os.path.join(root, cfg.get('ann_file') or ''))
    name = f'{part}: {listing}'
    if kind in VOC_TYPES:
        sub = prefix.get('sub_data_root')
        folder = Path(os.path.join(root, sub)) if sub is not None else Path()
        found.append(Source('voc', name, role, listing,
                            folder / cfg.get('img_subdir', 'JPEGImages'),
                            folder / cfg.get('ann_subdir', 'Annotations'), classes,
                            jpg_only=kind != 'VOCFolder'))
    elif kind in COCO_TYPES:
        found.append(Source('coco', name, role, listing,
                            Path(os.path.join(root, prefix.get('img') or '')), None, classes))
    else:
        other.append(kind)
