"""Under one seed mmdet's own samples: boxes bit for bit, pixels up to rounding where decoded whole."""
import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import hgd_det  # noqa: F401  serves the operators that mmcv may lack
from hgd_det.errors import UserError
from hgd_det.testing import textured

pytest.importorskip('mmdet')
from mmdet.structures.bbox import HorizontalBoxes  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.dataset import Compose, DefaultSampler  # noqa: E402

import hgd_det.registered  # noqa: E402,F401
from hgd_det.data.ssd_augment import SSDAugment  # noqa: E402
from hgd_det.training.replay import install  # noqa: E402

pytestmark = pytest.mark.thorough

CONFIG = Config.fromfile(
    Path(__file__).parents[2] / 'configs/_base_/datasets/ssd300_pipelines.py')
META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction',
        'homography_matrix', 'scale', 'keep_ratio')
PHOTOGRAPHS = Path(__file__).resolve().parents[3] / 'shared/data/voc07mini/VOC2007/JPEGImages'
SIZES = ((500, 375), (375, 500), (333, 251), (640, 480), (200, 150))


def boxes_in(width, height, rng, most=5):
    corner = rng.uniform(0, 0.75, (rng.integers(1, most + 1), 2)) * (width, height)
    size = rng.uniform(0.03, 0.6, corner.shape) * (width, height)
    return np.c_[corner, np.minimum(corner + size, (width, height))].round(1)


def sample(path, boxes=((50, 60, 120, 200),), ignored=(), size=(500, 375)):
    return dict(img_path=str(path), img_id=7, width=size[0], height=size[1], instances=[
        dict(bbox=list(box), bbox_label=label, ignore_flag=int(label in ignored))
        for label, box in enumerate(boxes)])


def steps(pipeline, **change):
    pipeline = copy.deepcopy(list(pipeline))
    pipeline[-1]['meta_keys'] = META
    for step in pipeline:
        if step['type'] == 'SSDAugment':
            step.update(change)
    return Compose([{**step, 'type': f'mmdet.{step["type"]}'} for step in pipeline])


def theirs():
    return steps(CONFIG.mmdet_train_pipeline)


def ours(**change):
    return steps(CONFIG.train_pipeline, **change)


def drawn(pipeline, item, seed):
    np.random.seed(seed)
    return pipeline(copy.deepcopy(item))


def assert_same(one, other, pixels=1e-2):
    """Of pixels between -48 and 430; None compares everything but pixels."""
    one, other, images = one['data_samples'], other['data_samples'], (one['inputs'], other['inputs'])
    for key in ('gt_instances', 'ignored_instances'):
        assert torch.equal(one.get(key).bboxes.tensor, other.get(key).bboxes.tensor)
        assert torch.equal(one.get(key).labels, other.get(key).labels)
    meta, also = one.metainfo, other.metainfo
    assert np.array_equal(meta.pop('homography_matrix'), also.pop('homography_matrix'))
    assert meta == also
    assert images[0].dtype == images[1].dtype and images[0].shape == images[1].shape
    if pixels is not None:
        assert (images[0] - images[1]).abs().max() < pixels


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A textured JPEG of each size, named by its number."""
    folder = tmp_path_factory.mktemp('textured')
    for number, size in enumerate(SIZES):
        cv2.imwrite(str(folder / f'{number}.jpg'), textured(*size, number), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return folder


def items(folder, count, seed=0):
    rng = np.random.default_rng(seed)
    for number in range(count):
        size = SIZES[number % len(SIZES)]
        yield sample(folder / f'{number % len(SIZES)}.jpg', boxes_in(*size, rng), {1}, size)


# ------------------------------------------------------------------------------------------ the same sample
def test_under_one_seed_the_sample_is_mmdets(folder):
    one, other = theirs(), ours()
    for seed, item in enumerate(items(folder, 60)):
        assert_same(drawn(one, item, seed), drawn(other, item, seed))


def test_reduced_decoding_changes_nothing_but_pixels(folder):
    one, other, reduced = theirs(), ours(reduce=True), 0
    for seed, item in enumerate(items(folder, 40)):
        expected, found = drawn(one, item, seed), drawn(other, item, seed)
        whole = other.transforms[1]._plan[1] == 1
        assert_same(expected, found, 1e-2 if whole else None)
        reduced += not whole
    assert 5 < reduced < 30


@pytest.mark.parametrize('boxes, ignored', [((), ()), (((10, 20, 90, 80),), {0}), (((5, 5, 8, 7),), ()),
                                            (((0, 0, 500, 375),) * 3, {2})],
                         ids=['no boxes', 'ignored alone', 'one of three pixels', 'the whole image, thrice'])
def test_images_without_boxes_and_with_odd_ones_are_treated_as_mmdet_treats_them(folder, boxes, ignored):
    one, other = theirs(), ours()
    for seed in range(25):
        item = sample(folder / '0.jpg', boxes, ignored)
        assert_same(drawn(one, item, seed), drawn(other, item, seed))


def test_dark_and_bright_pixels_are_distorted_as_mmdet_distorts_them(tmp_path):
    """Brightness takes dark pixels below zero, where mmdet's way through HSV mirrors them."""
    image = np.random.default_rng(0).integers(0, 40, (60, 80, 3)).astype(np.uint8)
    image[:, 40:] += 215
    cv2.imwrite(str(tmp_path / 'extreme.png'), image)
    item, one, other = sample(tmp_path / 'extreme.png', [(5, 5, 50, 50)], size=(80, 60)), theirs(), ours()
    for seed in range(40):
        assert_same(drawn(one, item, seed), drawn(other, item, seed))


