"""Every kind of dirt is planted in a clean set, one at a time, and must be found by its name."""
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from hgd_det.data import check, findings, shapes
from hgd_det.errors import UserError
from hgd_det.testing import png

BCCD = Path(__file__).resolve().parents[3] / 'shared/data/bccd'
FIRST, SECOND, THIRD = 'train_00001', 'train_00002', 'train_00003'
BOMB = ('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]>'
        '<annotation><filename>&y;</filename></annotation>')


@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp('pristine') / 'set'
    shapes.generate(root, train=6, test=2)
    return root


@pytest.fixture
def voc(pristine, tmp_path):
    shutil.copytree(pristine / 'VOC2007', tmp_path / 'VOC2007')
    return tmp_path / 'VOC2007'


@pytest.fixture
def coco(pristine, tmp_path):
    shutil.copytree(pristine / 'annotations', tmp_path / 'coco/annotations')
    shutil.copytree(pristine / 'VOC2007/JPEGImages', tmp_path / 'coco/images')
    return tmp_path / 'coco'


def image(root, name=FIRST, suffix='.jpg'):
    return root / 'JPEGImages' / (name + suffix)


def edit(root, pattern, new, name=FIRST):
    path = root / 'Annotations' / f'{name}.xml'
    text, times = re.subn(pattern, new, path.read_text(), count=1, flags=re.S)
    assert times == 1, pattern
    path.write_text(text)


def box(root, x1, y1, x2, y2, name=FIRST):
    edit(root, '<bndbox>.*?</bndbox>', f'<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>'
         f'<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>', name)


def listing(root, text, split='trainval'):
    path = root / f'ImageSets/Main/{split}.txt'
    path.write_text(text(path.read_text()) if callable(text) else text)


def save(root, mode, name=FIRST, suffix='.jpg', **options):
    picture = Image.open(image(root, name)).convert(mode)
    picture.save(image(root, name, suffix), format=options.pop('format', None), **options)


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def turned(root):
    # Wider than high, so that the annotated size can tell which way the boxes were drawn.
    picture = Image.open(image(root)).convert('RGB').resize((120, 96))
    picture.save(image(root), quality=95, exif=exif(6))


def png16(root):
    image(root).unlink()
    cv2.imwrite(str(image(root, suffix='.png')), np.full((96, 96, 3), 40000, np.uint16))


