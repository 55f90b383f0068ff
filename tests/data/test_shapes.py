import hashlib
import json
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest

from hgd_det.data import drawing, shapes
from hgd_det.errors import UserError

TRAIN, TEST = 24, 8


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp('shapes') / 'set'
    assert shapes.generate(root, train=TRAIN, test=TEST, seed=3)
    return root


def digest(root):
    return {str(path.relative_to(root)): hashlib.md5(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob('*')) if path.is_file()}


def test_the_set_does_not_depend_on_the_number_of_processes(made, tmp_path):
    assert shapes.generate(tmp_path / 'b', train=TRAIN, test=TEST, seed=3, workers=2)
    assert digest(made) == digest(tmp_path / 'b')


def test_a_larger_set_begins_with_the_smaller_one_and_splits_differ(made, tmp_path):
    shapes.generate(tmp_path / 'b', train=TRAIN + 3, test=TEST, seed=3)
    small, large = digest(made), digest(tmp_path / 'b')
    name = 'VOC2007/JPEGImages/train_{:05d}.jpg'
    assert all(small[name.format(i + 1)] == large[name.format(i + 1)] for i in range(TRAIN))
    pictures = [value for key, value in large.items() if key.endswith('.jpg')]
    assert len(set(pictures)) == len(pictures) == TRAIN + 3 + TEST


def test_another_seed_gives_other_pictures():
    assert not np.array_equal(shapes.picture('train', 0, seed=1)[0],
                              shapes.picture('train', 0, seed=2)[0])


def test_counts_lists_and_sizes_are_what_was_asked(made):
    assert len(list((made / 'VOC2007/JPEGImages').iterdir())) == TRAIN + TEST
    for split, count in (('trainval', TRAIN), ('test', TEST)):
        names = (made / f'VOC2007/ImageSets/Main/{split}.txt').read_text().split()
        assert len(names) == count
        for name in names:
            image = cv2.imread(str(made / f'VOC2007/JPEGImages/{name}.jpg'))
            assert image.shape == (96, 96, 3)
    assert not [p for p in made.parent.iterdir() if p.name.startswith('.')], 'leftovers'


@pytest.mark.parametrize('split,listing', [('train', 'trainval'), ('test', 'test')])
def test_voc_and_coco_forms_hold_the_same_boxes_after_the_pixel_conventions(made, split, listing):
    coco = json.loads((made / f'annotations/instances_{split}.json').read_text())
    names = (made / f'VOC2007/ImageSets/Main/{listing}.txt').read_text().split()
    assert [image['file_name'] for image in coco['images']] == [f'{name}.jpg' for name in names]
    total = 0
    for image in coco['images']:
        root = ET.parse(made / 'VOC2007/Annotations' /
                        image['file_name'].replace('.jpg', '.xml')).getroot()
        voc = [(obj.find('name').text,
                *(int(obj.find(f'bndbox/{key}').text) for key in ('xmin', 'ymin', 'xmax', 'ymax')))
               for obj in root.findall('object')]
        ours = [(coco['categories'][ann['category_id'] - 1]['name'],
                 ann['bbox'][0] + 1, ann['bbox'][1] + 1,
                 ann['bbox'][0] + ann['bbox'][2] + 1, ann['bbox'][1] + ann['bbox'][3] + 1)
                for ann in coco['annotations'] if ann['image_id'] == image['id']]
        assert voc == ours and voc
        for _, x1, y1, x2, y2 in voc:
            assert 1 <= x1 < x2 <= 96 and 1 <= y1 < y2 <= 96
        total += len(voc)
    assert total == len(coco['annotations'])


