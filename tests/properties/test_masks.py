"""Masks of any boxes on maps of any size, against a loop over cells."""
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from hgd_det.distill.functional import MASKS, box_mask

SIDE = st.integers(1, 12)
# on a cell's edge, anywhere, far outside, beyond all measure
COORDINATE = st.integers(-4, 50).map(lambda i: i * 8.) | st.floats(-30, 330, width=32) \
    | st.sampled_from([-1e4, 1e4, -1e30, 1e30, 3e38, -3e38, 1e-40, np.inf, -np.inf])
BOX = st.tuples(*[COORDINATE] * 4)  # the second corner may come first
IMAGES = st.lists(st.lists(BOX, max_size=4), min_size=1, max_size=3)
RULE = st.sampled_from(MASKS)


def mask_of(images, size, shape, rule):
    return box_mask([torch.tensor(one, dtype=torch.float32).reshape(-1, 4) for one in images], size, shape,
                    rule)


def marked(low, high, cell, cells, rule):
    """How much of one cell along an axis; in single precision, as the boxes are."""
    f = np.float32
    if rule == 'center':
        return float(low <= f(cell) + f(.5) < high)
    if rule == 'area':
        return float(np.clip(min(high, f(cell + 1)) - max(low, f(cell)), 0, 1))
    first = np.clip(np.floor(low + f(1e-4)), 0, cells - 1)
    return float(first <= cell < max(min(np.ceil(high - f(1e-4)), cells), first + 1))


def slow_mask(found, size, shape, rule):
    mask, f = np.zeros(size, bool), np.float32
    with np.errstate(over='ignore'):
        for box in np.float32(found).reshape(-1, 4):
            x1, x2 = box[[0, 2]] * f(size[1]) / f(shape[1])
            y1, y2 = box[[1, 3]] * f(size[0]) / f(shape[0])
            for y in range(size[0]):
                for x in range(size[1]):
                    down, across = marked(y1, y2, y, size[0], rule), marked(x1, x2, x, size[1], rule)
                    mask[y, x] |= f(down) * f(across) >= .5
    return mask


@given(IMAGES, st.tuples(SIDE, SIDE), st.tuples(st.integers(1, 320), st.integers(1, 320)), RULE)
def test_a_mask_is_that_of_a_loop_over_its_cells(images, size, shape, rule):
    made = mask_of(images, size, shape, rule)
    assert made.dtype == torch.bool and made.shape == (len(images), *size)
    for mask, found in zip(made, images, strict=True):
        assert mask.tolist() == slow_mask(found, size, shape, rule).tolist()


@given(st.lists(BOX, max_size=4), st.lists(BOX, max_size=3), st.tuples(SIDE, SIDE), RULE)
def test_more_boxes_unmark_nothing_and_mark_what_each_would_alone(some, more, size, rule):
    together = mask_of([some + more], size, (300, 300), rule)[0]
    parts = mask_of([some, more], size, (300, 300), rule)
    assert torch.equal(together, parts[0] | parts[1])
    assert torch.equal(together, mask_of([more + some], size, (300, 300), rule)[0])


@given(BOX, st.tuples(SIDE, SIDE))
def test_by_overlap_every_box_marks_a_rectangle_of_at_least_one_cell(box, size):
    mask = mask_of([[box]], size, (300, 300), 'overlap')[0]
    rows, columns = mask.any(1), mask.any(0)
    assert mask.any() and torch.equal(mask, rows[:, None] & columns[None])
    for line in (rows, columns):
        where = line.nonzero().flatten()
        assert len(where) == where[-1] - where[0] + 1


@given(st.lists(BOX, min_size=1, max_size=3), st.tuples(SIDE, SIDE), RULE)
def test_an_image_has_the_same_mask_beside_others_as_alone(found, size, rule):
    beside = mask_of([[], found, [(0, 0, 300, 300)] * 4], size, (300, 300), rule)
    assert torch.equal(beside[1], mask_of([found], size, (300, 300), rule)[0])
    assert not beside[0].any() and beside[2].all()
