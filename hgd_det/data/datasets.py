"""mmdet datasets and image loading for data that is not spotless.

On sound data they give exactly what mmdet's own classes give. What they cannot use they leave
out, count, and log: once when the set is loaded (boxes, annotations, lists), and image by image
while training runs. `hgd-det data check` names every case beforehand.
"""
from __future__ import annotations

import os.path as osp
from collections import Counter
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset, XMLDataset
from mmdet.registry import DATASETS, TRANSFORMS
from mmengine import fileio
from mmengine.logging import print_log

from hgd_det import MAX_PIXELS
from hgd_det.errors import UserError

from . import coco, images, voc
from .findings import KINDS, plain
from .sources import VOC_CLASSES

_EXAMPLES = 3


class _Counting:
    """Counts what a dataset leaves out: `self.skipped[kind]`, with a few examples for the log."""

    def _reset(self) -> None:
        self.skipped, self._shown = Counter(), {}

    def _skip(self, kind: str, where: str, detail: str = '') -> None:
        self.skipped[kind] += 1
        shown = self._shown.setdefault(kind, [])
        if len(shown) < _EXAMPLES:
            shown.append(plain(f'{where} {detail}'.strip()))

    def _summary(self, count: int) -> None:
        if not self.skipped:
            return
        parts = [f'{kind} {times} (such as {"; ".join(self._shown[kind])})'
                 for kind, times in self.skipped.items()]
        print_log(f'{type(self).__name__} {self.ann_file}: {count} images; left out or corrected: '
                  + ', '.join(parts) + '. `hgd-det data check` tells more',
                  logger='current', level=30)

    def filter_data(self) -> list[dict]:
        kept = super().filter_data()
        if not kept:
            raise UserError(f'{type(self).__name__} {self.ann_file}: filter_cfg={self.filter_cfg} '
                            f'leaves none of the {len(self.data_list)} images')
        if gone := len(self.data_list) - len(kept):
            print_log(f'{type(self).__name__} {self.ann_file}: {gone} of {len(self.data_list)} '
                      f'images left out by filter_cfg={self.filter_cfg}', logger='current')
        return kept


