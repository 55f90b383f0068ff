"""What detectors see: their maps at a few stages, and the boxes they find, on the same images.

A map is shown as the mean of its channels' absolute values, scaled to its own range. How alike two maps are
is told by linear CKA (Kornblith et al., ICML 2019), which compares detectors of any number of channels, in
any order: do places that look alike to the one look alike to the other?
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw

from hgd_det.deploy.postprocess import Detections
from hgd_det.deploy.runtime import as_data
from hgd_det.distill.stages import MapSpec, select_stages, survey
from hgd_det.distill.taps import Taps
from hgd_det.errors import UserError
from hgd_det.report.detectors import Detector, Scene
from hgd_det.report.errors import Outcome

SHOWN = 3           # stages, if not told which
SMALLEST = 10       # pixels of a stage's side; smaller ones show nothing
SIDE = 240          # pixels of the longer side of a picture
# Okabe and Ito; told apart by line as well
FOUND, RECALLED, WRONG, MISSED = (86, 180, 233), (240, 228, 66), (213, 94, 0), (255, 255, 255)

Size = tuple[int, int]


@dataclass(frozen=True)
class View:
    """What one detector makes of one image; `maps` by size, each (channels, height, width)."""
    found: Detections
    outcome: Outcome
    maps: dict[Size, np.ndarray]


def stages(detector: Detector) -> dict[Size, MapSpec]:
    """The stage of each spatial size, largest first."""
    view = survey(detector.student.detector, detector.size, detector.name)
    return {size: specs[-1] for size, specs in select_stages(view).items()}


def choose(all_stages: Sequence[dict[Size, MapSpec]], heights: Sequence[int] = ()) -> list[Size]:
    """The sizes to show, largest first: those of these heights, else the last few of the first detector that
    are large enough to show something."""
    if not heights:
        return [size for size in all_stages[0] if min(size) >= SMALLEST][-SHOWN:]
    known = [size for each in all_stages for size in each]
    if unknown := [height for height in heights if height not in {size[0] for size in known}]:
        raise UserError(f'no detector has a stage of height {unknown[0]}; there are '
                        f'{", ".join(str(h) for h in sorted({size[0] for size in known}, reverse=True))}')
    return sorted({size for size in known if size[0] in heights}, reverse=True)


def maps(detector: Detector, specs: dict[Size, MapSpec], sizes: Sequence[Size],
         image: np.ndarray) -> dict[Size, np.ndarray]:
    """The maps of some sizes for an RGB image, stretched to the detector's size."""
    wanted = {size: specs[size].tap for size in sizes if size in specs}
    height, width = detector.size
    pixels = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    network = detector.student.detector
    with torch.no_grad(), Taps(network, wanted.values()) as taps:
        network.extract_feat(network.data_preprocessor(as_data(pixels[None]), False)['inputs'])
    return {size: taps[tap][0].numpy() for size, tap in wanted.items()}


def unit(values: np.ndarray) -> np.ndarray:
    """Stretched to 0..1; a constant map is 0."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def likeness(one: np.ndarray, other: np.ndarray) -> float | None:
    """Linear CKA of two maps over their places, |A'B|^2 / (|A'A| |B'B|) of centred (places, channels), from 0
    to 1; None where sizes differ or a map is constant."""
    if one.shape[1:] != other.shape[1:]:
        return None
    a, b = (part.reshape(len(part), -1).T.astype(np.float64) for part in (one, other))
    a, b = a - a.mean(0), b - b.mean(0)
    scale = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(a.T @ b) ** 2 / scale) if scale else None


# ----------------------------------------------------------------------------------------- drawing
def heat(values: np.ndarray) -> np.ndarray:
    """A map (channels, height, width) as an RGB picture of its size: dark blue where it is weakest, yellow
    where it is strongest."""
    grey = (255 * unit(np.abs(values).mean(0))).round().astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def fitted(image: np.ndarray, side: int = SIDE) -> tuple[int, int]:
    """(height, width) at which an image is shown: its longer side is `side`."""
    factor = side / max(image.shape[:2])
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    return height, width


def draw(scene: Scene, view: View, baseline: Outcome | None = None) -> np.ndarray:
    """The image with what was found: light blue; wide and yellow what `baseline` did not find; thin and
    orange what is wrong; white and dotted the objects that were not found."""
    height, width = fitted(scene.image)
    canvas = Image.fromarray(cv2.resize(scene.image, (width, height), interpolation=cv2.INTER_CUBIC))
    brush = ImageDraw.Draw(canvas)
    factor = np.array([width / scene.image.shape[1], height / scene.image.shape[0]] * 2)
    new = [a == 'found' and baseline is not None and b != 'found'
           for a, b in zip(view.outcome.objects, (baseline or view.outcome).objects, strict=True)]
    for box, kind in zip(view.found.boxes, view.outcome.boxes, strict=True):
        if kind not in ('correct', 'ignored'):
            _box(brush, box * factor, WRONG, 2)
    for box, kind in zip(scene.boxes, view.outcome.objects, strict=True):
        if kind not in ('found', 'ignored'):
            _dotted(brush, box * factor)
    for number, fresh in zip(view.outcome.taken, new, strict=True):
        if number >= 0:
            _box(brush, view.found.boxes[number] * factor, RECALLED if fresh else FOUND, 6 if fresh else 3)
    return np.asarray(canvas)


def _box(brush: ImageDraw.ImageDraw, box: np.ndarray, colour: tuple, line: int) -> None:
    """With a dark hem on both sides, which shows on any ground; the middle of the line is the outline."""
    half = line // 2
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    x1, y1, x2, y2 = x1 - half, y1 - half, max(x1, x2) + half, max(y1, y2) + half
    brush.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0), width=line + 2)
    brush.rectangle((x1, y1, x2, y2), outline=colour, width=line)


def _dotted(brush: ImageDraw.ImageDraw, box: np.ndarray) -> None:
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    for step in range(0, max(x2 - x1, y2 - y1), 10):
        for x, y in ((x1 + step, y1), (x1 + step, y2), (x1, y1 + step), (x2, y1 + step)):
            if x <= x2 and y <= y2:
                brush.rectangle((x - 1, y - 1, x + 4, y + 4), fill=(0, 0, 0))
                brush.rectangle((x, y, x + 3, y + 3), fill=MISSED)


def encode(image: np.ndarray, suffix: str = '.png', quality: int = 85) -> bytes:
    """An RGB picture as the bytes of a file."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix == '.jpg' else []
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()
