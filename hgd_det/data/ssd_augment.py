"""SSD's augmentation (SSD, section 2.2) in one step, several times as fast as mmdet's own steps."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes, autocast_box_type
from numpy import random

from hgd_det import MAX_PIXELS
from hgd_det.errors import UserError

from . import images
from .datasets import RobustLoadImage
from .ssd_geometry import Geometry, Window

_DECODE = {1: 'color', 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
           8: cv2.IMREAD_REDUCED_COLOR_8}


@TRANSFORMS.register_module()
class SSDAugment(RobustLoadImage):
    """`RobustLoadImage`, `Expand`, `MinIoURandomCrop`, `Resize`, `RandomFlip` and `PhotoMetricDistortion`.

    Comes after `LoadAnnotations`, and before `PackDetInputs`. The arguments have the names, meanings and
    defaults of those transforms; `broken`, `max_pixels` and `backend_args` are `RobustLoadImage`'s.

    The image's header tells its size; with that and the boxes the window is drawn (`ssd_geometry`), before
    anything is decoded. Then the image is decoded as coarsely as the window allows, the window is cut and
    resized, and only these pixels are distorted. Nothing is drawn that mmdet does not draw, in the same
    order, so that under one seed both give the same sample:

    - boxes, labels and flags bit for bit;
    - pixels up to float rounding, where the image is decoded whole. mmdet lays the image on the canvas
      first and distorts last, the canvas with it; so does this. Only what the window does not show of the
      canvas is never made;
    - where a JPEG is decoded at 1/2, 1/4 or 1/8 (the window is then at least as large as the output at
      that scale), each pixel is the mean of those it stands for. mmdet skips some of those when it
      resizes: its pixels are rougher. `reduce=False` always decodes whole.

    `also` are more sizes, (width, height), to show the same window at, with the same distortion (`two_sizes`
    sets it): those pictures are `results['also']`. A JPEG that was decoded too coarsely for one of them is
    decoded once more.
    """

    def __init__(self, scale: tuple[int, int], mean: Sequence[float] = (123.675, 116.28, 103.53),
                 ratio_range: tuple[float, float] = (1, 4), expand_prob: float = 0.5,
                 min_ious: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size: float = 0.3,
                 flip_prob: float = 0.5, brightness_delta: float = 32,
                 contrast_range: tuple[float, float] = (0.5, 1.5),
                 saturation_range: tuple[float, float] = (0.5, 1.5), hue_delta: float = 18,
                 swap_channels: bool = True, reduce: bool = True, broken: str = 'skip',
                 max_pixels: int = MAX_PIXELS, backend_args: dict | None = None):
        super().__init__(broken=broken, max_pixels=max_pixels, backend_args=backend_args)
        for name, (low, high) in dict(ratio_range=ratio_range, contrast_range=contrast_range,
                                      saturation_range=saturation_range).items():
            if not 0 < low <= high:
                raise UserError(f'SSDAugment: {name}={(low, high)}; give two bounds above 0, the lower first')
        if ratio_range[0] < 1:
            raise UserError(f'SSDAugment: ratio_range={tuple(ratio_range)}; the canvas cannot be smaller '
                            'than the image, 1')
        if not 0 < min_crop_size <= 1 or not all(0 <= iou <= 1 for iou in min_ious):
            raise UserError(f'SSDAugment: min_crop_size={min_crop_size}, min_ious={tuple(min_ious)}; these '
                            'are shares, between 0 and 1')
        self.geometry = Geometry(tuple(scale), tuple(ratio_range), expand_prob, tuple(min_ious),
                                 min_crop_size, flip_prob)
        self.photometry = Photometry(brightness_delta, tuple(contrast_range), tuple(saturation_range),
                                     hue_delta, swap_channels)
        self.mean, self.reduce = tuple(mean), reduce
        # as `Expand` has it: the mean is given as RGB, and loses its fraction in an image of bytes
        self._ground = np.full((scale[1], scale[0], 3), self.mean[::-1], np.float64).astype(np.uint8)
        self._boxes = self._plan = None
        self.also: Sequence[tuple[int, int]] = ()

    @autocast_box_type()
    def transform(self, results: dict) -> dict | None:
        if unknown := [key for key in ('gt_masks', 'gt_seg_map', 'proposals') if key in results]:
            raise UserError(f'SSDAugment moves boxes, but no {unknown[0]}; use the transforms it stands for')
        if 'gt_bboxes' not in results:
            raise UserError("SSDAugment needs boxes: dict(type='LoadAnnotations', with_bbox=True) before it")
        self._boxes, self._plan = results['gt_bboxes'].tensor.numpy(), None
        if super().transform(results) is None:
            return None
        image = results['img']
        window, reduction = self._plan or (self._draw(image), 1)
        distort = self.photometry.draw()
        if self.also:
            results['also'] = [distort(self._view(window, size, image, reduction, results['img_path']))
                               for size in self.also]
        results.update(
            img=distort(window.view(image, reduction, self._ground)),
            img_shape=window.output[::-1], ori_shape=window.image[::-1], scale=window.output,
            scale_factor=window.scale, keep_ratio=False, homography_matrix=window.homography,
            flip=window.flip, flip_direction='horizontal' if window.flip else None,
            gt_bboxes=HorizontalBoxes(window.boxes))
        for key in ('gt_bboxes_labels', 'gt_ignore_flags'):
            if results.get(key) is not None:
                results[key] = results[key][window.keep]
        return results

    def _read(self, path: str) -> np.ndarray:
        """For RobustLoadImage: the image, no finer than its window needs, and `_plan`, how it is reduced."""
        local_jpeg = self.backend_args is None and path.lower().endswith(('.jpg', '.jpeg'))
        size = images.header_size(path) if self.reduce and local_jpeg else None
        if size:
            window = self.geometry.draw(size, self._boxes)
            image = self._decode(path, window.reduction)
            if image.shape[:2] == window.shape(window.reduction):
                self._plan = window, window.reduction
                return image
        # the header tells nothing, or something else than the decoder finds: the image itself decides
        return self._decode(path, 1)

    def _view(self, window: Window, size: tuple[int, int], image: np.ndarray, reduction: int, path: str
              ) -> np.ndarray:
        """The window at another size, out of an image that is fine enough for it."""
        window = replace(window, output=size)
        if window.reduction < reduction:
            image, reduction = self._decode(path, window.reduction), window.reduction
        ground = np.ascontiguousarray(np.broadcast_to(self._ground[:1, :1], (*size[::-1], 3)))
        return window.view(image, reduction, ground)

    def _decode(self, path: str, reduction: int) -> np.ndarray:
        self.color_type = _DECODE[reduction]
        return super()._read(path)

    def _draw(self, image: np.ndarray) -> Window:
        return self.geometry.draw(image.shape[1::-1], self._boxes)

    def __repr__(self) -> str:
        return (f'SSDAugment({self.geometry}, {self.photometry}, mean={self.mean}, reduce={self.reduce}, '
                f'broken={self.broken!r})')


@dataclass(frozen=True)
class Photometry:
    """`PhotoMetricDistortion`: the same draws and the same arithmetic, with fewer passes over the pixels."""
    brightness_delta: float
    contrast_range: tuple[float, float]
    saturation_range: tuple[float, float]
    hue_delta: float
    swap_channels: bool

    def draw(self) -> Distortion:
        contrast_last, brighten, contrast, saturate, turn = (not random.randint(2), *map(
            bool, (random.randint(2) for _ in range(4))))
        swap = bool(self.swap_channels and random.randint(2))
        delta = random.uniform(-self.brightness_delta, self.brightness_delta)
        alpha = random.uniform(*self.contrast_range)
        saturation = random.uniform(*self.saturation_range)
        hue = random.uniform(-self.hue_delta, self.hue_delta)
        order = random.permutation(3)
        return Distortion(delta if brighten else None, alpha if contrast else None, contrast_last,
                          saturation if saturate else None, hue if turn else None, order if swap else None)


@dataclass(frozen=True)
class Distortion:
    """What was drawn for one sample; None is left undone."""
    brightness: float | None
    contrast: float | None
    contrast_last: bool
    saturation: float | None
    hue: float | None
    order: np.ndarray | None    # of the channels

    def __call__(self, image: np.ndarray) -> np.ndarray:
        image = image.astype(np.float32)
        if self.brightness is not None:
            image += self.brightness
        if self.contrast is not None and not self.contrast_last:
            image *= self.contrast
        image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        if self.hue is not None or self.saturation is not None:
            # OpenCV takes hues beyond 360 degrees as what they are, but not those below 0
            image = cv2.transform(image, np.float64([
                [1, 0, 0, 0 if self.hue is None else self.hue % 360],
                [0, 1 if self.saturation is None else self.saturation, 0, 0], [0, 0, 1, 0]]))
        if self.saturation is not None and self.saturation > 1:
            np.clip(image[..., 1], 0, 1, out=image[..., 1])
        image = cv2.cvtColor(image, cv2.COLOR_HSV2BGR)
        if self.contrast is not None and self.contrast_last:
            image *= self.contrast
        # channel by channel in memory, as the model takes them: PackDetInputs has nothing left to copy
        planes = image.transpose(2, 0, 1)
        planes = np.ascontiguousarray(planes) if self.order is None else planes[self.order]
        return planes.transpose(1, 2, 0)
