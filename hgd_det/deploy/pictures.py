"""Pictures: read upright and in colour whatever their form, drawn on, written; and videos."""
from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from hgd_det import MAX_PIXELS
from hgd_det.checkpoint import atomic_write
from hgd_det.data.images import MAX_BYTES
from hgd_det.deploy.postprocess import Detections
from hgd_det.errors import UserError

FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF', 'GIF')    # of Pillow; others start programs (EPS)
SMALLEST = 480              # pixels of the longer side, below which a drawn picture is enlarged
# Okabe and Ito: told apart with any kind of colour vision
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
           (204, 121, 167))


class Unreadable(Exception):
    """Why a file shows nothing, in words for the user."""


# ----------------------------------------------------------------------------------------- reading
def read(path: Path) -> np.ndarray:
    """RGB uint8 (H, W, 3), turned as EXIF says, of an animation the first frame.

    Grey becomes three equal channels, palettes and CMYK become RGB, of 16 bits the upper 8 stay, and
    alpha is dropped: what lies under transparent pixels shows. For JPEG these are the pixels that
    training sees.
    """
    try:
        if not path.is_file():
            raise Unreadable('not a file' if path.exists() else 'does not exist')
        size = path.stat().st_size
        if size == 0:
            raise Unreadable('empty (0 bytes)')
        if size > MAX_BYTES:
            raise Unreadable(f'too large ({size:,} bytes)')
        with Image.open(path, formats=FORMATS) as image:
            return _rgb(image)
    except UnidentifiedImageError:
        raise Unreadable(f'not an image ({", ".join(FORMATS)})') from None
    except Image.DecompressionBombError as error:
        raise Unreadable(f'too many pixels: {error}') from None
    except PermissionError:
        raise Unreadable('may not be read: permission denied') from None
    except Unreadable:
        raise
    except Exception as error:  # decoders raise many types on hostile files
        raise Unreadable(f'damaged or cut off: {error}') from None


def _rgb(image: Image.Image) -> np.ndarray:
    _check_size(*image.size)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I;16') or (image.mode, image.format) == ('I', 'PNG'):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ('I', 'F'):
        raise Unreadable('32 bits per pixel, whose black and white are not known')
    return np.asarray(image.convert('RGB'))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unreadable(f'too many pixels: claims {width} x {height}')


