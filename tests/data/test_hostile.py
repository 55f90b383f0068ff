"""Files made to do harm, or found by a fuzz to have done it: a finding or one message, whatever they hold."""
import gzip
import io
import json
import os
import shutil
import sys
import tarfile
import zipfile

import cv2
import pytest

import hgd_det  # noqa: F401
from hgd_det.data import archives, check, findings, images, prepare, shapes, sources, voc
from hgd_det.data.datasets import CocoFolder, RobustLoadImage, VOCFolder
from hgd_det.errors import UserError

pytestmark = pytest.mark.thorough

FIRST = 'train_00001'


@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
    root = tmp_path_factory.mktemp('pristine') / 'set'
    shapes.generate(root, train=3, test=1)
    return root


@pytest.fixture
def root(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / 'set')


def xml(root, old, new):
    path = root / f'VOC2007/Annotations/{FIRST}.xml'
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def alter(root, change, **how):
    path = root / 'annotations/instances_train.json'
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, **how))


def checked(root, tmp_path):
    """The report, after checking, cleaning, and printing it."""
    report = check.check(root, classes=shapes.CLASSES, clean=tmp_path / 'clean', progress=False)
    report.text().encode()
    return report


def voc_set(root):
    return VOCFolder(data_root=str(root), ann_file='VOC2007/ImageSets/Main/trainval.txt', pipeline=[],
                     data_prefix=dict(sub_data_root='VOC2007/'), metainfo=shapes.metainfo())


def coco_set(root):
    return CocoFolder(data_root=str(root), ann_file='annotations/instances_train.json', pipeline=[],
                      data_prefix=dict(img='VOC2007/JPEGImages/'), metainfo=shapes.metainfo())


@pytest.mark.parametrize('name', ['x' * 5000, '/'.join('y' * 3000)])
def test_a_name_too_long_for_any_file_is_a_missing_image(root, tmp_path, name):
    with open(root / 'VOC2007/ImageSets/Main/trainval.txt', 'a') as file:
        file.write(name + '\n')
    alter(root, lambda data: data['images'].append(dict(data['images'][0], id=77, file_name=name)))
    report = checked(root, tmp_path)
    assert report.counts['image_missing'] >= 1 and len(report.examples['image_missing'][0][0]) < 400
    assert len(voc_set(root)) == 3


@pytest.mark.parametrize('digits', [40, 400, 4000])
def test_sizes_and_boxes_too_large_to_calculate_with_are_found_and_not_trained_on(root, tmp_path, digits):
    xml(root, '<width>96', f'<width>{"9" * digits}')
    xml(root, '<xmin>', f'<xmin>{"9" * digits}')

    def change(data):
        data['annotations'][0]['bbox'][2] = int('9' * digits)
        data['annotations'][1]['area'] = int('9' * digits)
    alter(root, change)
    report = checked(root, tmp_path)
    assert report.counts['xml_incomplete'] == 1 and report.counts['json_keys'] == 1
    assert report.counts['coordinate_bad'] == 2
    assert dict(voc_set(root).skipped) == dict(coco_set(root).skipped) == dict(coordinate_bad=1)
    alter(root, lambda data: data['images'][0].update(width=int('9' * digits)))
    with pytest.raises(UserError, match='no width and height'):
        coco_set(root)


