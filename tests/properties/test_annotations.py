"""Any image with objects, written as VOC XML and as COCO JSON, comes back from the readers as it was."""
import json
import math
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hgd_det  # noqa: F401
from hgd_det.data import coco, voc
from hgd_det.data.datasets import CocoFolder, VOCFolder

CLASSES = ('disc', 'Traffic light', 'A & B <c>', 'ö', '7')


@dataclass(frozen=True)
class Thing:
    label: str
    box: tuple  # first and last pixel, counted from 1, as in VOC
    hard: bool


@dataclass(frozen=True)
class Picture:
    name: str
    size: tuple
    things: tuple


@st.composite
def pictures(draw, fractions=False):
    width, height = draw(st.integers(2, 5000)), draw(st.integers(2, 5000))
    # a base line: up to the last pixel, and from the first
    edge = (lambda limit: st.integers(1, limit) | st.integers(1, limit - 1).map(lambda at: at + .5)) \
        if fractions else (lambda limit: st.integers(1, limit))
    things = []
    for _ in range(draw(st.integers(0, 4))):
        x1, x2 = sorted(draw(st.tuples(edge(width), edge(width))))
        y1, y2 = sorted(draw(st.tuples(edge(height), edge(height))))
        if int(x1) < int(x2) and int(y1) < int(y2):
            things.append(Thing(draw(st.sampled_from(CLASSES)), (x1, y1, x2, y2), draw(st.booleans())))
    name = draw(st.text('aZ09_-.é', min_size=1, max_size=12).filter(lambda name: name.strip('.')))
    return Picture(name, (width, height), tuple(things))


def as_xml(picture, pretty=True):
    space = '\n  ' if pretty else ''
    things = ''.join(
        f'{space}<object><name>{escape(thing.label)}</name><difficult>{int(thing.hard)}</difficult><bndbox>' +
        ''.join(f'<{corner}>{value}</{corner}>'
                for corner, value in zip(voc.CORNERS, thing.box, strict=True)) + '</bndbox></object>'
        for thing in picture.things)
    return (
        f'<annotation>{space}<filename>{picture.name}.jpg</filename>{space}<size><width>{picture.size[0]}</width>'
        f'<height>{picture.size[1]}</height><depth>3</depth></size>{things}{space}</annotation>').encode()


def as_coco(some):
    """COCO's `w = x2 - x1` with the same first and last pixel counted from 0: docs/data.md."""
    annotations = []
    for i, picture in enumerate(some, 1):
        for thing in picture.things:
            x1, y1, x2, y2 = (math.floor(value) - 1 for value in thing.box)
            annotations.append(dict(
                id=len(annotations) + 1, image_id=i, category_id=CLASSES.index(thing.label) + 10,
                bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=int(thing.hard)))
    return dict(images=[dict(id=i, file_name=f'{picture.name}.jpg', width=picture.size[0],
                             height=picture.size[1]) for i, picture in enumerate(some, 1)],
                annotations=annotations,
                categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 10)])


def from_coco(data):
    """Pictures again, of what `as_coco` gave; boxes counted from 1."""
    names = {entry['id']: entry['name'] for entry in data['categories']}
    return [Picture(image['file_name'].removesuffix('.jpg'), (image['width'], image['height']), tuple(
        Thing(names[entry['category_id']], (x + 1, y + 1, x + w + 1, y + h + 1), bool(entry['iscrowd']))
        for entry in data['annotations'] if entry['image_id'] == image['id']
        for x, y, w, h in [entry['bbox']])) for image in data['images']]


def trained_on(picture):
    """What mmdet is to see: whole numbers from 0, labels, and what is not to count."""
    return [dict(bbox=[math.floor(value) - 1 for value in thing.box], bbox_label=CLASSES.index(thing.label),
                 ignore_flag=int(thing.hard)) for thing in picture.things]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('set')


