"""Groups suppressed together, against each for itself; the tests of `nms` hold `greedy` to its definition."""
import numpy as np
import pytest

from hgd_det.compat import suppression


def boxes_on_a_grid(rng, count):
    """So coarse that equal, touching and empty boxes are common; now and then one is not finite."""
    corner, size = rng.integers(0, 6, (2, count, 2)) * rng.choice([1, 8, 100])
    boxes = (np.concatenate([corner, corner + size], 1) + rng.normal(0, .3, (count, 4)) * rng.integers(0, 2))
    boxes[rng.random(count) < 0.02, rng.integers(0, 4)] = np.nan
    return boxes.astype(np.float32)


@pytest.mark.parametrize('heads, at_once', [((1, 1), 1), ((3, 3), 1), ((2, 4), 70), ((16, 256), 1 << 17)])
@pytest.mark.parametrize('offset', [0, 1])
def test_groups_are_suppressed_each_for_itself(monkeypatch, heads, at_once, offset):
    monkeypatch.setattr(suppression, 'HEADS', heads)
    monkeypatch.setattr(suppression, 'AT_ONCE', at_once)
    rng, fell = np.random.default_rng(5), 0
    for _ in range(60):
        groups = [boxes_on_a_grid(rng, n) for n in rng.choice([0, 1, 3, 24, 90], rng.integers(1, 14))]
        threshold = np.float32(rng.choice([-0.5, 0, 0.3, 0.45, 0.9]))
        wanted = np.concatenate([suppression.greedy(boxes, threshold, offset) for boxes in groups])
        sizes = [len(boxes) for boxes in groups]
        got = suppression.survivors(np.concatenate(groups), sizes, threshold, offset)
        np.testing.assert_array_equal(got, wanted)
        fell += (~wanted).sum()
    assert fell > 3000


@pytest.mark.parametrize('sizes', [[], [0], [0, 0, 0]])
def test_of_nothing_nothing_is_left(sizes):
    assert suppression.survivors(np.zeros((0, 4), np.float32), sizes, 0.5).shape == (0,)


def test_many_groups_and_a_large_one_hold_little_memory():
    import tracemalloc
    rng = np.random.default_rng(1)
    sizes = [3000, *[5] * 1000]
    corner = rng.random((sum(sizes), 2)) * 300
    boxes = np.c_[corner, corner + rng.random((sum(sizes), 2)) * 90].astype(np.float32)
    tracemalloc.start()
    suppression.survivors(boxes, sizes, 0.45)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6      # 3000 x 1001 overlaps alone would be 12e6, three times over