def test_values_nested_as_deep_as_a_reader_goes_are_found(root, tmp_path):
    deep = []
    for _ in range(sys.getrecursionlimit() // 2):
        deep = [deep]
    alter(root, lambda data: (data['images'].append(deep), data['annotations'].append(dict(id=deep)),
                              data['annotations'][0].update(bbox=deep)))
    report = checked(root, tmp_path)
    assert report.counts['json_keys'] == 2 and report.counts['coordinate_bad'] == 1
    with pytest.raises(UserError, match='cannot read'):
        coco_set(root)


def test_elements_nested_without_end_are_found_before_a_tree_is_made_of_them(root, tmp_path):
    xml(root, '<name>', '<a>' * 5000 + '</a>' * 5000 + '<name>')
    assert checked(root, tmp_path).counts['xml_unparsable'] == 1
    with pytest.raises(voc.AnnotationError, match='within one another'):
        voc.parse(b'<a>' * 101 + b'</a>' * 101)
    voc.parse(b'<a>' * 100 + b'</a>' * 100)


def test_an_entry_whose_file_name_is_no_name_is_left_out_of_the_cleaned_file(root, tmp_path):
    alter(root, lambda data: data['images'].append(dict(data['images'][0], id=77, file_name=['a'])))
    assert checked(root, tmp_path).counts['json_keys'] == 1
    data = json.loads((tmp_path / 'clean/annotations/instances_train.json').read_text())
    assert len(data['images']) == 3


def test_json_that_no_reader_of_coco_decodes_is_broken(root):
    path = root / 'annotations/instances_train.json'
    path.write_bytes(path.read_text().encode('utf-16'))
    assert check.check(root, progress=False).counts['json_broken'] == 1
    with pytest.raises(UserError, match='cannot read'):
        coco_set(root)


def test_names_are_shown_without_what_would_steer_a_terminal_or_cannot_be_printed(root, tmp_path):
    names = ['\x1b[2Jgone', 'half \ud800 pair', 'right \u202e to left', 'z' * 9000]
    alter(root, lambda data: (data['images'].extend(
        dict(data['images'][0], id=70 + i, file_name=name) for i, name in enumerate(names)),
        data['categories'].append(dict(id=99, name='\x1b]0;class\x07')),
        data['annotations'][0].update(category_id=99)))
    report = checked(root, tmp_path)
    assert report.text().replace('\n', '').isprintable() and max(map(len, report.text().split('\n'))) < 1000
    assert '\\x1b[2Jgone' in report.text() and json.loads(report.json())
    assert findings.plain('Straße 7') == 'Straße 7'


def test_classes_by_the_thousand_are_counted_in_one_pass(root, tmp_path):
    alter(root, lambda data: (data['categories'].extend(dict(id=i, name=f'c{i}') for i in range(100, 20100)),
                              data['annotations'].extend(dict(data['annotations'][0], id=i, category_id=i)
                                                         for i in range(100, 20100))))
    assert checked(root, tmp_path).counts['class_unknown'] == 20000


def test_an_image_whose_size_cannot_be_read_beforehand_is_not_decoded(root, monkeypatch):
    picture = root / f'VOC2007/JPEGImages/{FIRST}.jpg'
    picture.write_bytes(b'#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 20000 +X 20000\n' + b'\2\2\x4e\x20' * 10)
    decoded = []
    monkeypatch.setattr(cv2, 'imdecode', lambda *args: decoded.append(args))
    assert images.probe(picture, 10 ** 8).problems[0][0] == 'image_undecodable'
    load = RobustLoadImage()
    assert load(dict(img_path=str(picture))) is None and load.count == 1
    assert not decoded


@pytest.mark.parametrize('size', [float('nan'), float('inf'), -5, 0, None, 10 ** 400])
def test_a_blank_image_takes_any_annotated_size(tmp_path, size):
    found = RobustLoadImage(broken='blank')(dict(img_path=str(tmp_path / 'no.jpg'), height=size, width=7))
    assert found['img'].shape[0] in (1, 4096) and found['img'].shape[1] == 7


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_a_pipe_in_place_of_an_annotation_is_not_waited_for(root, tmp_path):
    path = root / f'VOC2007/Annotations/{FIRST}.xml'
    path.unlink()
    os.mkfifo(path)
    assert check.check(root, progress=False).counts['xml_unparsable'] == 1
    assert len(voc_set(root)) == 2


@pytest.mark.parametrize('change', [
    dict(dataset=5),
    dict(dataset=dict(type='VOCFolder', data_root=3)),
    dict(dataset=dict(type='VOCFolder', metainfo=[1])),
    dict(dataset=dict(type='RepeatDataset', dataset='x')),
    dict(dataset=dict(type='ConcatDataset', datasets=[None])),
    dict(dataset=dict(type='CocoFolder', metainfo=dict(classes=7))),
    dict(dataset=dict(type='VOCFolders', ann_file=8))
])
def test_a_config_whose_data_is_of_another_type_is_refused(tmp_path, change):
    (tmp_path / 'bad.py').write_text(f'train_dataloader = {change!r}')
    with pytest.raises(UserError, match='write|give'):
        sources.from_config(tmp_path / 'bad.py')


# Archives -------------------------------------------------------------------------------------------
def unpack(data, tmp_path):
    path = tmp_path / prepare.PARTS['voc'][0].archive
    path.write_bytes(data)
    return archives.extract(path, tmp_path / 'out', lambda name: name, progress=False)


def tar_of(kind, size, content=b''):
    member = tarfile.TarInfo('a')
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT) + content.ljust(-len(content) % 512 + len(content),
                                                            b'\0') + b'\0' * 1024


@pytest.mark.parametrize('kind', [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE])
def test_a_long_name_of_a_tar_that_would_fill_the_memory_is_not_read(tmp_path, kind):
    packed = gzip.compress(tar_of(kind, 1 << 28) + bytes(1 << 20))
    with pytest.raises(UserError, match='cannot be unpacked'):
        unpack(packed, tmp_path)


@pytest.mark.parametrize('kind', [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_member_of_negative_size_is_no_way_back(tmp_path, kind):
    with pytest.raises(UserError, match='cannot be unpacked: .*-512 bytes|could not be opened'):
        unpack(tar_of(kind, -512), tmp_path)


def test_a_file_with_holes_is_refused(tmp_path):
    with pytest.raises(UserError, match='a file with holes'):
        unpack(tar_of(tarfile.GNUTYPE_SPARSE, 512, b'x'), tmp_path)


@pytest.mark.parametrize('method', [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_inside_a_compressed_member_is_one_message(tmp_path, method):
    with zipfile.ZipFile(out := io.BytesIO(), 'w', method) as packed:
        packed.writestr('a', bytes(range(256)) * 40)
    for at in range(40, 100, 4):
        data = bytearray(out.getvalue())
        data[at] ^= 255
        with pytest.raises(UserError):
            unpack(bytes(data), tmp_path)


def test_a_published_list_in_another_encoding_is_counted_all_the_same(tmp_path):
    part, out = prepare.PARTS['voc'][0], io.BytesIO()
    with tarfile.open(fileobj=out, mode='w') as packed:
        member = tarfile.TarInfo('VOCdevkit/' + part.mark)
        member.size = 4
        packed.addfile(member, io.BytesIO(b'\xff\xfea\n'))
    (tmp_path / part.archive).write_bytes(out.getvalue())
    said = []
    prepare.prepare('voc',
                    tmp_path / 'data',
                    sources=[tmp_path],
                    only=[part.key],
                    checksum=False,
                    say=said.append,
                    progress=False)
    assert '1 images' in said[-1]