def pixel_statistics(samples):
    pixels = torch.stack([one['inputs'] for one in samples])
    histogram = torch.histc(pixels, 64, -48, 432)
    return pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)), histogram / histogram.sum()


def test_pixels_decoded_at_reduced_scale_are_distributed_as_mmdets(folder):
    """Over 100 samples: channel means within 0.3 of 255, deviations within 2 %, histograms within 2 %."""
    one, other = theirs(), ours(reduce=True)
    pairs = [(drawn(one, item, seed), drawn(other, item, seed))
             for seed, item in enumerate(items(folder, 100, 3))]
    (mean, std, histogram), (mean_, std_, histogram_) = map(pixel_statistics, zip(*pairs, strict=True))
    assert (mean - mean_).abs().max() < 0.3
    assert (std_ / std - 1).abs().max() < 0.02
    assert (histogram - histogram_).abs().sum() / 2 < 0.02


# ------------------------------------------------------------------------------------------ reduced decoding
def psnr(one, other):
    return 10 * torch.log10(255 ** 2 / ((one - other) ** 2).mean()).item()


def reduced_likeness(paths, size):
    """PSNR, with the photometry left out, of every sample that a reduced image went into."""
    still = dict(brightness_delta=0, contrast_range=(1, 1), saturation_range=(1, 1), hue_delta=0,
                 swap_channels=False)
    whole, reduced = ours(**still), ours(reduce=True, **still)
    for seed in range(60):
        item = sample(paths[seed % len(paths)], [(60, 60, 200, 200)], size=size)
        expected, found = drawn(whole, item, seed), drawn(reduced, item, seed)
        if reduced.transforms[1]._plan[1] > 1:
            yield psnr(expected['inputs'], found['inputs'])


def test_textured_images_decoded_at_reduced_scale_look_like_whole_ones(folder):
    found = list(reduced_likeness([folder / '0.jpg', folder / '3.jpg'], (500, 375)))
    assert len(found) > 10 and min(found) > 26 and np.median(found) > 30


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason='needs the photographs')
def test_photographs_decoded_at_reduced_scale_look_like_whole_ones():
    found = list(reduced_likeness(sorted(PHOTOGRAPHS.iterdir())[:40], (320, 240)))
    assert len(found) > 5 and min(found) > 25 and np.median(found) > 30


