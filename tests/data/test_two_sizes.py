"""The picture for a teacher of another size: same crop, flip and colours, from pixels before the resize."""
import copy
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import Compose, DefaultSampler, pseudo_collate
from torch.utils.data import ConcatDataset, DataLoader, Dataset

import hgd_det.registered  # noqa: F401
from hgd_det.data.two_sizes import TwoSizes, install
from hgd_det.errors import UserError
from hgd_det.testing import textured
from hgd_det.training.replay import install as replay

pytestmark = pytest.mark.thorough

CONFIG = Config.fromfile(Path(__file__).parents[2] / 'configs/_base_/datasets/ssd300_pipelines.py')
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
PACK = dict(type='PackDetInputs', meta_keys=('img_shape', 'flip', 'img_path'))
WANTED = dict(seen=(600, 600))


def resize(side, **more):
    return dict(type='Resize', scale=(side, side), keep_ratio=False, **more)


PIPELINES = {
    'flips': [*LOAD, resize(300), dict(type='RandomFlip', prob=0.5), PACK],
    'four flips': [*LOAD, resize(300, interpolation='area'), dict(
        type='RandomFlip', prob=[.25] * 3, direction=['horizontal', 'vertical', 'diagonal']), PACK],
    'crops': [*LOAD, dict(type='RandomCrop', crop_size=(150, 150), allow_negative_crop=True), resize(300),
              dict(type='RandomFlip', prob=0.5), PACK],
    'colours': [
        *LOAD, resize(300), dict(type='mmdet.YOLOXHSVRandomAug'),
        dict(type='mmcv.RandomApply', transforms=[dict(type='mmdet.Posterize', level=5)]),
        dict(type='mmcv.RandomChoice', transforms=[
            [dict(type='mmdet.Invert')], [dict(type='mmdet.Solarize')]]), PACK],
    'mmdet': CONFIG.mmdet_train_pipeline,
    'fused': CONFIG.train_pipeline,
    'reduced': [dict(step, reduce=True) if step['type'] == 'SSDAugment' else step
                for step in CONFIG.train_pipeline],
}


class Pictures(Dataset):
    """Textured JPEGs with some boxes, through a pipeline."""
    metainfo = dict(classes=('thing',))

    def __init__(self, folder, pipeline, count=12):
        self.folder, self.count = folder, count
        self.pipeline = Compose([TRANSFORMS.build(step) for step in copy.deepcopy(list(pipeline))])

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        corner = rng.uniform(10, 200, (3, 2)).round()
        boxes = np.c_[corner, corner + rng.uniform(30, 150, (3, 2)).round()]
        return self.pipeline(dict(
            img_path=str(self.folder / f'{index % 3}.jpg'), img_id=index, width=1000, height=750,
            instances=[dict(bbox=list(box), bbox_label=0, ignore_flag=int(i == 2))
                       for i, box in enumerate(boxes)]))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for number in range(3):
        cv2.imwrite(str(folder / f'{number}.jpg'), textured(1000, 750, number))
    return folder


def samples(dataset, workers=0, seed=5):
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=pseudo_collate,
                        sampler=DefaultSampler(dataset, shuffle=True, seed=1))
    batches = list(replay(loader, seed))
    return [(image, sample) for batch in batches
            for image, sample in zip(batch['inputs'], batch['data_samples'], strict=True)]


def both(folder, name, wanted=WANTED, **more):
    plain, other = Pictures(folder, PIPELINES[name]), Pictures(folder, PIPELINES[name])
    install(other, wanted)
    return samples(plain, **more), samples(other, **more)


def assert_same_student(plain, other):
    for (image, sample), (also, twin) in zip(plain, other, strict=True):
        assert image.dtype == also.dtype and torch.equal(image, also)
        for part in ('gt_instances', 'ignored_instances'):
            assert torch.equal(sample.get(part).bboxes.tensor, twin.get(part).bboxes.tensor)
            assert torch.equal(sample.get(part).labels, twin.get(part).labels)
        assert sample.metainfo == twin.metainfo


@pytest.mark.parametrize('name', PIPELINES)
def test_the_students_sample_is_bit_for_bit_what_it_is_alone(folder, name):
    plain, other = both(folder, name)
    assert_same_student(plain, other)
    assert {tuple(sample.seen.shape) for _, sample in other} == {(3, 600, 600)}
    assert all(sample.seen.dtype == image.dtype for image, sample in other)


@pytest.mark.parametrize('name', PIPELINES)
def test_both_pictures_show_the_same_crop_flip_and_colours(folder, name):
    """The teacher's picture shrunk to the student's size is the student's, up to how it was shrunk."""
    shown = 0
    for image, sample in both(folder, name)[1]:
        mine, theirs = image.float()[None], sample.seen.float()[None]
        small = torch.nn.functional.interpolate(theirs, size=(300, 300), mode='area')
        turned = min((mine - small.flip(dims)).abs().mean() for dims in ([3], [2], [2, 3]))
        off = (mine - small).abs().mean()
        shown += bool(off < 0.6 * turned)
    assert shown >= 11, shown    # of 12; a patch of bare canvas is the same however it is turned


@pytest.mark.parametrize('name', ['flips', 'mmdet', 'reduced'])
def test_workers_give_the_same_pictures(folder, name):
    one, other = both(folder, name)[1], both(folder, name, workers=2)[1]
    assert_same_student(one, other)
    assert all(torch.equal(a.seen, b.seen) for (_, a), (_, b) in zip(one, other, strict=True))


