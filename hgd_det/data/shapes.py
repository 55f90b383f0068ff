"""The built-in data set: geometric shapes, written once, readable as VOC and as COCO.

Layout of a finished folder::

    OUT/shapes.json                                   what it was made with
    OUT/VOC2007/JPEGImages/{train,test}_00001.jpg     the only copy of the pictures
    OUT/VOC2007/Annotations/*.xml
    OUT/VOC2007/ImageSets/Main/{trainval,test}.txt
    OUT/annotations/instances_{train,test}.json

VOC counts pixels from 1 and includes the last one; mmdet subtracts 1 from every coordinate and
measures `x2 - x1`. So that both forms give mmdet the same numbers, a box whose first and last
visible pixels (0-based) are `x1, x2` is `xmin = x1 + 1, xmax = x2 + 1` in VOC form and
`x = x1, w = x2 - x1` in COCO form.

Every image is drawn from its own generator, seeded by (seed, split, index): a set depends neither
on the number of processes nor on how many images are made.
"""
from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

from hgd_det.errors import UserError

# Raise when the pictures change: a folder made by another version is not silently taken.
VERSION = 1
CLASSES = ('disc', 'square', 'triangle', 'star', 'cross', 'ring')
HARD_CLASSES = CLASSES + ('hexagon', 'crescent', 'heart', 'arrow')
# split -> (number in the seed, VOC list, COCO file)
SPLITS = {'train': (0, 'trainval.txt', 'instances_train.json'),
          'test': (1, 'test.txt', 'instances_test.json')}
JPEG_QUALITY = 95
SIZES = (48, 1024)


def metainfo(hard: bool = False) -> dict:
    """`metainfo` of mmdet's dataset configs: the class names in label order."""
    return dict(classes=HARD_CLASSES if hard else CLASSES)


def parameters(train: int = 3000, test: int = 500, seed: int = 0, hard: bool = False,
               size: int | None = None) -> dict:
    """What fully determines a set; stored as `shapes.json`."""
    size = size if size is not None else 160 if hard else 96
    if not SIZES[0] <= size <= SIZES[1]:
        raise UserError(f'image size is {size}; it must lie in {SIZES[0]}..{SIZES[1]} pixels')
    for name, count in (('train', train), ('test', test)):
        if not 1 <= count <= 99999:
            raise UserError(f'{name} images: {count}; give a number in 1..99999')
    if seed < 0:
        raise UserError(f'seed is {seed}; give a number that is not negative')
    return dict(version=VERSION, train=train, test=test, seed=seed, hard=hard, size=size,
                classes=list(metainfo(hard)['classes']))


def existing(out: Path) -> dict | None:
    """The parameters of a finished, complete set at `out`, or None when there is none."""
    try:
        made = json.loads((out / 'shapes.json').read_text())
        count = sum(1 for entry in os.scandir(out / 'VOC2007' / 'JPEGImages')
                    if entry.name.endswith('.jpg'))
        return made if count == made['train'] + made['test'] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def generate(out: str | Path, *, train: int = 3000, test: int = 500, seed: int = 0,
             hard: bool = False, size: int | None = None, workers: int = 1, force: bool = False,
             progress=None) -> bool:
    """Write the set to `out`; False when the very same set is already there.

    All is written to a folder beside `out` that takes its name at the end, so `out` is whole or
    absent. A folder that holds anything but a shapes set is never replaced. `progress` is called
    with 1 for each finished image.
    """
    params = parameters(train, test, seed, hard, size)
    out = Path(out).expanduser().resolve()
    found = existing(out)
    if found == params:
        return False
    occupied = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if occupied:
        if not (out / 'shapes.json').is_file():
            raise UserError(f'{out} holds something that is not a shapes set; give another folder')
        if not force:
            state = f'made with {found}' if found else 'incomplete'
            raise UserError(f'{out} already holds a shapes set, {state}; wanted {params}. '
                            'Give another folder, or --force to replace it')
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    try:
        work.chmod(0o755)
        new = work / 'new'
        _write(new, params, workers, progress)
        if out.exists():
            out.rename(work / 'old')
        new.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def _write(root: Path, params: dict, workers: int, progress) -> None:
    for folder in ('VOC2007/JPEGImages', 'VOC2007/Annotations', 'VOC2007/ImageSets/Main',
                   'annotations'):
        (root / folder).mkdir(parents=True)
    tasks = [(split, index) for split in SPLITS for index in range(params[split])]
    job = partial(_make, root=root, params=params)
    boxes = {}
    if workers > 1:
        # fork where there is fork: the caller's main module is then not imported again.
        method = 'fork' if 'fork' in multiprocessing.get_all_start_methods() else 'spawn'
        with multiprocessing.get_context(method).Pool(workers, _one_thread) as pool:
            for key, found in pool.imap_unordered(job, tasks, chunksize=16):
                boxes[key] = found
                if progress:
                    progress(1)
    else:
        for task in tasks:
            key, found = job(task)
            boxes[key] = found
            if progress:
                progress(1)
    for split, (_, listing, annotation) in SPLITS.items():
        names = [_name(split, index) for index in range(params[split])]
        (root / 'VOC2007/ImageSets/Main' / listing).write_text('\n'.join(names) + '\n')
        with open(root / 'annotations' / annotation, 'w') as file:
            json.dump(_coco([boxes[split, index] for index in range(params[split])], names,
                            params), file)
    (root / 'shapes.json').write_text(json.dumps(params, indent=1) + '\n')


