"""Looks at one image file as training would: can it be decoded, and does it show what it should?"""
from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

MAX_BYTES = 512 << 20
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
_FORMATS = {'JPEG': ('.jpg', '.jpeg'), 'MPO': ('.jpg', '.jpeg'), 'PNG': ('.png',),
            'BMP': ('.bmp',), 'WEBP': ('.webp',), 'TIFF': ('.tif', '.tiff'), 'GIF': ('.gif',)}
_ORIENTATION = 0x0112


@dataclass
class Facts:
    """`stored` and `shown` are (width, height) before and after EXIF; None when unknown."""
    problems: list = field(default_factory=list)  # (kind, detail)
    stored: tuple | None = None
    shown: tuple | None = None
    rotated: bool = False
    digest: bytes | None = None


def find(folder: Path, name: str) -> Path | None:
    """The image `name` with any usual suffix, `.jpg` first."""
    for suffix in SUFFIXES:
        for spelling in (suffix, suffix.upper()):
            if os.path.isfile(path := folder / (name + spelling)):  # False too where the name is too long
                return path
    return None


def header_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """(width, height) as loading will show it, from the header alone; None when unreadable."""
    from PIL import Image
    try:
        with Image.open(path) as image:
            size, turned = image.size, _orientation(image)
        return size[::-1] if turned in (5, 6, 7, 8) else size
    except Exception:  # decoders raise many types on hostile files; all mean "unreadable"
        return None


def _orientation(image) -> int:
    """1 as it lies, 2..8 turned or mirrored. Pillow's `getexif` would decode a whole PNG for it."""
    from PIL import Image
    if image.format != 'PNG':
        return image.getexif().get(_ORIENTATION, 1)
    exif = Image.Exif()
    exif.load(image.info.get('exif') or b'')
    return exif.get(_ORIENTATION, 1)


def probe(path: Path, max_pixels: int) -> Facts:
    """Read, hash and decode one file. Nothing is decoded whose header claims too many pixels."""
    facts = Facts()

    def problem(kind, detail=''):
        facts.problems.append((kind, detail))
        return facts

    if not os.path.exists(path):  # nor could it where no file can have the name
        return problem('image_missing', path.name)
    try:
        size = path.stat().st_size
        if not path.is_file():
            return problem('image_undecodable', 'not a file')
        if size > MAX_BYTES:
            return problem('image_huge', f'{size} bytes')
        data = path.read_bytes()
    except OSError as error:
        return problem('image_undecodable', str(error))
    if not data:
        return problem('image_undecodable', 'empty file')
    facts.digest = hashlib.blake2b(data, digest_size=16).digest()
    kind, mode, orientation, depth, bomb = header(data, facts)
    if bomb or (facts.stored and facts.stored[0] * facts.stored[1] > max_pixels):
        return problem('image_huge', bomb or f'{facts.stored[0]}x{facts.stored[1]}')
    if facts.stored is None:  # OpenCV may know the format, and take as much memory as it claims to need
        return problem('image_undecodable', 'no image, or of a format whose size cannot be read')
    shape = _decode(data)
    if shape is None:
        if truncated(data, kind):
            return problem('image_truncated', f'{len(data)} bytes of {kind}')
        return problem('image_undecodable', f'broken {kind}')
    facts.shown = (shape[1], shape[0])
    facts.rotated = orientation in range(2, 9)
    if truncated(data, kind):
        problem('image_truncated', f'{len(data)} bytes of {kind}')
    if kind and path.suffix.lower() not in _FORMATS.get(kind, (path.suffix.lower(),)):
        problem('image_extension', f'{kind} named {path.suffix}')
    if mode == 'CMYK':
        problem('image_cmyk')
    elif mode in ('LA', 'RGBA', 'PA', 'La', 'RGBa'):
        problem('image_alpha')
    elif mode == 'P':
        problem('image_palette')
    elif mode in ('1', 'L', 'I', 'F') or (mode or '').startswith('I;'):
        problem('image_grey')
    if depth == 16:
        problem('image_16bit')
    return facts


def header(data: bytes, facts: Facts):
    """Format, mode, EXIF orientation, bit depth, and a message when the size is a bomb."""
    from PIL import Image
    try:
        with Image.open(io.BytesIO(data)) as image:
            facts.stored = image.size
            mode = image.mode
            depth = data[24] if image.format == 'PNG' else 16 if mode.startswith('I;16') else 8
            return image.format, mode, _orientation(image), depth, ''
    except Image.DecompressionBombError as error:
        return None, None, 1, 8, str(error)
    except Exception:  # unknown or broken header; decoders raise many types
        return None, None, 1, 8, ''


def _decode(data: bytes):
    """Shape of the image as mmcv's default backend decodes it, or None."""
    import cv2
    import numpy as np
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if image is None else image.shape


def truncated(data: bytes, kind: str | None) -> bool:
    """Does the file end early? OpenCV may fill the rest with grey and say nothing; Pillow tells.

    A JPEG that ends with its end marker needs no second decoding.
    """
    if kind is None or (kind in ('JPEG', 'MPO') and data.rstrip(b'\0\r\n').endswith(b'\xff\xd9')):
        return False
    from PIL import Image
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        return False
    except Exception:  # Pillow has many ways to say it; OpenCV did decode something
        return True