def test_the_fused_augmentation_shows_what_mmdets_steps_show(folder):
    for (_, one), (_, other) in zip(both(folder, 'mmdet')[1], both(folder, 'fused')[1], strict=True):
        assert (one.seen - other.seen).abs().max() < 1e-2


def test_a_jpeg_that_is_too_coarse_for_the_teacher_is_decoded_once_more(folder):
    """reduce=True decodes for 300 pixels what the teacher needs at 600: its picture must not be blown up."""
    fine, coarse = both(folder, 'fused')[1], both(folder, 'reduced')[1]
    again = 0
    for (mine, whole), (reduced, sample) in zip(fine, coarse, strict=True):
        again += not torch.equal(mine, reduced) and torch.equal(whole.seen, sample.seen)
    assert again >= 3, again


def test_several_sizes_at_once_and_smaller_ones(folder):
    other = both(folder, 'fused', dict(large=(600, 600), small=(100, 150)))[1]
    assert all(sample.large.shape[1:] == (600, 600) and sample.small.shape[1:] == (100, 150)
               for _, sample in other)


def test_the_students_own_size_costs_nothing(folder):
    dataset = Pictures(folder, PIPELINES['flips'])
    install(dataset, dict(seen=(300, 300)))
    assert 'seen' not in dataset[0]['data_samples']
    assert not any(isinstance(step, TwoSizes) for step in dataset.pipeline.transforms)


def test_sets_in_sets_are_reached_and_done_once(folder):
    inner = [Pictures(folder, PIPELINES['flips'], 3) for _ in range(2)]
    install(ConcatDataset(inner), WANTED)
    install(SimpleNamespace(dataset=inner[0]), WANTED)    # as those that repeat or balance a set
    for one in inner:
        assert [type(step).__name__ for step in one.pipeline.transforms] == [
            'LoadImageFromFile', 'LoadAnnotations', 'TwoSizes']


def test_a_sample_without_boxes_or_picture_is_left_to_the_data_set(folder):
    crop = dict(type='FilterAnnotations', min_gt_bbox_wh=(900, 900), keep_empty=True)
    dataset = Pictures(folder, [*LOAD, resize(300), crop, PACK])
    install(dataset, WANTED)
    assert dataset[0] is None
    dataset = Pictures(Path('nowhere'), PIPELINES['fused'])
    install(dataset, WANTED)
    assert dataset[0] is None


@pytest.mark.parametrize('pipeline, said', [
    ([*LOAD, resize(300), dict(type='RandomCrop', crop_size=(150, 150)), PACK], 'RandomCrop behind the res'),
    ([*LOAD, resize(300), dict(type='CutOut', n_holes=1, cutout_shape=(9, 9)), PACK], 'step CutOut behind'),
    ([*LOAD, resize(300), dict(type='mmcv.RandomApply', transforms=[dict(type='mmdet.RandomShift')]), PACK],
     'step RandomApply behind'),
    ([*LOAD, resize(300), dict(type='Pad', size=(320, 320)), PACK], 'step Pad behind'),
    ([*LOAD, dict(type='Resize', scale=(500, 300), keep_ratio=True), PACK], 'keep_ratio=True.*keep_ratio=F'),
    ([*LOAD, dict(type='FixShapeResize', width=300, height=300), PACK], 'FixShapeResize'),
    ([*LOAD, dict(type='Resize', scale_factor=0.5), PACK], 'scale=None'),
    ([*LOAD, PACK], 'no Resize'),
    ([*LOAD, resize(300)], 'PackDetInputs'),
])
def test_what_cannot_be_done_at_two_sizes_is_refused(folder, pipeline, said):
    with pytest.raises(UserError, match=f'600x600.*{said}.*leave input_size out'):
        install(Pictures(folder, pipeline), WANTED)


def test_sets_that_mix_pictures_are_refused(folder):
    mixing = type('Mixing', (), dict(dataset=Pictures(folder, PIPELINES['flips']), pipeline=[]))()
    with pytest.raises(UserError, match='Mixing mixes several pictures'):
        install(mixing, WANTED)


# --------------------------------------------------------------------- what the student's size has lost
@pytest.mark.parametrize('name', ['flips', 'crops'])
def test_a_checkerboard_is_grey_to_the_student_and_not_to_the_teacher(tmp_path, name):
    """Of 1-pixel squares the student's half size sees their mean; the teacher's size has all of them."""
    rows, columns = np.indices((600, 600))
    board = np.where((rows + columns) % 2, 255, 1).astype(np.uint8)
    pictures = {'board': board, 'grey': np.full_like(board, 128)}
    pipeline = copy.deepcopy(PIPELINES[name])
    for step in pipeline:
        if step['type'] == 'Resize':
            step['scale'] = (300, 300) if name == 'flips' else (75, 75)
    side, found = (600 if name == 'flips' else 150), {}
    for kind, picture in pictures.items():
        for number in range(3):
            cv2.imwrite(str(tmp_path / f'{number}.jpg'), picture, [cv2.IMWRITE_JPEG_QUALITY, 100])
        dataset = Pictures(tmp_path, pipeline)
        install(dataset, dict(seen=(side, side)))
        found[kind] = samples(dataset)
    for (board, sample), (grey, plain) in zip(found['board'], found['grey'], strict=True):
        assert (board.float() - grey.float()).abs().max() <= 2
        assert (sample.seen.float() - plain.seen.float()).abs().min() > 100