@given(pictures(fractions=True), st.sampled_from(['utf-8', 'utf-16', 'utf-8-sig']), st.booleans())
def test_xml_in_any_layout_and_encoding_is_read_as_it_was_written(picture, encoding, pretty):
    data = as_xml(picture, pretty)
    if encoding != 'utf-8':
        data = f'<?xml version="1.0" encoding="{encoding[:6].rstrip("-")}"?>{data.decode()}'.encode(encoding)
    found = voc.parse(data)
    assert not found.problems and not any(thing.problems for thing in found.objects)
    assert (found.size, found.filename) == (picture.size, f'{picture.name}.jpg')
    assert [(thing.name, thing.box, bool(thing.difficult)) for thing in found.objects] \
        == [(thing.label, thing.box, thing.hard) for thing in picture.things]


@given(st.lists(pictures(), min_size=1, max_size=3, unique_by=lambda picture: picture.name))
def test_both_forms_give_training_the_same_boxes_labels_and_flags(folder, some):
    for sub in ('VOC2007/Annotations', 'VOC2007/JPEGImages'):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for picture in some:
        (folder / f'VOC2007/Annotations/{picture.name}.xml').write_bytes(as_xml(picture))
        (folder / f'VOC2007/JPEGImages/{picture.name}.jpg').touch()
    (folder / 'list.txt').write_text(''.join(f'{picture.name}\n' for picture in some), encoding='utf-8')
    (folder / 'coco.json').write_text(json.dumps(as_coco(some)))
    common = dict(data_root=str(folder), metainfo=dict(classes=CLASSES), pipeline=[], serialize_data=False)
    both = (VOCFolder(ann_file='list.txt', data_prefix=dict(sub_data_root='VOC2007/'), **common),
            CocoFolder(ann_file='coco.json', data_prefix=dict(img='VOC2007/JPEGImages'), **common))
    for dataset in both:
        assert not dataset.skipped and len(dataset) == len(some)
        for i, picture in enumerate(some):
            info = dataset.get_data_info(i)
            assert info['instances'] == trained_on(picture)
            assert (info['width'], info['height']) == picture.size
            assert Path(info['img_path']) == folder / f'VOC2007/JPEGImages/{picture.name}.jpg'


@given(st.lists(pictures(), min_size=1, max_size=3, unique_by=lambda picture: picture.name))
def test_the_json_reader_finds_every_object_of_every_image(folder, some):
    path = folder / 'some.json'
    path.write_text(json.dumps(as_coco(some)))
    images, categories, findings = coco.read(path)
    assert not {finding.kind for finding in findings} - {'box_tiny', 'box_duplicate'}
    assert list(categories.values()) == list(CLASSES)
    for image, picture in zip(images, some, strict=True):
        assert (image.file_name, image.size) == (f'{picture.name}.jpg', picture.size)
        assert image.crowds == sum(thing.hard for thing in picture.things)
        assert [(name, corners) for name, corners, _ in image.objects] == [
            (thing.label, tuple(value - 1 for value in thing.box)) for thing in picture.things]


@given(st.lists(pictures(fractions=True), min_size=1, max_size=3, unique_by=lambda picture: picture.name))
def test_voc_to_coco_and_back_loses_nothing_but_the_fractions_of_pixels(some):
    there = from_coco(json.loads(json.dumps(as_coco(some))))
    for old, new in zip(some, there, strict=True):
        again = voc.parse(as_xml(new))
        assert (again.size, [(thing.name, bool(thing.difficult)) for thing in again.objects]) == (
            old.size, [(thing.label, thing.hard) for thing in old.things])
        for thing, mine in zip(again.objects, old.things, strict=True):
            assert voc.mmdet_box(thing.box) == voc.mmdet_box(mine.box)
            assert all(0 <= value - kept < 1 for value, kept in zip(mine.box, thing.box, strict=True))
    assert from_coco(as_coco(there)) == there
