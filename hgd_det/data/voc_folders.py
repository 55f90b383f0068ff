"""Several lists of images in VOC layout as one data set."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from mmdet.datasets import ConcatDataset
from mmdet.registry import DATASETS

from hgd_det.errors import UserError

from .datasets import VOCFolder


@DATASETS.register_module()
class VOCFolders(ConcatDataset):
    """The images of one or more lists, such as VOC 2007 and 2012 trainval.

    Each list lies in its own VOC folder, in `ImageSets/`, and the folder's images and annotations
    are found from there. One flat entry in a config instead of a concatenation of entries: another
    folder, other lists and other classes are given each by a single `--cfg-options`.

    Args:
        ann_file: one list or several, below `data_root` or absolute.
        data_root: where the folders are.
        metainfo: `dict(classes=(...))`, the same for all.
        pipeline, filter_cfg, test_mode: see `VOCFolder`.
        indices: of each list only the first so many images, or these; for trials.
    """

    def __init__(self, ann_file: str | Sequence[str], data_root: str = '', *, metainfo: dict,
                 pipeline: Sequence = (), filter_cfg: dict | None = None, test_mode: bool = False,
                 indices: int | Sequence[int] | None = None, lazy_init: bool = False) -> None:
        lists = [ann_file] if isinstance(ann_file, str) else list(ann_file)
        if not lists:
            raise UserError("VOCFolders: ann_file is empty; give at least one list of images, such "
                            "as 'VOC2007/ImageSets/Main/trainval.txt'")
        # The years differ in `dataset_type`, which is VOCFolder's own remark for mmdet's VOC metric
        super().__init__([
            VOCFolder(ann_file=one, data_root=data_root, metainfo=metainfo, pipeline=pipeline,
                      data_prefix=dict(sub_data_root=folder_of(one)), filter_cfg=filter_cfg,
                      test_mode=test_mode, indices=indices, lazy_init=lazy_init)
            for one in lists], lazy_init=lazy_init, ignore_keys=['dataset_type'])


def folder_of(listing: str) -> str:
    """The VOC folder of a list: `VOC2007` for `VOC2007/ImageSets/Main/trainval.txt`."""
    parts = PurePath(listing).parts
    if 'ImageSets' not in parts:
        raise UserError(f'VOCFolders: the list {listing!r} is not inside a folder ImageSets, so '
                        'where its images are is not known; use VOCFolder with data_prefix')
    return str(PurePath(*parts[:parts.index('ImageSets')]))