@DATASETS.register_module()
class VOCFolder(_Counting, XMLDataset):
    """A folder in VOC layout with any classes, given as `metainfo=dict(classes=(...))`.

    Differs from mmdet's `XMLDataset` only where that would stop or train on nonsense:

    - images may end in .png and so on, not only in .jpg;
    - an annotation that is missing, malformed or has a DOCTYPE leaves its image out;
    - boxes without area, inverted, or not numeric are left out; boxes that reach more than a
      pixel out of the image are clipped to it;
    - a missing image is left out in training. In testing it stays, so that its objects count as
      missed (see `RobustLoadImage`).
    """

    def load_data_list(self) -> list[dict]:
        classes = self._metainfo.get('classes')
        if not classes:
            raise UserError("VOCFolder needs the class names: metainfo=dict(classes=('a', 'b'))")
        self.cat2label = {name: label for label, name in enumerate(classes)}
        # mmdet's VOC metric takes a set of this type to have VOC's own classes.
        own = tuple(classes) == VOC_CLASSES
        self._metainfo['dataset_type'] = next(
            (year for year in ('VOC2007', 'VOC2012') if own and year in self.sub_data_root), None)
        self._reset()
        try:
            text = fileio.get_text(self.ann_file, backend_args=self.backend_args)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'VOCFolder cannot read the list {self.ann_file}: {error}') from None
        names, problems = voc.parse_list(text)
        for kind, detail, line in problems:
            self._skip(kind, f'line {line}', detail)
        if not names:
            raise UserError(f'VOCFolder: {self.ann_file} names no image')
        parsed = (self._parse(name) for name in names)
        data_list = [info for info in parsed if info is not None]
        self._summary(len(data_list))
        strange = self._shown.get('class_unknown')
        if strange and not self.test_mode and not any(info['instances'] for info in data_list):
            raise UserError(f'VOCFolder: {self.ann_file} shows no object of the classes '
                            f'{", ".join(classes)}, but others ({"; ".join(strange)}); give their names, '
                            'metainfo=dict(classes=(...))')
        if not data_list:
            raise UserError(f'VOCFolder: none of the {len(names)} images of {self.ann_file} can be '
                            f'used ({dict(self.skipped)}); looked in '
                            f'{osp.join(self.sub_data_root, self.img_subdir)}')
        return data_list

    def _parse(self, name: str) -> dict | None:
        img_path = self._image_path(name)
        xml_path = osp.join(self.sub_data_root, self.ann_subdir, f'{name}.xml')
        if img_path is None:
            return None
        try:
            annotation = voc.read(Path(xml_path)) if self.backend_args is None else \
                voc.parse(fileio.get(xml_path, backend_args=self.backend_args))
        except voc.AnnotationError as error:
            return self._skip(error.kind, name, error.detail)
        except OSError as error:
            return self._skip('annotation_missing', name, type(error).__name__)
        size = annotation.size
        if size is None or min(size) <= 0:
            size = images.header_size(img_path) or size or (0, 0)
        return dict(img_path=img_path, img_id=name, xml_path=xml_path, height=size[1],
                    width=size[0], instances=self._instances(name, annotation, size, img_path))

    def _image_path(self, name: str) -> str | None:
        path = osp.join(self.sub_data_root, self.img_subdir, f'{name}.jpg')
        if self.backend_args is not None or osp.isfile(path):
            return path
        other = images.find(Path(osp.dirname(path)), osp.basename(name))
        if other is not None:
            return str(other)
        self._skip('image_missing', name, 'counts as missed' if self.test_mode else '')
        return path if self.test_mode else None

    def _instances(self, name: str, annotation, size, img_path: str) -> list[dict]:
        instances, real = [], None
        for thing in annotation.objects:
            if thing.name not in self.cat2label:
                self._skip('class_unknown', name, repr(thing.name))
                continue
            if thing.box is None:
                self._skip('coordinate_bad', name, thing.name)
                continue
            box = voc.mmdet_box(thing.box)
            kind = voc.judge(box, size)
            if kind == 'box_outside':
                # <size> may be what is wrong: the image itself decides, before anything is cut.
                real = real or images.header_size(img_path) or size
                kind = voc.judge(box, real)
            if kind:
                self._skip(kind, name, f'{thing.name} {[int(value) for value in thing.box]}')
            if kind == 'box_outside':
                box = [min(max(value, 0), limit) for value, limit in zip(box, (*real, *real),
                                                                         strict=True)]
                kind = voc.judge(box, real)
            if kind:
                continue
            small = False
            if self.bbox_min_size is not None:
                assert not self.test_mode
                small = min(box[2] - box[0], box[3] - box[1]) < self.bbox_min_size
            instances.append(dict(bbox=box, bbox_label=self.cat2label[thing.name],
                                  ignore_flag=int(bool(thing.difficult) or small)))
        return instances


