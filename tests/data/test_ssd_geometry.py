"""Windows and boxes are mmdet's: bit for bit under one seed, in distribution under others."""
import cv2
import numpy as np
import pytest
from scipy import stats

import hgd_det  # noqa: F401  serves the operators that mmcv may lack

pytest.importorskip('mmdet')
from mmdet.datasets.transforms import Expand, MinIoURandomCrop, RandomFlip, Resize  # noqa: E402
from mmdet.structures.bbox import HorizontalBoxes  # noqa: E402

from hgd_det.data.ssd_geometry import Geometry  # noqa: E402

GEOMETRY = Geometry((300, 300), (1, 4), 0.5, (0.1, 0.3, 0.5, 0.7, 0.9), 0.3, 0.5)
SIZES = ((500, 375), (375, 500), (333, 251), (640, 480), (200, 150))


def boxes_in(width, height, rng, most=5):
    corner = rng.uniform(0, 0.75, (rng.integers(1, most + 1), 2)) * (width, height)
    size = rng.uniform(0.03, 0.6, corner.shape) * (width, height)
    return np.c_[corner, np.minimum(corner + size, (width, height))].round(1)


class Unseen(Resize):
    """Resizes an image without channels, which OpenCV does not."""

    def _resize_img(self, results):
        height, width = results['img'].shape[:2]
        results.update(img=np.empty((300, 300, 0)), img_shape=(300, 300),
                       scale_factor=(300 / width, 300 / height))


def mmdets_geometry(size, boxes):
    """What mmdet's transforms make of the boxes: window's scale, flip, which are kept, and where they lie.

    The image has no channels, so that it costs nothing.
    """
    results = dict(img=np.empty((size[1], size[0], 0), np.uint8), img_shape=size[::-1],
                   gt_bboxes=HorizontalBoxes(boxes.copy()), gt_bboxes_labels=np.arange(len(boxes)))
    for step in (Expand(mean=np.zeros(3), ratio_range=(1, 4)), MinIoURandomCrop(), Unseen((300, 300)),
                 RandomFlip(prob=0.5)):
        results = step(results)
    return (results['scale_factor'], results['flip'], results['gt_bboxes_labels'],
            results['gt_bboxes'].tensor.numpy())


def our_geometry(size, boxes):
    window = GEOMETRY.draw(size, boxes)
    return window.scale, window.flip, window.keep.nonzero()[0], window.boxes


def geometries(draw, seeds):
    """One geometry per seed. Images and boxes follow the order, not the seed."""
    for number, seed in enumerate(seeds):
        rng = np.random.default_rng(number)
        size = SIZES[number % len(SIZES)]
        boxes = boxes_in(*size, rng).astype(np.float32)
        np.random.seed(seed)
        yield (len(boxes), *draw(size, boxes))


def assert_equal_geometries(expected, found):
    for one, other in zip(expected, found, strict=True):
        assert one[:3] == other[:3]
        assert np.array_equal(one[3], other[3]) and np.array_equal(one[4], other[4])


def test_150_geometries_are_mmdets_bit_for_bit():
    assert_equal_geometries(geometries(mmdets_geometry, range(150)), geometries(our_geometry, range(150)))


def features(drawn):
    """Per sample: boxes kept, their share, flip, scales; per box: centre, logarithms of size."""
    drawn = list(drawn)
    boxes = np.concatenate([one[4] for one in drawn])
    scale = np.array([one[1] for one in drawn])
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, np.log(np.maximum(boxes[:, 2:] - boxes[:, :2], 0.1))
    return dict(
        count=[len(one[4]) for one in drawn], kept=[len(one[4]) / one[0] for one in drawn],
        flip=[one[2] for one in drawn], zoom_x=np.log(scale[:, 0]), zoom_y=np.log(scale[:, 1]),
        stretch=np.log(scale[:, 0] / scale[:, 1]), center_x=center[:, 0], center_y=center[:, 1],
        width=size[:, 0], height=size[:, 1])


@pytest.mark.slow
def test_10000_geometries_are_mmdets_and_those_of_other_seeds_distributed_alike():
    """Equal under the same seeds; under others, means and spreads within 4 standard errors of a difference,
    and Kolmogorov and Smirnov find none (p > 0.001)."""
    count = 10_000
    expected = list(geometries(mmdets_geometry, range(count)))
    assert_equal_geometries(expected, geometries(our_geometry, range(count)))
    one, other = features(expected), features(geometries(our_geometry, range(count, 2 * count)))
    for name, values in one.items():
        pair = np.asarray(values, float), np.asarray(other[name], float)
        for moment in (lambda x: x, lambda x: (x - x.mean()) ** 2):
            a, b = map(moment, pair)
            error = np.sqrt(a.var() / len(a) + b.var() / len(b))
            assert abs(a.mean() - b.mean()) < 4 * error, name
        assert stats.ks_2samp(*pair).pvalue > 1e-3, name


def test_the_reduction_is_the_largest_that_leaves_the_window_as_large_as_the_output():
    found = set()
    for seed in range(300):
        np.random.seed(seed)
        window = GEOMETRY.draw((1600, 1200), np.float32([[100, 100, 900, 700]]))
        x1, y1, x2, y2 = window.patch
        by = window.reduction
        assert by == 1 or min(x2 - x1, y2 - y1) >= 300 * by
        assert by == 8 or min(x2 - x1, y2 - y1) < 600 * by
        found.add(by)
    assert found == {1, 2, 4, 8}


def test_a_reduced_image_lies_where_the_whole_one_does():
    """A ramp tells a shift: of half an output pixel it would change by more than allowed here."""
    ramp = np.add.outer(np.arange(1200) * 0.05, np.arange(1600) * 0.1).round().astype(np.uint8)
    ramp = cv2.cvtColor(ramp, cv2.COLOR_GRAY2BGR)
    ground, checked = np.full((300, 300, 3), 99, np.uint8), 0
    for seed in range(120):
        np.random.seed(seed)
        window = GEOMETRY.draw((1600, 1200), np.float32([[100, 100, 900, 700]]))
        if (by := window.reduction) == 1:
            continue
        small = cv2.resize(ramp, None, fx=1 / by, fy=1 / by, interpolation=cv2.INTER_AREA)
        whole, reduced = (window.view(image, scale, ground).astype(int)
                          for image, scale in ((ramp, 1), (small, by)))
        apart = np.abs(whole - reduced)
        assert apart.mean() < 0.5
        assert (apart > 3).mean() < 0.02  # the two pixels at each edge, where canvas and image mix
        checked += 1
    assert checked > 50