def _one_thread() -> None:
    import cv2
    cv2.setNumThreads(0)


def _name(split: str, index: int) -> str:
    return f'{split}_{index + 1:05d}'


def picture(split: str, index: int, *, seed: int = 0, hard: bool = False,
            size: int | None = None):
    """One image of the set without files: `(uint8 BGR array, [(label, x1, y1, x2, y2), ...])`."""
    import numpy as np

    from .drawing import EASY, HARD, render
    recipe = HARD if hard else EASY
    assert recipe.classes == metainfo(hard)['classes'], recipe.classes
    rng = np.random.default_rng([seed, SPLITS[split][0], index])
    return render(rng, size or (160 if hard else 96), recipe)


def _make(task, root: Path, params: dict):
    import cv2
    split, index = task
    image, boxes = picture(split, index, seed=params['seed'], hard=params['hard'],
                           size=params['size'])
    name = _name(split, index)
    ok, code = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert ok, name
    (root / 'VOC2007/JPEGImages' / f'{name}.jpg').write_bytes(code.tobytes())
    (root / 'VOC2007/Annotations' / f'{name}.xml').write_text(_xml(name, boxes, params))
    return task, boxes


def _xml(name: str, boxes, params: dict) -> str:
    objects = ''.join(
        f'  <object>\n    <name>{params["classes"][label]}</name>\n'
        '    <pose>Unspecified</pose>\n    <truncated>0</truncated>\n'
        '    <difficult>0</difficult>\n'
        f'    <bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin>'
        f'<xmax>{x2 + 1}</xmax><ymax>{y2 + 1}</ymax></bndbox>\n  </object>\n'
        for label, x1, y1, x2, y2 in boxes)
    size = params['size']
    return (f'<annotation>\n  <folder>VOC2007</folder>\n  <filename>{name}.jpg</filename>\n'
            f'  <size><width>{size}</width><height>{size}</height><depth>3</depth></size>\n'
            f'  <segmented>0</segmented>\n{objects}</annotation>\n')


def _coco(boxes_of_images, names, params: dict) -> dict:
    annotations = []
    for image_id, boxes in enumerate(boxes_of_images, 1):
        for label, x1, y1, x2, y2 in boxes:
            w, h = x2 - x1, y2 - y1
            annotations.append(dict(id=len(annotations) + 1, image_id=image_id, iscrowd=0,
                                    category_id=label + 1, bbox=[x1, y1, w, h], area=w * h))
    return dict(
        info=dict(description='hgd_det shapes', version=str(params['version'])),
        images=[dict(id=image_id, file_name=f'{name}.jpg', width=params['size'],
                     height=params['size']) for image_id, name in enumerate(names, 1)],
        annotations=annotations,
        categories=[dict(id=i, name=name, supercategory='shape')
                    for i, name in enumerate(params['classes'], 1)])
