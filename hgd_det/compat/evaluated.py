"""Where mmcv and mmdet evaluate text of a config as Python (`eval`), it is looked up instead.

An operator of `nms.type` is one of a few names, and so is OpenCV's way of warping. As a module's own global
comes before the built-in, the modules are given an `eval` that knows no expressions.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from hgd_det.errors import UserError


def apply() -> None:
    import cv2
    nms = import_module('mmcv.ops.nms')    # `mmcv.ops` has a function of that name
    motion = import_module('mmdet.models.task_modules.tracking.camera_motion_compensation')
    nms.eval = among('nms.type', vars(nms), ('nms', 'soft_nms', 'nms_match', 'nms_rotated', 'nms_quadri'))
    ways = {f'cv2.{name}': value for name, value in vars(cv2).items() if name.startswith('MOTION_')}
    motion.eval = among('warp_mode', ways, ways)


def among(what: str, known: Mapping, names) -> Callable[[str], object]:
    """An `eval` for these names alone."""
    def look_up(text: str):
        if text not in names or text not in known:
            there = ', '.join(name for name in names if name in known)
            raise UserError(f'{what}={text!r}: there is {there}; expressions are not evaluated')
        return known[text]
    return look_up
