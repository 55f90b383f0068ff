import pytest

from hgd_det.data.voc_folders import VOCFolders, folder_of
from hgd_det.errors import UserError

XML = """<annotation><filename>{name}.jpg</filename><size><width>40</width><height>40</height>
<depth>3</depth></size><object><name>{label}</name><difficult>0</difficult><bndbox><xmin>2</xmin>
<ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"""
CLASSES = dict(classes=('cat', 'dog'))


@pytest.fixture
def root(tmp_path):
    for year, names in (('VOC2007', ('a', 'b')), ('VOC2012', ('a',))):
        for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
            (tmp_path / year / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / year / 'JPEGImages' / f'{name}.jpg').write_bytes(b'-')
            (tmp_path / year / 'Annotations' / f'{name}.xml').write_text(
                XML.format(name=name, label='cat' if year == 'VOC2007' else 'dog'))
        (tmp_path / year / 'ImageSets/Main/trainval.txt').write_text('\n'.join(names))
    return tmp_path


def lists(*years):
    return [f'{year}/ImageSets/Main/trainval.txt' for year in years]


def test_several_lists_follow_one_another_each_from_its_own_folder(root):
    data = VOCFolders(lists('VOC2007', 'VOC2012'), str(root), metainfo=CLASSES)
    infos = [data.get_data_info(i) for i in range(len(data))]
    assert [info['img_path'] for info in infos] == [
        str(root / path) for path in ('VOC2007/JPEGImages/a.jpg', 'VOC2007/JPEGImages/b.jpg',
                                      'VOC2012/JPEGImages/a.jpg')]
    assert [info['instances'][0]['bbox_label'] for info in infos] == [0, 0, 1]
    assert data.metainfo['classes'] == ('cat', 'dog')


def test_one_list_needs_no_brackets_and_may_be_absolute(root):
    one = lists('VOC2012')[0]
    relative = VOCFolders(one, str(root), metainfo=CLASSES)
    absolute = VOCFolders(str(root / one), metainfo=CLASSES)
    assert relative.get_data_info(0)['img_path'] == absolute.get_data_info(0)['img_path']


def test_filters_apply_in_training_and_not_in_testing(root):
    (root / 'VOC2007/Annotations/b.xml').write_text(XML.format(name='b', label='bird'))
    strict = dict(filter_cfg=dict(filter_empty_gt=True), metainfo=CLASSES)
    assert len(VOCFolders(lists('VOC2007'), str(root), **strict)) == 1
    assert len(VOCFolders(lists('VOC2007'), str(root), test_mode=True, **strict)) == 2


def test_a_trial_takes_the_first_images_of_each_list(root):
    whole = VOCFolders(lists('VOC2007', 'VOC2012'), str(root), test_mode=True, metainfo=CLASSES)
    trial = VOCFolders(lists('VOC2007', 'VOC2012'), str(root), test_mode=True, metainfo=CLASSES, indices=1)
    assert len(trial) == 2 < len(whole)
    assert trial.get_data_info(0)['img_path'] == whole.get_data_info(0)['img_path']


def test_the_folder_is_what_lies_above_image_sets():
    assert folder_of('VOC2007/ImageSets/Main/trainval.txt') == 'VOC2007'
    assert folder_of('/sets/mine/ImageSets/x.txt') == '/sets/mine'
    assert folder_of('ImageSets/Main/train.txt') == '.'


@pytest.mark.parametrize('ann_file', ['train.txt', 'VOC2007/Main/train.txt'])
def test_a_list_outside_image_sets_is_refused_with_the_way_out(ann_file):
    with pytest.raises(UserError, match=f'{ann_file}.*data_prefix'):
        VOCFolders(ann_file, metainfo=CLASSES)


def test_no_list_at_all_is_refused():
    with pytest.raises(UserError, match='at least one list'):
        VOCFolders([], metainfo=CLASSES)
