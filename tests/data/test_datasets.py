"""Equal to mmdet's own datasets on sound data; counted, logged, and never stopped by dirt."""
import json
import shutil

import cv2
import numpy as np
import pytest

import hgd_det  # noqa: F401  serves the operators that mmcv may lack
from hgd_det.data import shapes, sources
from hgd_det.errors import UserError

pytest.importorskip('mmdet')
from mmdet.datasets import CocoDataset, VOCDataset, XMLDataset  # noqa: E402
from mmengine.dataset import DefaultSampler  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from hgd_det.data import datasets  # noqa: E402
from hgd_det.data.datasets import CocoFolder, RobustLoadImage, VOCFolder  # noqa: E402

pytestmark = pytest.mark.thorough

FIRST = 'train_00001'


@pytest.fixture
def root(tmp_path):
    shapes.generate(tmp_path / 'set', train=6, test=2, seed=1)
    return tmp_path / 'set'


def voc(root, cls=VOCFolder, split='trainval', **options):
    options.setdefault('metainfo', shapes.metainfo())
    return cls(data_root=str(root), ann_file=f'VOC2007/ImageSets/Main/{split}.txt',
               data_prefix=dict(sub_data_root='VOC2007/'), pipeline=options.pop('pipeline', []),
               **options)


def coco(root, cls=CocoFolder, **options):
    options.setdefault('metainfo', shapes.metainfo())
    return cls(data_root=str(root), ann_file='annotations/instances_train.json',
               data_prefix=dict(img='VOC2007/JPEGImages/'), pipeline=[], **options)


def edit(root, old, new, name=FIRST):
    path = root / f'VOC2007/Annotations/{name}.xml'
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new, 1))


def add_object(root, box, cls='disc', difficult='0', name=FIRST):
    corners = ''.join(f'<{key}>{value}</{key}>'
                      for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True))
    edit(root, '</annotation>', f'<object><name>{cls}</name><difficult>{difficult}</difficult>'
         f'<bndbox>{corners}</bndbox></object></annotation>', name)