def test_mmdet_reads_equal_boxes_and_labels_from_both_forms(made):
    pytest.importorskip('mmdet')
    from mmdet.datasets import CocoDataset, XMLDataset

    import hgd_det  # noqa: F401  serves the operators that mmcv may lack
    voc = XMLDataset(data_root=str(made), ann_file='VOC2007/ImageSets/Main/trainval.txt',
                     data_prefix=dict(sub_data_root='VOC2007/'), metainfo=shapes.metainfo(),
                     pipeline=[])
    coco = CocoDataset(data_root=str(made), ann_file='annotations/instances_train.json',
                       data_prefix=dict(img='VOC2007/JPEGImages/'), metainfo=shapes.metainfo(),
                       pipeline=[])
    assert len(voc) == len(coco) == TRAIN
    for i in range(TRAIN):
        a, b = voc.get_data_info(i), coco.get_data_info(i)
        assert a['img_path'] == b['img_path']
        assert (a['height'], a['width']) == (b['height'], b['width'])
        assert [(x['bbox'], x['bbox_label'], x['ignore_flag']) for x in a['instances']] == \
            [(x['bbox'], x['bbox_label'], x['ignore_flag']) for x in b['instances']]


@pytest.mark.parametrize('hard', [False, True])
def test_every_object_is_visible_enough_and_every_class_occurs(hard):
    seen, sizes = set(), []
    for index in range(80):
        image, boxes = shapes.picture('train', index, hard=hard)
        side = 160 if hard else 96
        assert image.shape == (side, side, 3) and image.dtype == np.uint8 and boxes
        for label, x1, y1, x2, y2 in boxes:
            assert 0 <= x1 < x2 < side and 0 <= y1 < y2 < side
            seen.add(label)
            sizes.append(min(x2 - x1, y2 - y1))
    assert seen == set(range(len(shapes.metainfo(hard)['classes'])))
    assert min(sizes) >= 5


@pytest.mark.parametrize('name', sorted(drawing.OUTLINES))
def test_outlines_stay_in_the_unit_circle_and_differ_from_a_disc(name):
    alpha, area = drawing._stamp(drawing.OUTLINES[name], np.array([32., 32.]), np.eye(2) * 20, 64)
    x1, y1, x2, y2 = drawing._box(alpha)
    assert 11 <= x1 and 11 <= y1 and x2 <= 52 and y2 <= 52
    share = area / (np.pi * 20 ** 2)
    assert share == pytest.approx(alpha.sum() / (np.pi * 20 ** 2))
    assert (0.97 < share < 1.03) if name == 'disc' else (0.2 < share < 0.9)


def test_the_box_is_tight_around_the_visible_pixels():
    seen = np.zeros((20, 20), np.float32)
    seen[3:7, 5:12] = 1
    assert drawing._box(seen) == (5, 3, 11, 6)


def test_a_second_run_with_the_same_parameters_changes_nothing(made):
    before = digest(made)
    stamp = (made / 'shapes.json').stat().st_mtime_ns
    assert shapes.generate(made, train=TRAIN, test=TEST, seed=3) is False
    assert digest(made) == before and (made / 'shapes.json').stat().st_mtime_ns == stamp


def test_other_parameters_are_refused_unless_forced(tmp_path):
    out = tmp_path / 'set'
    shapes.generate(out, train=2, test=1)
    with pytest.raises(UserError, match='--force'):
        shapes.generate(out, train=3, test=1)
    assert shapes.generate(out, train=3, test=1, force=True)
    assert len(list((out / 'VOC2007/JPEGImages').iterdir())) == 4
    assert [p.name for p in tmp_path.iterdir()] == ['set']


def test_a_set_with_lost_images_is_not_taken_for_complete(tmp_path):
    shapes.generate(tmp_path / 'set', train=2, test=1)
    (tmp_path / 'set/VOC2007/JPEGImages/train_00001.jpg').unlink()
    with pytest.raises(UserError, match='incomplete'):
        shapes.generate(tmp_path / 'set', train=2, test=1)


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / 'precious.txt').write_text('mine')
    with pytest.raises(UserError, match='not a shapes set'):
        shapes.generate(tmp_path, train=1, test=1, force=True)
    assert (tmp_path / 'precious.txt').read_text() == 'mine'


def test_a_failure_leaves_no_folder_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, '_xml', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shapes.generate(tmp_path / 'set', train=1, test=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('wrong', [dict(train=0), dict(test=-1), dict(seed=-1), dict(size=8),
                                   dict(size=0)])
def test_impossible_parameters_are_user_errors(tmp_path, wrong):
    with pytest.raises(UserError):
        shapes.generate(tmp_path / 'set', **wrong)
