"""VOC layout: lists and annotations, read safely. Shared by checking, cleaning and training."""
from __future__ import annotations

import math
import os
import stat
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from hgd_det.paths import unsafe

MAX_XML = 4 << 20   # some ten thousand objects; what it may grow to when parsed is twenty times as much
MAX_DEPTH = 100     # elements within one another
MAX_PIXEL = 1 << 24  # beyond it single precision, in which boxes are trained on, skips whole numbers
TOLERANCE = 1.  # pixels a box may reach out of the image: rounding, or another counting base
CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


class AnnotationError(Exception):
    """An annotation that cannot be read at all; `kind` as in `findings.KINDS`."""

    def __init__(self, kind: str, detail: str = ''):
        super().__init__(f'{kind}: {detail}')
        self.kind, self.detail = kind, detail


@dataclass
class Object:
    """One `<object>`: `box` in VOC's own numbers (1-based), None when it cannot be read."""
    name: str | None
    box: tuple | None
    difficult: int
    element: ET.Element
    problems: list = field(default_factory=list)  # (kind, detail)


@dataclass
class Annotation:
    filename: str | None
    size: tuple | None  # (width, height); None when absent or unreadable
    objects: list
    root: ET.Element
    problems: list = field(default_factory=list)


def _refuse_doctype(*_):
    raise AnnotationError('xml_doctype')


def parse_xml(data: bytes) -> ET.Element:
    """The root element. A DOCTYPE is refused before any entity could be declared or expanded.

    The first pass goes through expat: it sees a DOCTYPE in whatever encoding, and how deep elements are.
    """
    if len(data) > MAX_XML:
        raise AnnotationError('xml_unparsable', f'{len(data)} bytes')
    scanner = expat.ParserCreate()
    scanner.StartDoctypeDeclHandler = _refuse_doctype
    depth = 0

    def begin(*_):
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise AnnotationError('xml_unparsable', f'more than {MAX_DEPTH} elements within one another')

    def end(*_):
        nonlocal depth
        depth -= 1

    scanner.StartElementHandler, scanner.EndElementHandler = begin, end
    try:
        scanner.Parse(data, True)
        return ET.fromstring(data)
    except (expat.ExpatError, ET.ParseError, ValueError, LookupError) as error:
        raise AnnotationError('xml_unparsable', str(error)) from None


def _number(element, tag: str) -> float | None:
    text = element.findtext(tag) if element is not None else None
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) <= MAX_PIXEL else None


def parse(data: bytes) -> Annotation:
    root = parse_xml(data)
    problems = []
    size, tag = None, root.find('size')
    if tag is None:
        problems.append(('size_missing', ''))
    else:
        try:
            size = (int(tag.findtext('width')), int(tag.findtext('height')))
            if max(map(abs, size)) > MAX_PIXEL:
                raise ValueError
        except (TypeError, ValueError):
            size = None
            problems.append(('xml_incomplete', 'width or height in <size>'))
    objects = []
    for element in root.findall('object'):
        own = []
        name = element.findtext('name')
        if not name:
            own.append(('xml_incomplete', 'object without <name>'))
        box = tuple(_number(element.find('bndbox'), corner) for corner in CORNERS)
        if None in box:
            given = [element.findtext(f'bndbox/{corner}') for corner in CORNERS]
            own.append(('coordinate_bad', f'{name} {given}'))
            box = None
        difficult = 0
        if (text := element.findtext('difficult')) is not None:
            try:
                difficult = int(text)
            except ValueError:
                own.append(('xml_incomplete', f'<difficult> is {text!r}'))
        objects.append(Object(name, box, difficult, element, own))
    return Annotation(root.findtext('filename'), size, objects, root, problems)


def read(path: Path) -> Annotation:
    if not os.path.exists(path):  # nor could it where no file can have the name
        raise AnnotationError('annotation_missing', path.name)
    try:
        facts = path.stat()
        if facts.st_size > MAX_XML or not stat.S_ISREG(facts.st_mode):
            raise AnnotationError('xml_unparsable', f'larger than {MAX_XML} bytes, or no file')
        data = path.read_bytes()
    except OSError as error:
        raise AnnotationError('xml_unparsable', str(error)) from None
    return parse(data)


def judge(box, size) -> str | None:
    """What is wrong with `(x1, y1, x2, y2)`, 0-based as mmdet sees it, in an image of `size`."""
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        return 'coordinate_bad'
    if x2 < x1 or y2 < y1:
        return 'box_inverted'
    if x2 == x1 or y2 == y1:
        return 'box_zero'
    if size is not None and (min(x1, y1) < -TOLERANCE or x2 > size[0] + TOLERANCE
                             or y2 > size[1] + TOLERANCE):
        return 'box_outside'
    return None


def mmdet_box(box) -> list[int]:
    """The numbers mmdet trains on: whole, and counted from 0."""
    return [int(value) - 1 for value in box]


def read_list(path: Path):
    """`parse_list` of a file; one that cannot be read is a problem of its own."""
    try:
        return parse_list(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        return [], [('split_missing', str(error), 0)]


def parse_list(text: str):
    """`(names, problems)` of an ImageSets list; a problem is (kind, detail, line number).

    Only the names that mmdet would read as they stand are returned, each once.
    """
    names, problems, seen = [], [], set()
    if text.startswith('\ufeff'):
        problems.append(('id_blank', 'the file starts with a byte-order mark', 1))
    lines = text.removeprefix('\ufeff').split('\n')
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        name = line.rstrip('\r')
        if not name or name != name.strip() or len(name.split()) > 1:
            problems.append(('id_blank', repr(line), number))
        elif unsafe(name):
            problems.append(('id_unsafe', name, number))
        elif name in seen:
            problems.append(('id_duplicate', name, number))
        else:
            seen.add(name)
            names.append(name)
    if not lines:
        problems.append(('split_empty', '', 0))
    return names, problems