DIRT = {
    'image_missing': lambda r: image(r).unlink(),
    'image_undecodable': lambda r: image(r).write_bytes(b'no image at all'),
    'image_undecodable (empty)': lambda r: image(r).write_bytes(b''),
    'image_undecodable (start only)': lambda r: image(r).write_bytes(
        image(r).read_bytes()[:100]),
    'image_truncated (PNG)': lambda r: (save(r, 'RGB', format='PNG'), image(r).write_bytes(
        image(r).read_bytes()[:3000])),
    'image_undecodable (folder)': lambda r: (image(r).unlink(), image(r).mkdir()),
    'image_truncated': lambda r: image(r).write_bytes(
        image(r).read_bytes()[:len(image(r).read_bytes()) * 2 // 3]),
    'image_huge': lambda r: image(r).write_bytes(png(60000, 60000)),
    'annotation_missing': lambda r: (r / f'Annotations/{FIRST}.xml').unlink(),
    'xml_unparsable': lambda r: edit(r, '</annotation>', ''),
    'xml_unparsable (empty)': lambda r: (r / f'Annotations/{FIRST}.xml').write_text(''),
    'xml_doctype': lambda r: (r / f'Annotations/{FIRST}.xml').write_text(BOMB),
    'xml_doctype (UTF-16)': lambda r: (r / f'Annotations/{FIRST}.xml').write_bytes(
        BOMB.replace('?>', ' encoding="utf-16"?>', 1).encode('utf-16')),
    'xml_incomplete': lambda r: edit(r, '<name>.*?</name>', ''),
    'xml_incomplete (size)': lambda r: edit(r, '<width>96</width>', '<width>96.0</width>'),
    'xml_incomplete (difficult)': lambda r: edit(r, '<difficult>0', '<difficult>yes'),
    'coordinate_bad': lambda r: box(r, 'nan', 5, 20, 20),
    'coordinate_bad (word)': lambda r: box(r, 'left', 5, 20, 20),
    'coordinate_bad (infinite)': lambda r: box(r, 1, 1, 'inf', 20),
    'coordinate_bad (no box)': lambda r: edit(r, '<bndbox>.*?</bndbox>', ''),
    'id_blank': lambda r: listing(r, lambda t: t + '\n\ntrain_00009 \n'),
    'id_blank (byte-order mark)': lambda r: listing(r, lambda t: '\ufeff' + t),
    'id_unsafe': lambda r: listing(r, lambda t: t + '../../../etc/passwd\n'),
    'id_unsafe (absolute)': lambda r: listing(r, lambda t: t + '/etc/passwd\n'),
    'split_empty': lambda r: listing(r, ''),
    'size_wrong': lambda r: edit(r, '<width>96', '<width>640'),
    'size_wrong (zero)': lambda r: edit(r, '<width>96', '<width>0'),
    'size_missing': lambda r: edit(r, '<size>.*?</size>', ''),
    'filename_other': lambda r: edit(r, f'{FIRST}.jpg', f'{SECOND}.jpg'),
    'filename_wrong': lambda r: edit(r, f'{FIRST}.jpg', 'IMG_0001.jpg'),
    'box_zero': lambda r: box(r, 20, 20, 20, 20),
    'box_zero (flat)': lambda r: box(r, 20, 20, 40, 20),
    'box_inverted': lambda r: box(r, 40, 20, 20, 40),
    'box_outside': lambda r: box(r, 50, 50, 99, 90),
    'box_outside (left)': lambda r: box(r, -3, 50, 60, 90),
    'box_outside (wholly)': lambda r: box(r, 500, 500, 600, 600),
    'box_off_by_one': lambda r: box(r, 0, 0, 30, 30),
    'box_off_by_one (end)': lambda r: box(r, 10, 10, 97, 30),
    'box_tiny': lambda r: box(r, 10, 10, 12, 40),
    'box_duplicate': lambda r: edit(r, '(<object>.*?</object>)', r'\1\1'),
    'class_unknown': lambda r: edit(r, '<name>.*?</name>', '<name>unicorn</name>'),
    'image_empty': lambda r: edit(r, '<object>.*</object>', ''),
    'id_duplicate': lambda r: listing(r, lambda t: t + FIRST + '\n'),
    'image_duplicate': lambda r: shutil.copy(image(r), image(r, SECOND)),
    'image_leak': lambda r: shutil.copy(image(r), image(r, 'test_00001')),
    'image_leak (same name)': lambda r: listing(r, lambda t: t + FIRST + '\n', 'test'),
    'exif_rotated': lambda r: (turned(r), edit(r, '<width>96', '<width>120')),
    'exif_rotated (by half)': lambda r: save(r, 'RGB', exif=exif(3)),
    'exif_consistent': lambda r: (turned(r), edit(
        r, '<width>96</width><height>96</height>', '<width>96</width><height>120</height>')),
    'image_cmyk': lambda r: save(r, 'CMYK'),
    'image_grey': lambda r: save(r, 'L'),
    'image_suffix': lambda r: (save(r, 'RGB', suffix='.png'), image(r).unlink()),
    'image_alpha': lambda r: (save(r, 'RGBA', suffix='.png'), image(r).unlink()),
    'image_palette': lambda r: (save(r, 'P', suffix='.png'), image(r).unlink()),
    'image_16bit': png16,
    'image_extension': lambda r: save(r, 'RGB', format='PNG'),
    'difficult': lambda r: edit(r, '<difficult>0', '<difficult>1'),
}
BENIGN = {kind for kind, (severity, _) in findings.KINDS.items() if severity == 'note'}


def run(root, **options):
    return check.check(root, progress=False, **options)


@pytest.mark.parametrize('form', ['voc', 'coco'])
def test_a_clean_set_gives_no_finding(form, request):
    report = run(request.getfixturevalue(form), classes=shapes.CLASSES[:])
    assert set(report.counts) <= {'class_unused'}
    assert report.text().endswith('result: clean')
    assert sum(split['images'] for split in report.splits) == 8


@pytest.mark.parametrize('title', sorted(DIRT))
def test_planted_dirt_in_voc_layout_is_found(voc, title):
    kind = title.split(' ')[0]
    DIRT[title](voc)
    report = run(voc, classes=shapes.CLASSES)
    assert report.counts[kind] >= 1, report.text()
    assert report.examples[kind] and kind in report.text()
    severe = {found for found in report.counts if found not in BENIGN}
    # One dirt, one severe kind: a finding that drags others along would hide which it is.
    assert severe == ({kind} - BENIGN), report.text()


def test_the_table_covers_at_least_twenty_kinds():
    assert len({title.split(' ')[0] for title in DIRT}) >= 30


def test_all_dirt_at_once_is_counted_without_a_crash(voc):
    for number, title in enumerate(sorted(DIRT)):
        name = FIRST if number % 2 else SECOND
        try:
            if number % 3 == 0:
                DIRT[title](voc)
            else:
                edit(voc, '<xmin>', '<xmin>-', name)
        except (OSError, AssertionError, UnicodeDecodeError):
            continue  # an earlier one removed what this one edits
    assert run(voc, workers=3).count('break') > 0


def alter(root, change, split='train'):
    path = root / f'annotations/instances_{split}.json'
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def with_box(*values):
    return lambda d: d['annotations'][0].update(bbox=list(values))


COCO_DIRT = {
    'json_keys': lambda d: d.pop('categories'),
    'json_keys (image)': lambda d: d['images'][5].pop('width'),
    'json_keys (area)': lambda d: d['annotations'][0].pop('area'),
    'class_unknown': lambda d: d['annotations'][0].update(category_id=99),
    'id_duplicate': lambda d: d['images'].append(dict(d['images'][0])),
    'id_duplicate (file)': lambda d: d['images'].append(dict(d['images'][0], id=77)),
    'annotation_id_duplicate': lambda d: d['annotations'].append(
        dict(d['annotations'][0], bbox=[1, 1, 20, 20])),
    'annotation_orphan': lambda d: d['annotations'].append(
        dict(d['annotations'][0], id=9999, image_id=555)),
    'crowd': lambda d: d['annotations'][0].update(iscrowd=1),
    'box_zero': with_box(10, 10, 0, 5),
    'box_zero (thin)': with_box(10, 10, 0.5, 30),
    'box_zero (area)': lambda d: d['annotations'][0].update(area=-1),
    'box_inverted': with_box(10, 10, -5, 5),
    'box_outside': with_box(80, 80, 40, 10),
    'box_tiny': with_box(10, 10, 2, 30),
    'coordinate_bad': with_box(10, 10, float('nan'), 5),
    'coordinate_bad (word)': with_box('a', 10, 5, 5),
    'box_duplicate': lambda d: d['annotations'].append(dict(d['annotations'][0], id=9999)),
    'id_unsafe': lambda d: d['images'][0].update(file_name='../../x.jpg'),
    'image_missing': lambda d: d['images'][0].update(file_name='gone.jpg'),
    'size_wrong': lambda d: d['images'][0].update(height=640),
    'category_missing': lambda d: d['categories'][0].update(name='Disc'),
}


@pytest.mark.parametrize('title', sorted(COCO_DIRT))
def test_planted_dirt_in_coco_layout_is_found(coco, title):
    kind = title.split(' ')[0]
    alter(coco, COCO_DIRT[title])
    report = run(coco, classes=shapes.CLASSES)
    assert report.counts[kind] >= 1, report.text()


@pytest.mark.parametrize('text', [b'{"images": [', b'', b'[' * 100000])
def test_broken_json_is_found(coco, text):
    (coco / 'annotations/instances_train.json').write_bytes(text)
    assert run(coco).counts['json_broken'] == 1


def test_a_class_name_in_other_spelling_comes_with_a_hint(voc):
    edit(voc, '<name>.*?</name>', '<name> Disc</name>')
    assert "(meant 'disc'?)" in run(voc, classes=shapes.CLASSES).text()
    name = re.search('<name>(.*?)</name>', (voc / f'Annotations/{THIRD}.xml').read_text())[1]
    edit(voc, '<name>.*?</name>', f'<name>{name.upper()}</name>', THIRD)
    assert "meant '" in run(voc).text(), 'also without a class list'


def test_the_xml_bomb_is_never_expanded(voc, monkeypatch):
    import xml.etree.ElementTree as ET

    from hgd_det.data import voc as reader

    def boom(*_):
        raise AssertionError('a DOCTYPE reached the parser')

    monkeypatch.setattr(ET, 'fromstring', boom)
    with pytest.raises(reader.AnnotationError, match='xml_doctype'):
        reader.parse(BOMB.encode())


def test_a_bomb_image_is_not_decoded(voc, monkeypatch):
    image(voc).write_bytes(png(9000, 9000))
    decoded = []
    real = cv2.imdecode
    monkeypatch.setattr(cv2, 'imdecode', lambda data, flag: decoded.append(len(data)) or real(
        data, flag))
    assert run(voc, max_pixels=1_000_000).counts['image_huge'] == 1
    assert len(decoded) == 7


def test_workers_do_not_change_the_report(voc):
    for title in ('image_truncated', 'box_zero', 'image_leak'):
        DIRT[title](voc)
    assert run(voc, workers=1).json() == run(voc, workers=4).json()


def tree(root):
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in root.rglob('*') if p.is_file()}


def config(tmp_path, train, test=None, name='cfg.py'):
    path = tmp_path / name
    path.write_text(f'train_dataloader = dict(dataset={train!r})\n'
                    + (f'test_dataloader = dict(dataset={test!r})\n' if test else ''))
    return path


@pytest.mark.parametrize('title', sorted(t for t in DIRT if t != 'split_empty'))
def test_a_cleaned_voc_set_checks_clean_and_no_original_changes(voc, tmp_path, title):
    pytest.importorskip('mmengine')
    DIRT[title](voc)
    before = tree(voc)
    out = tmp_path / 'clean'
    run(voc, classes=shapes.CLASSES, clean=out)
    assert tree(voc) == before
    train, test = (dict(type='VOCFolders', data_root=str(out), metainfo=shapes.metainfo(),
                        ann_file=[f'VOC2007/ImageSets/Main/{split}.txt'])
                   for split in ('trainval', 'test'))
    report = run(config(tmp_path, train, test))
    assert run(out, classes=shapes.CLASSES).counts == report.counts
    assert not report.count('break') and not report.count('bias'), report.text()
    assert sum(split['images'] for split in report.splits) >= 7


@pytest.mark.parametrize('title', sorted(t for t in COCO_DIRT if t not in (
    'json_keys', 'category_missing')))
def test_a_cleaned_coco_set_checks_clean(coco, tmp_path, title):
    pytest.importorskip('mmengine')
    alter(coco, COCO_DIRT[title])
    before = tree(coco)
    out = tmp_path / 'clean'
    run(coco, classes=shapes.CLASSES, clean=out)
    assert tree(coco) == before
    report = run(config(tmp_path, dict(
        type='CocoDataset', ann_file=str(out / 'annotations/instances_train.json'),
        data_prefix=dict(img=str(out / 'images')), metainfo=shapes.metainfo())))
    assert not report.count('break') and not report.count('bias'), report.text()
    assert report.splits[0]['images'] >= 5


def test_cleaned_lists_go_only_to_a_new_folder(voc):
    with pytest.raises(UserError, match='not empty'):
        run(voc, clean=voc)


def test_a_config_is_followed_through_wrappers_and_data_roots(voc, tmp_path):
    pytest.importorskip('mmengine')
    leaf = dict(type='mmdet.VOCDataset', data_root=str(voc.parent),
                ann_file='VOC2007/ImageSets/Main/trainval.txt',
                data_prefix=dict(sub_data_root='VOC2007/'), metainfo=shapes.metainfo())
    wrapped = dict(type='RepeatDataset', times=2, dataset=dict(
        type='ConcatDataset', datasets=[leaf, leaf]))
    test = dict(leaf, ann_file='VOC2007/ImageSets/Main/test.txt')
    report = run(config(tmp_path, wrapped, test))
    assert [split['images'] for split in report.splits] == [6, 2]
    listing(voc, lambda text: text + 'test_00002\n')
    assert run(config(tmp_path, wrapped, test)).counts['image_leak'] == 1
    # mmdet's own dataset reads .jpg alone.
    save(voc, 'RGB', suffix='.png')
    image(voc).unlink()
    assert run(config(tmp_path, wrapped, test)).counts['image_missing'] == 1


def test_a_missing_list_is_found(voc, tmp_path):
    pytest.importorskip('mmengine')
    report = run(config(tmp_path, dict(type='VOCDataset', data_root=str(voc), ann_file='no.txt')))
    assert report.counts['split_missing'] == 1


@pytest.mark.parametrize('text,message', [
    ('x = (', 'cannot be read'), ('x = 1', 'names no data set'),
    ('train_dataloader = dict(dataset=dict(type="LVISV1Dataset"))', 'LVISV1Dataset')])
def test_unusable_configs_are_user_errors(tmp_path, text, message):
    pytest.importorskip('mmengine')
    (tmp_path / 'bad.py').write_text(text)
    with pytest.raises(UserError, match=message):
        run(tmp_path / 'bad.py')


def test_folders_that_are_no_data_set_are_user_errors(tmp_path):
    with pytest.raises(UserError, match='holds no data set'):
        run(tmp_path)
    with pytest.raises(UserError, match='does not exist'):
        run(tmp_path / 'none')


def test_json_report_lists_every_kind_with_its_severity(voc):
    DIRT['box_zero'](voc)
    report = json.loads(run(voc).json())
    assert report['clean'] is False
    entry = next(entry for entry in report['findings'] if entry['kind'] == 'box_zero')
    assert entry['severity'] == 'bias' and entry['count'] == 1
    assert entry['examples'][0]['where'] == FIRST


def test_a_trailing_byte_after_the_end_marker_is_no_truncation(voc):
    with open(image(voc), 'ab') as file:
        file.write(b'\r\n\0\0trailer')
    assert not run(voc).counts['image_truncated']


@pytest.mark.skipif(not BCCD.is_dir(), reason='BCCD is not here')
def test_both_zero_size_boxes_of_bccd_are_found():
    report = run(BCCD)
    assert report.counts['box_zero'] == 2
    assert sorted(where for where, _ in report.examples['box_zero']) == [
        'BloodImage_00338', 'BloodImage_00343']