def infos(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


@pytest.mark.parametrize('options', [
    dict(), dict(test_mode=True), dict(filter_cfg=dict(filter_empty_gt=True, min_size=32)),
    dict(filter_cfg=dict(bbox_min_size=20)), dict(filter_cfg=dict(min_size=90)),
    dict(indices=3)])
def test_on_sound_data_voc_folder_equals_mmdets_dataset(root, options):
    add_object(root, (10.7, 5, 40.2, 60), difficult='1')
    add_object(root, (0, 0, 97, 30))  # counted from 0, and one past the edge: kept as it is
    edit(root, '<size><width>96</width><height>96</height><depth>3</depth></size>', '',
         'train_00002')
    ours, theirs = voc(root, **options), voc(root, XMLDataset, **options)
    assert infos(ours) == infos(theirs) and not ours.skipped


@pytest.mark.parametrize('year', ['VOC2007', 'VOC2012', 'folder'])
def test_the_dataset_type_is_vocs_only_with_vocs_own_classes(root, tmp_path, year):
    if year != 'VOC2007':
        (root / 'VOC2007').rename(root / year)
    add = dict(data_root=str(root), ann_file=f'{year}/ImageSets/Main/test.txt', pipeline=[], test_mode=True,
               data_prefix=dict(sub_data_root=f'{year}/'))
    assert VOCFolder(metainfo=shapes.metainfo(), **add).metainfo['dataset_type'] is None
    own = VOCFolder(metainfo=dict(classes=sources.VOC_CLASSES), **add)
    assert own.metainfo['dataset_type'] == VOCDataset(**add).metainfo['dataset_type']


def test_class_tables_are_mmdets():
    assert VOCDataset.METAINFO['classes'] == sources.VOC_CLASSES
    assert CocoDataset.METAINFO['classes'] == sources.COCO_CLASSES


INVALID = {
    'box_zero': (20, 20, 20, 40), 'box_inverted': (40, 40, 20, 60),
    'coordinate_bad': ('nan', 1, 20, 20), 'box_outside': (200, 200, 300, 300)}


@pytest.mark.parametrize('kind', sorted(INVALID))
def test_an_unusable_box_is_left_out_and_counted(root, kind):
    before = infos(voc(root))
    add_object(root, INVALID[kind])
    dataset = voc(root)
    assert [info['instances'] for info in infos(dataset)] == [i['instances'] for i in before]
    assert dict(dataset.skipped) == {kind: 1}


def test_a_box_over_the_edge_is_clipped_and_counted(root):
    add_object(root, (50, -20, 140, 60))
    dataset = voc(root)
    assert infos(dataset)[0]['instances'][-1]['bbox'] == [49, 0, 96, 59]
    assert dict(dataset.skipped) == {'box_outside': 1}


def test_a_wrong_size_does_not_cut_boxes_that_lie_in_the_image(root):
    add_object(root, (50, 50, 90, 90))
    edit(root, '<width>96</width><height>96</height>', '<width>40</width><height>40</height>')
    dataset = voc(root)
    assert infos(dataset)[0]['instances'][-1]['bbox'] == [49, 49, 89, 89]
    assert not dataset.skipped


@pytest.mark.parametrize('text,kind', [
    ('<annotation>', 'xml_unparsable'), ('', 'xml_unparsable'), (None, 'annotation_missing'),
    ('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>', 'xml_doctype')])
@pytest.mark.parametrize('test_mode', [False, True])
def test_an_unreadable_annotation_leaves_its_image_out(root, text, kind, test_mode):
    path = root / f'VOC2007/Annotations/{FIRST}.xml'
    path.unlink() if text is None else path.write_text(text)
    dataset = voc(root, test_mode=test_mode)
    assert len(dataset) == 5 and dict(dataset.skipped) == {kind: 1}


def test_unknown_classes_blank_lines_and_escapes_are_counted(root):
    add_object(root, (1, 1, 20, 20), cls='unicorn')
    path = root / 'VOC2007/ImageSets/Main/trainval.txt'
    path.write_text(path.read_text() + f'\n../../x\n{FIRST}\n')
    dataset = voc(root)
    assert len(dataset) == 6
    assert dict(dataset.skipped) == {'id_blank': 1, 'id_unsafe': 1, 'id_duplicate': 1,
                                     'class_unknown': 1}


def test_images_may_have_other_endings(root):
    path = root / f'VOC2007/JPEGImages/{FIRST}'
    cv2.imwrite(str(path) + '.png', cv2.imread(str(path) + '.jpg'))
    (root / f'VOC2007/JPEGImages/{FIRST}.jpg').unlink()
    dataset = voc(root)
    assert infos(dataset)[0]['img_path'].endswith('.png') and not dataset.skipped


def test_a_missing_image_is_left_out_of_training_but_stays_in_testing(root):
    (root / f'VOC2007/JPEGImages/{FIRST}.jpg').unlink()
    assert len(voc(root)) == 5
    dataset = voc(root, test_mode=True)
    assert len(dataset) == 6 and dict(dataset.skipped) == {'image_missing': 1}


def test_what_was_left_out_is_logged_with_an_example(root, monkeypatch):
    lines = []
    monkeypatch.setattr(datasets, 'print_log', lambda text, **_: lines.append(text))
    add_object(root, INVALID['box_zero'])
    path = root / 'VOC2007/Annotations/train_00002.xml'
    path.write_text(path.read_text().split('<object>')[0] + '</annotation>')
    broken(root)
    dataset = voc(root, filter_cfg=dict(filter_empty_gt=True))
    assert 'box_zero 1' in lines[0] and FIRST in lines[0]
    assert '1 of 6 images left out by filter_cfg' in lines[1]
    transform = RobustLoadImage()
    for _ in range(2):
        assert transform(dataset.get_data_info(0)) is None
    assert len(lines) == 3 and FIRST in lines[2] and 'another image takes its place' in lines[2]
    assert transform.count == 2


def test_unusable_sets_are_user_errors(root):
    with pytest.raises(UserError, match='class names'):
        voc(root, metainfo=None)
    with pytest.raises(UserError, match='cannot read the list'):
        voc(root, split='nothing')
    with pytest.raises(UserError, match='leaves none of the 6'):
        voc(root, filter_cfg=dict(min_size=200))
    shutil.rmtree(root / 'VOC2007/Annotations')
    with pytest.raises(UserError, match='none of the 6 images'):
        voc(root)


def alter(root, change):
    path = root / 'annotations/instances_train.json'
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_on_sound_data_coco_folder_equals_mmdets_dataset(root):
    alter(root, lambda d: d['annotations'][0].update(iscrowd=1))
    ours, theirs = coco(root), coco(root, CocoDataset)
    assert infos(ours) == infos(theirs) and not ours.skipped


@pytest.mark.parametrize('change,kind', [
    (dict(bbox=[10, 10, 0, 5]), 'box_zero'), (dict(bbox=[10, 10, -3, 5]), 'box_inverted'),
    (dict(bbox=[300, 300, 9, 9]), 'box_outside'), (dict(bbox=None), 'coordinate_bad'),
    (dict(bbox=[float('nan'), 1, 5, 5]), 'coordinate_bad'), (dict(category_id=44),
                                                              'class_unknown')])
def test_coco_folder_counts_what_mmdet_drops_silently(root, change, kind):
    count = len(infos(coco(root))[0]['instances'])
    alter(root, lambda d: d['annotations'][0].update(change))
    dataset = coco(root)
    assert dict(dataset.skipped) == {kind: 1}
    assert len(infos(dataset)[0]['instances']) == count - 1


def test_coco_folder_refuses_classes_that_the_file_lacks(root):
    with pytest.raises(UserError, match='knows 1 of them'):
        coco(root, metainfo=dict(classes=('disc', 'Square')))
    assert coco(root, metainfo=dict(classes=('disc', 'ring'))).cat2label == {1: 0, 6: 1}


def broken(root, name=FIRST, data=b'not an image'):
    (root / f'VOC2007/JPEGImages/{name}.jpg').write_bytes(data)


def test_loading_a_sound_image_equals_mmcvs(root):
    from mmcv.transforms import LoadImageFromFile
    path = str(root / f'VOC2007/JPEGImages/{FIRST}.jpg')
    for options in (dict(), dict(to_float32=True)):
        ours = RobustLoadImage(**options)(dict(img_path=path))
        theirs = LoadImageFromFile(**options)(dict(img_path=path))
        assert ours.keys() == theirs.keys() and ours['img'].dtype == theirs['img'].dtype
        assert np.array_equal(ours['img'], theirs['img'])


@pytest.mark.parametrize('workers', [0, 2])
def test_an_epoch_over_broken_images_goes_through_and_counts_them(root, workers):
    broken(root)
    broken(root, 'train_00004', b'')
    dataset = voc(root, pipeline=[dict(type='mmdet.RobustLoadImage')])
    loader = DataLoader(dataset, batch_size=2, sampler=DefaultSampler(dataset, shuffle=False),
                        num_workers=workers, collate_fn=list)
    paths = [path for batch in loader for path in (item['img_path'] for item in batch)]
    assert len(paths) == 6 and not any(FIRST in p or 'train_00004' in p for p in paths)
    assert dataset.pipeline.transforms[0].count >= 2


def test_in_testing_a_broken_image_becomes_blank_and_keeps_its_boxes(root):
    broken(root)
    dataset = voc(root, test_mode=True,
                  pipeline=[dict(type='mmdet.RobustLoadImage', broken='blank')])
    item = dataset[0]
    assert item['img'].shape == (96, 96, 3) and item['img'].std() == 0 and item['instances']
    assert dataset.pipeline.transforms[0].count == 1


def test_an_image_with_too_many_pixels_is_not_decoded(root, monkeypatch):
    path = str(root / f'VOC2007/JPEGImages/{FIRST}.jpg')
    monkeypatch.setattr('mmcv.imfrombytes', lambda *a, **k: pytest.fail('decoded'))
    transform = RobustLoadImage(max_pixels=1000)
    assert transform(dict(img_path=path)) is None and transform.count == 1


def test_an_unknown_way_to_treat_broken_images_is_a_user_error():
    with pytest.raises(UserError, match='blank'):
        RobustLoadImage(broken='crash')
