"""The geometry of SSD's augmentation: drawn and applied to the boxes before a pixel is decoded.

Numbers are drawn in the order of mmdet's `Expand`, `MinIoURandomCrop` and `RandomFlip`, and computed
in the same precision: under the same seed of NumPy both choose the same window and give the same boxes,
bit for bit.
"""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy import random

_TRIALS = 50  # windows tried before another smallest overlap is drawn
_MARGIN = 1e-5  # more than a float32 overlap is ever off


@dataclass(frozen=True)
class Window:
    """What is seen of an image: a patch of the canvas that the image was laid on.

    Sizes and places are (x, y) in pixels of the image at full size; the canvas begins at (0, 0).
    """
    image: tuple[int, int]  # size
    offset: tuple[int, int]  # of the image on the canvas
    patch: tuple[int, int, int, int]  # x1, y1, x2, y2 on the canvas
    output: tuple[int, int]  # size the patch is resized to
    flip: bool
    keep: np.ndarray  # which of the boxes the patch keeps
    boxes: np.ndarray  # those, as they lie on the output

    @property
    def scale(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.patch
        return self.output[0] / (x2 - x1), self.output[1] / (y2 - y1)

    @property
    def homography(self) -> np.ndarray:
        """From the patch to the output, as mmdet's `Resize` and `RandomFlip` note it."""
        (x, y), width = self.scale, self.output[0]
        return np.float32([[-x, 0, width] if self.flip else [x, 0, 0], [0, y, 0], [0, 0, 1]])

    @property
    def reduction(self) -> int:
        """The largest of 8, 4, 2, 1 that the image can shrink by with the patch as large as the output."""
        return next((by for by in (8, 4, 2) if max(self.scale) * by <= 1), 1)

    def shape(self, reduction: int) -> tuple[int, int]:
        """(height, width) of the image as JPEG decoders reduce it."""
        return -(-self.image[1] // reduction), -(-self.image[0] // reduction)

    def view(self, image: np.ndarray, reduction: int, ground: np.ndarray) -> np.ndarray:
        """The output, out of the image decoded at 1/reduction; `ground` is an output of bare canvas."""
        seen = self._cut(image, ground) if reduction == 1 else self._warp(image, reduction, ground)
        return cv2.flip(seen, 1) if self.flip else seen

    def _cut(self, image: np.ndarray, ground: np.ndarray) -> np.ndarray:
        """The patch alone is drawn, not the canvas, and resized: mmdet's pixels exactly."""
        x1, y1, x2, y2 = (place - offset for place, offset in zip(self.patch, self.offset * 2, strict=True))
        width, height = self.image
        part = image[max(y1, 0):max(y2, 0), max(x1, 0):max(x2, 0)]
        if not part.size:
            return ground
        if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
            part = cv2.copyMakeBorder(part, max(-y1, 0), max(y2 - height, 0), max(-x1, 0), max(x2 - width, 0),
                                      cv2.BORDER_CONSTANT, value=ground[0, 0].tolist())
        return cv2.resize(part, self.output)

    def _warp(self, image: np.ndarray, reduction: int, ground: np.ndarray) -> np.ndarray:
        """The visible part is sampled where it belongs, to a fraction of a pixel, and laid on the ground.

        Output pixel u shows the canvas at x = (u + 1/2) / scale + x1, pixels having their centre at 1/2.
        That is pixel (x - offset) / reduction - 1/2 of the reduced image.
        """
        step = [1 / (scale * reduction) for scale in self.scale]
        start = [(self.patch[axis] - self.offset[axis]) / reduction + step[axis] / 2 - 0.5 for axis in (0, 1)]
        low, high = [], []
        for axis, length in enumerate(image.shape[1::-1]):  # where a pixel of the image has any weight
            low.append(min(max(int(np.ceil((-1 - start[axis]) / step[axis])), 0), self.output[axis]))
            high.append(min(max(int(np.ceil((length - start[axis]) / step[axis])), 0), self.output[axis]))
        size = high[0] - low[0], high[1] - low[1]
        if min(size) <= 0:
            return ground
        matrix = np.array([[step[0], 0, start[0] + low[0] * step[0]],
                           [0, step[1], start[1] + low[1] * step[1]]])
        seen = ground.copy()
        seen[low[1]:high[1], low[0]:high[0]] = cv2.warpAffine(
            image, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT, borderValue=ground[0, 0].tolist())
        return seen


@dataclass(frozen=True)
class Geometry:
    """The distribution that windows are drawn from."""
    output: tuple[int, int]
    ratio_range: tuple[float, float]
    expand_prob: float
    min_ious: tuple[float, ...]
    min_crop_size: float
    flip_prob: float

    def draw(self, size: tuple[int, int], boxes: np.ndarray) -> Window:
        """A window for an image of `size` (width, height) with `boxes`, an (n, 4) array of float32."""
        canvas, offset = self._expand(size)
        if offset != (0, 0):
            boxes = boxes + np.float32(offset * 2)
        patch, keep, boxes = self._crop(canvas, boxes)
        scale = np.float32([out / (patch[2 + axis] - patch[axis]) for axis, out in enumerate(self.output)])
        boxes = _clip(boxes * np.tile(scale, 2), self.output)
        flip = bool(random.random_sample() < self.flip_prob)
        if flip:
            boxes[:, [0, 2]] = np.float32(self.output[0]) - boxes[:, [2, 0]]
        return Window(size, offset, patch, self.output, flip, keep, boxes)

    def _expand(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size of the canvas, and where on it the image lies."""
        if random.uniform(0, 1) > self.expand_prob:
            return size, (0, 0)
        ratio = random.uniform(*self.ratio_range)
        width, height = size
        left = int(random.uniform(0, width * ratio - width))
        top = int(random.uniform(0, height * ratio - height))
        return (int(width * ratio), int(height * ratio)), (left, top)

    def _crop(self, canvas: tuple[int, int], boxes: np.ndarray) -> tuple[tuple, np.ndarray, np.ndarray]:
        """A patch of the canvas, which boxes it keeps, and these as they lie on it.

        It overlaps every box enough, and holds the centre of one at least; those it holds are kept.
        """
        modes = (1, *self.min_ious, 0)
        width, height = canvas
        places, centers = boxes.tolist(), (boxes[:, :2] + boxes[:, 2:]) / 2
        while True:
            min_iou = modes[random.randint(0, len(modes))]
            if min_iou == 1:
                return (0, 0, width, height), np.ones(len(boxes), bool), boxes
            for _ in range(_TRIALS):
                patch = self._patch(width, height)
                if patch is None or not _may_overlap(patch, places, min_iou - _MARGIN):
                    continue
                if len(boxes) and _overlaps(patch, boxes).min() < np.float64(min_iou):
                    continue
                keep = ((centers > patch[:2]) & (centers < patch[2:])).all(1)
                if keep.any() or not len(boxes):
                    x1, y1, x2, y2 = patch
                    return patch, keep, _clip(boxes[keep] - np.float32([x1, y1] * 2), (x2 - x1, y2 - y1))

    def _patch(self, width: int, height: int) -> tuple[int, int, int, int] | None:
        new_width = random.uniform(self.min_crop_size * width, width)
        new_height = random.uniform(self.min_crop_size * height, height)
        if not 0.5 <= new_height / new_width <= 2:
            return None
        # mmdet's own: one bound given, the other is 1
        left, top = random.uniform(width - new_width), random.uniform(height - new_height)
        patch = int(left), int(top), int(left + new_width), int(top + new_height)
        return None if patch[0] == patch[2] or patch[1] == patch[3] else patch


def _clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.clip(boxes, 0, np.float32(size * 2))


def _may_overlap(patch: tuple, places: list, least: float) -> bool:
    """Has every box an overlap of `least`? In plain numbers: most patches fail, arrays are slow to tell."""
    if least <= 0:
        return True
    left, top, right, bottom = patch
    area = (right - left) * (bottom - top)
    for x1, y1, x2, y2 in places:
        width, height = min(right, x2) - max(left, x1), min(bottom, y2) - max(top, y1)
        if width <= 0 or height <= 0:
            return False
        inside = width * height
        if inside < least * (area + (x2 - x1) * (y2 - y1) - inside):
            return False
    return True


def _overlaps(patch: tuple, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union in float32, rounded as mmdet's `bbox_overlaps` rounds it."""
    one = np.float32(patch)
    size = np.clip(np.minimum(one[2:], boxes[:, 2:]) - np.maximum(one[:2], boxes[:, :2]), 0, None)
    inside = size[:, 0] * size[:, 1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    union = (one[2] - one[0]) * (one[3] - one[1]) + areas - inside
    return inside / np.maximum(union, np.float32(1e-6))