class Video:
    """The frames of a file, upright, one after another.

    Attributes:
        rate: Frames per second; 25 where the file does not tell.
        count: How many frames the file says it has; 0: it does not.
    """

    def __init__(self, path: Path):
        # one backend, and a path that cannot be taken for an address or a numbered sequence
        self._file = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
        if not self._file.isOpened():
            raise Unreadable('not a video, or of an unknown codec')
        _check_size(int(self._file.get(cv2.CAP_PROP_FRAME_WIDTH)),
                    int(self._file.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        rate = self._file.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= 1000 else 25.0
        self.count = max(0, int(self._file.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        number = 0
        while (frame := self._file.read()[1]) is not None:
            number += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        self._file.release()
        if number < 0.95 * self.count or not number:    # headers round, and some count one too many
            raise Unreadable(f'ends after {number} of {self.count} frames')


# ----------------------------------------------------------------------------------------- drawing
def draw(image: np.ndarray, found: Detections, classes: Sequence[str]) -> np.ndarray:
    """A copy with boxes, names and scores, the best on top. Small images are enlarged by a whole
    factor, so that text fits in."""
    factor = -(-SMALLEST // max(*image.shape[:2], 1)) if max(image.shape[:2]) < SMALLEST else 1
    canvas = Image.fromarray(image)
    canvas = canvas.resize((canvas.width * factor, canvas.height * factor), Image.Resampling.BICUBIC)
    scale = (canvas.width * canvas.height) ** 0.5
    line, font = max(3, round(scale / 250)), font_of(max(12, round(scale / 45)))
    brush = ImageDraw.Draw(canvas)
    order = np.argsort(-found.scores, kind='stable')
    boxes = found.boxes[order] * factor
    colours = [colour(label) for label in found.labels[order]]
    texts = [f'{classes[label]} {score:.2f}' for label, score in
             zip(found.labels[order], found.scores[order], strict=True)]
    for box, fill in reversed(list(zip(boxes, colours, strict=True))):
        _outline(brush, box, fill, line, canvas.size)
    places = _places(boxes, texts, font, line, canvas.size)
    for place, text, fill in reversed(list(zip(places, texts, colours, strict=True))):
        brush.rectangle(place, fill)
        brush.text((place[0] + line, place[1]), text, _contrast(fill), font)
    return np.asarray(canvas)


def colour(label: int) -> tuple[int, int, int]:
    """One per class: seven hues, then these mixed with white, then with black; from 21 on again."""
    mixed, part = ((0, 0), (255, 0.5), (0, 0.4))[label // len(COLOURS) % 3]
    return tuple(round(part * mixed + (1 - part) * value) for value in COLOURS[label % len(COLOURS)])


def _contrast(fill: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever is read better; luminance as W3C's guidelines define it."""
    red, green, blue = ((value / 255) ** 2.2 for value in fill)
    return (0, 0, 0) if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else (255, 255, 255)


def _outline(brush: ImageDraw.ImageDraw, box: np.ndarray, fill: tuple, line: int,
             size: tuple[int, int]) -> None:
    """The box in its colour with a contrasting hem on either side, wholly within the image."""
    hem = max(1, line // 4)
    limit = np.array(size * 2) - 1
    x1, y1, x2, y2 = (int(v) for v in np.clip(np.round(box), 0, limit))
    brush.rectangle((x1, y1, x2, y2), outline=_contrast(fill), width=line + 2 * hem)
    if x2 - x1 > 2 * hem and y2 - y1 > 2 * hem:
        brush.rectangle((x1 + hem, y1 + hem, x2 - hem, y2 - hem), outline=fill, width=line)


def _places(boxes: np.ndarray, texts: Sequence[str], font, pad: int,
            size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Where each text goes: above its box, inside it or below, where no better one lies already."""
    ascent, descent = font.getmetrics()
    height, taken = ascent + descent, np.zeros((0, 4))
    for box, text in zip(boxes, texts, strict=True):
        width = int(font.getlength(text)) + 2 * pad
        x = int(max(0, min(box[0], size[0] - width)))
        places = []
        for y in (box[1] - height, box[1], box[3], box[3] - height):
            y = int(max(0, min(y, size[1] - height)))
            places.append((x, y, x + width, y + height))
        free = [place for place in places if not _overlap(place, taken)]
        taken = np.vstack([taken, (free or places)[0]])
    return [tuple(int(v) for v in place) for place in taken]


def _overlap(place: Sequence[int], others: np.ndarray) -> bool:
    return bool(((others[:, 0] < place[2]) & (others[:, 2] > place[0])
                 & (others[:, 1] < place[3]) & (others[:, 3] > place[1])).any())


@functools.lru_cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic and more."""
    from matplotlib import get_data_path
    return ImageFont.truetype(f'{get_data_path()}/fonts/ttf/DejaVuSans.ttf', size)


# ----------------------------------------------------------------------------------------- writing
def write(image: np.ndarray, path: Path) -> None:
    """An RGB picture in the format of its suffix."""
    done, data = cv2.imencode(path.suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise UserError(f'{path}: a picture of {image.shape[1]} x {image.shape[0]} pixels cannot be '
                        'written in this format')
    atomic_write(data.tobytes(), path)


class VideoFile:
    """A video that is written frame by frame; it takes its size from the first, and its name at the end."""

    def __init__(self, path: Path, rate: float):
        self.path, self.rate, self._file = path, rate, None
        self._made = path.with_name(f'.{path.stem}.{os.getpid()}.tmp{path.suffix}')

    def add(self, image: np.ndarray) -> None:
        if self._file is None:
            self._file = self._open(image.shape[1], image.shape[0])
        self._file.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for codec in ('mp4v', 'MJPG'):    # the first has no room for some frame rates
            file = cv2.VideoWriter(str(self._made.absolute()), cv2.CAP_FFMPEG,
                                   cv2.VideoWriter_fourcc(*codec), self.rate, (width, height))
            if file.isOpened():
                return file
        raise UserError(f'{self.path} cannot be written: this OpenCV encodes no such video; leave '
                        'pictures out with --no-pictures')

    def close(self) -> None:
        if self._file is not None:
            self._file.release()
            os.replace(self._made, self.path)

    def discard(self) -> None:
        if self._file is not None:
            self._file.release()
        self._made.unlink(missing_ok=True)