# ------------------------------------------------------------------------------------------ kinds of images
@pytest.mark.parametrize('orientation', range(1, 9))
def test_turned_photographs_are_turned_before_the_window_is_drawn(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(textured(640, 400)).save(tmp_path / 'turned.jpg', quality=92, exif=exif)
    item = sample(tmp_path / 'turned.jpg')
    one, other, reduced = theirs(), ours(), ours(reduce=True)
    for seed in range(6):
        expected = drawn(one, item, seed)
        assert expected['data_samples'].ori_shape == ((400, 640) if orientation < 5 else (640, 400))
        assert_same(expected, drawn(other, item, seed))
        found = drawn(reduced, item, seed)
        assert_same(expected, found, None)
        assert psnr(expected['inputs'], found['inputs']) > 20


@pytest.mark.parametrize('mode, name', [('L', 'grey.jpg'), ('CMYK', 'ink.jpg'), ('RGB', 'plain.png'),
                                        ('P', 'palette.png'), ('RGBA', 'clear.png'), ('RGB', 'capital.JPEG')])
def test_grey_images_and_other_kinds_are_read_as_mmdet_reads_them(tmp_path, mode, name):
    Image.fromarray(textured(500, 375)).convert(mode).save(tmp_path / name)
    item, one = sample(tmp_path / name), theirs()
    for reduce in (False, True):
        other = ours(reduce=reduce)
        for seed in range(8):
            expected, found = drawn(one, item, seed), drawn(other, item, seed)
            plan = other.transforms[1]._plan
            assert_same(expected, found, None if plan and plan[1] > 1 else 1e-2)
            assert psnr(expected['inputs'], found['inputs']) > 20


def test_a_header_that_tells_another_size_than_the_decoder_finds_is_not_believed(folder, monkeypatch):
    monkeypatch.setattr('hgd_det.data.images.header_size', lambda path: (375, 500))
    other = ours(reduce=True)
    for seed in range(10):
        found = drawn(other, sample(folder / '0.jpg'), seed)['data_samples']
        assert found.ori_shape == (375, 500) and found.img_shape == (300, 300)


# ------------------------------------------------------------------------------------------ broken images
def test_a_broken_image_is_counted_and_another_takes_its_place(tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8 not an image')
    for reduce in (False, True):
        transform = ours(reduce=reduce)
        assert transform(sample(tmp_path / 'broken.jpg')) is None
        assert transform(sample(tmp_path / 'missing.jpg')) is None
        assert transform.transforms[1].count == 2


def test_a_broken_image_can_be_a_blank_one_and_keep_its_boxes(folder, tmp_path):
    header = (folder / '0.jpg').read_bytes()[:700]  # tells its size, and nothing more
    (tmp_path / 'broken.jpg').write_bytes(header)
    transform = ours(reduce=True, broken='blank', expand_prob=0, brightness_delta=0, contrast_range=(1, 1),
                     saturation_range=(1, 1), hue_delta=0)
    for seed in range(5):
        found = drawn(transform, sample(tmp_path / 'broken.jpg', size=(320, 240)), seed)
        assert (found['inputs'] - 128).abs().max() < 1e-3
        assert found['data_samples'].ori_shape == (240, 320)
        assert len(found['data_samples'].gt_instances) == 1
    assert transform.transforms[1].count == 5


def test_an_image_of_too_many_pixels_is_not_decoded(folder, monkeypatch):
    monkeypatch.setattr('mmcv.imfrombytes', lambda *a, **k: pytest.fail('decoded'))
    transform = ours(reduce=True, max_pixels=1000)
    assert transform(sample(folder / '0.jpg')) is None and transform.transforms[1].count == 1


# ------------------------------------------------------------------------------------------ replay, mistakes
class Textured(Dataset):
    def __init__(self, folder):
        self.items, self.pipeline = list(items(folder, 6)), ours(reduce=True)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.pipeline(copy.deepcopy(self.items[index]))


def test_a_replayed_draw_is_the_same_with_any_number_of_workers(folder):
    def batches(workers, seed=3):
        data = Textured(folder)
        loader = DataLoader(data, batch_size=3, sampler=DefaultSampler(data, seed=5), num_workers=workers,
                            collate_fn=list)
        return [one for batch in install(loader, seed) for one in batch]

    alone, together, other = batches(0), batches(2), batches(0, seed=4)
    for one, same in zip(alone, together, strict=True):
        assert_same(one, same, 1e-9)
    assert not all(torch.equal(a['inputs'], b['inputs']) for a, b in zip(alone, other, strict=True))


@pytest.mark.parametrize('options, message', [
    (dict(ratio_range=(4, 1)), 'the lower first'), (dict(contrast_range=(0, 1)), 'above 0'),
    (dict(ratio_range=(0.5, 2)), 'the canvas'), (dict(min_crop_size=30), 'shares'),
    (dict(min_ious=(10, 30)), 'shares'), (dict(broken='crash'), 'blank')])
def test_numbers_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SSDAugment((300, 300), **options)


def test_what_the_window_would_not_move_is_refused(folder):
    transform = SSDAugment((300, 300))
    with pytest.raises(UserError, match='LoadAnnotations'):
        transform(dict(img_path=str(folder / '0.jpg')))
    with pytest.raises(UserError, match='gt_masks'):
        transform(dict(img_path=str(folder / '0.jpg'), gt_masks=[],
                       gt_bboxes=HorizontalBoxes(np.zeros((0, 4)))))


def test_boxes_given_as_an_array_come_back_as_one(folder):
    np.random.seed(0)
    boxes = np.float32([[50, 60, 120, 200]])
    found = SSDAugment((300, 300))(dict(img_path=str(folder / '0.jpg'), gt_bboxes=boxes))
    assert isinstance(found['gt_bboxes'], np.ndarray) and found['gt_bboxes'].shape == (1, 4)