@DATASETS.register_module()
class CocoFolder(_Counting, CocoDataset):
    """`CocoDataset` that counts the boxes it leaves out, and refuses classes the file lacks.

    mmdet drops boxes without area silently, and with a class name that is not in the file trains
    on other labels than the config says.
    """

    def load_data_list(self) -> list[dict]:
        self._reset()
        if not osp.isfile(self.ann_file) and self.backend_args is None:
            raise UserError(f'CocoFolder: {self.ann_file} is not there')
        try:
            data_list = super().load_data_list()
        except UserError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError) as error:
            reason = f'an entry has no {error}' if isinstance(error, KeyError) else \
                f'{type(error).__name__}: {error}'
            raise UserError(f'CocoFolder cannot read {self.ann_file} ({reason}); `hgd-det data check` on its '
                            'folder finds every such place') from error
        if len(self.cat_ids) != len(self.metainfo['classes']):
            raise UserError(
                f'CocoFolder: the config names {len(self.metainfo["classes"])} classes, '
                f'{self.ann_file} knows {len(self.cat_ids)} of them; see metainfo=dict(classes='
                f'{tuple(self.metainfo["classes"])}) and the categories of the file')
        self._summary(len(data_list))
        return data_list

    def parse_data_info(self, raw_data_info: dict):
        image = raw_data_info['raw_img_info']
        if not coco.numbers([image['width'], image['height']], 2):
            raise UserError(f'CocoFolder: {self.ann_file} gives {plain(repr(image["file_name"]))} no width '
                            'and height that are numbers; `hgd-det data check` names every such image')
        kept = []
        for ann in raw_data_info['raw_ann_info']:
            kind = self._problem(ann, image)
            if kind:
                self._skip(kind, image['file_name'], f'{ann.get("bbox")}')
            else:
                kept.append(ann if 'area' in ann else
                            dict(ann, area=ann['bbox'][2] * ann['bbox'][3]))
        return super().parse_data_info(dict(raw_data_info, raw_ann_info=kept))

    def _problem(self, ann: dict, image: dict) -> str | None:
        if ann.get('category_id') not in self.cat_ids:
            return 'class_unknown'
        if not coco.numbers(ann.get('bbox'), 4):
            return 'coordinate_bad'
        if kind := coco.judge_box(ann['bbox'], None):
            return kind
        if ann.get('area', 1) <= 0:  # mmdet's own rule
            return 'box_zero'
        x, y, w, h = ann['bbox']
        if min(x + w, image['width']) <= max(x, 0) or min(y + h, image['height']) <= max(y, 0):
            return 'box_outside'
        return None


@TRANSFORMS.register_module()
class RobustLoadImage(LoadImageFromFile):
    """`LoadImageFromFile` that a broken file does not stop; every such file is counted and logged.

    Args:
        broken: `skip` for training: the dataset takes another image. `blank` for testing: an
            even grey image of the annotated size, whose objects then count as missed.
        max_pixels: an image whose header claims more, or tells no size, is broken, and not decoded.
    """

    def __init__(self, broken: str = 'skip', max_pixels: int = MAX_PIXELS, **kwargs):
        super().__init__(**kwargs)
        if broken not in ('skip', 'blank'):
            raise UserError(f"RobustLoadImage: broken={broken!r}; choose 'skip' or 'blank'")
        self.broken, self.max_pixels = broken, max_pixels
        # In shared memory: the processes of a data loader count together.
        self._count = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._seen = set()

    @property
    def count(self) -> int:
        """How often a broken image was met, in all processes of the data loader."""
        return int(self._count)

    def transform(self, results: dict) -> dict | None:
        path = results['img_path']
        try:
            image = self._read(path)
        except Exception as error:  # decoders and storage raise anything; all mean "broken"
            self._count += 1
            self._log(path, f'cannot be loaded ({type(error).__name__}: {error}); ' + (
                'another image takes its place' if self.broken == 'skip' else
                'a blank one takes its place'))
            if self.broken == 'skip':
                return None
            # What was annotated may be as wrong as the file.
            height, width = (int(min(max(1, results.get(key) or 1), 4096)) for key in ('height', 'width'))
            image = np.full((height, width, 3), 128, np.uint8)
        if self.to_float32:
            image = image.astype(np.float32)
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results

    def _read(self, path: str):
        data = fileio.get(path, backend_args=self.backend_args)
        facts = images.Facts()
        kind, *_, bomb = images.header(data, facts)
        if facts.stored is None and not bomb:
            raise ValueError(KINDS['image_undecodable'][1])
        if bomb or facts.stored[0] * facts.stored[1] > self.max_pixels:
            raise ValueError(bomb or f'claims {facts.stored[0]}x{facts.stored[1]} pixels')
        image = mmcv.imfrombytes(data, flag=self.color_type, backend=self.imdecode_backend)
        if image is None:
            raise ValueError(KINDS['image_undecodable'][1])
        if images.truncated(data, kind):
            self._log(path, 'ends early; it is used as far as it goes')
        return image

    def _log(self, path: str, what: str) -> None:
        if path not in self._seen:
            self._seen.add(path)
            print_log(f'{plain(path)} {what} ({self.count} broken so far)', logger='current', level=30)

    def __repr__(self) -> str:
        return super().__repr__()[:-1] + f', broken={self.broken!r})'
