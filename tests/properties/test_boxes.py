"""Any boxes: their overlaps, deltas, crops, and which of them are suppressed."""
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import bbox2delta, delta2bbox

import hgd_det  # noqa: F401
from hgd_det.compat import nms as stand_in
from hgd_det.deploy import postprocess
from hgd_det.distill.boxes import box_iou, crops, overlaps

WHOLE, ANY = st.integers(-20, 120).map(float), st.floats(-20, 120, width=32)


def boxes(least=0, most=7, side=0., coordinate=WHOLE | ANY):
    """(n, 4), corners in order, sides of at least this length."""
    corners = st.tuples(*[coordinate] * 4).map(lambda c: (
        min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + side, max(c[1], c[3]) + side))
    return st.lists(corners, min_size=least, max_size=most).map(
        lambda rows: torch.tensor(rows, dtype=torch.float32).reshape(-1, 4))


def slow_iou(a, b):
    """In double precision; (iou, diou)."""
    (ax, ay, au, av), (bx, by, bu, bv) = (list(map(float, box)) for box in (a, b))
    shared = max(0., min(au, bu) - max(ax, bx)) * max(0., min(av, bv) - max(ay, by))
    iou = shared / max(1e-6, (au - ax) * (av - ay) + (bu - bx) * (bv - by) - shared)
    apart = ((ax + au - bx - bu) / 2) ** 2 + ((ay + av - by - bv) / 2) ** 2
    around = (max(au, bu) - min(ax, bx)) ** 2 + (max(av, bv) - min(ay, by)) ** 2
    return iou, iou - apart / max(1e-6, around)


@given(boxes(), boxes())
def test_overlaps_are_symmetric_bounded_and_those_of_a_slow_reference(a, b):
    iou, diou = overlaps(a, b)
    assert torch.equal(iou, box_iou(b, a).T)
    torch.testing.assert_close(diou, overlaps(b, a)[1].T, rtol=0, atol=1e-6)
    assert ((iou >= 0) & (iou <= 1 + 1e-6)).all() and ((diou >= -1 - 1e-6) & (diou <= iou)).all()
    wanted = torch.tensor([[slow_iou(one, other) for other in b] for one in a]).reshape(len(a), len(b), 2)
    torch.testing.assert_close(iou, wanted[..., 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(diou, wanted[..., 1], rtol=1e-4, atol=1e-5)


@given(boxes(side=.1))
def test_a_box_with_area_overlaps_itself_wholly(a):
    iou, diou = overlaps(a, a)
    torch.testing.assert_close(iou.diag(), torch.ones(len(a)))
    torch.testing.assert_close(diou.diag(), torch.ones(len(a)))


@given(boxes(1, 5, side=3.), boxes(1, 5, side=3.), st.sampled_from([(.1, .1, .2, .2), (1., 1., 1., 1.)]))
def test_deltas_lead_back_to_the_box_they_were_made_of(anchors, targets, stds):
    anchors, targets = anchors[:len(targets)], targets[:len(anchors)]
    deltas = bbox2delta(anchors, targets, stds=stds)  # no side is 62 times another: mmdet's limit
    assert deltas.isfinite().all()
    torch.testing.assert_close(delta2bbox(anchors, deltas, stds=stds), targets, rtol=1e-4, atol=2e-2)
    inside = delta2bbox(anchors, deltas, stds=stds, max_shape=(80, 100))
    limits = torch.tensor([100., 80., 100., 80.])
    torch.testing.assert_close(inside, torch.minimum(targets.clamp(min=0), limits), rtol=1e-4, atol=2e-2)
    assert ((inside >= 0) & (inside <= limits)).all()


def nms_by_definition(found, order, threshold, exact):
    kept = []
    for i in order:
        if not any(exact(found[k], found[i]) > threshold for k in kept):
            kept.append(i)
    return kept


def slow_single(a, b):
    """IoU in single precision, in the order of operations of the compiled operator."""
    a, b = np.float32(a), np.float32(b)
    width = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]))
    shared = width * max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]))
    with np.errstate(invalid='ignore', divide='ignore'):
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


scores = st.lists(st.sampled_from([.1, .5, .5, .9]) | st.floats(0, 1, width=32), min_size=12, max_size=12)


@given(boxes(most=12), scores, st.sampled_from([0., .3, .45, .5, .9, 1.]))
def test_what_nms_keeps_is_a_largest_set_without_overlap_in_order(found, score, threshold):
    score = torch.tensor(score)[:len(found)]
    kept = stand_in.nms(found, score, threshold).tolist()
    order = sorted(range(len(found)), key=lambda i: -score[i])
    threshold = np.float32(threshold)
    assert kept == nms_by_definition(found.numpy(), order, threshold, slow_single)
    assert kept == [i for i in order if i in kept]
    iou = {(i, j): slow_single(found[i], found[j]) for i in range(len(found)) for j in range(len(found))}
    assert not any(iou[i, j] > threshold for i in kept for j in kept if i != j)
    before = {i: order[:order.index(i)] for i in order}
    assert all(any(iou[k, i] > threshold for k in kept if k in before[i]) for i in order if i not in kept)


@given(boxes(most=12, side=1., coordinate=WHOLE), st.sampled_from([.3, .45, .5]))
def test_the_suppression_of_an_exported_model_keeps_the_same_boxes(found, threshold):
    score = torch.linspace(.9, .1, len(found))
    assert postprocess.nms(found.numpy(), threshold).tolist() == \
        stand_in.nms(found, score, threshold).tolist()


@given(boxes(most=6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_crops_of_a_constant_are_that_constant_and_no_crop_leaves_the_range_of_its_map(
        found, height, width, size):
    inside = found.clamp(0, 100)
    flat = crops(torch.full((1, 2, height, width), 3.), [inside], (100, 100), size)
    assert flat.shape == (len(found), 2, size, size)
    # RoIAlign takes no samples of a box without width or height: 0
    real = ((inside[:, 2:] - inside[:, :2]) > 1e-3).all(1)
    assert flat[real].flatten().tolist() == pytest.approx([3.] * flat[real].numel(), abs=1e-4)
    plane = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    ranged = crops(plane, [inside], (100, 100), size)
    assert ((ranged >= -1e-4) & (ranged <= height * width - 1 + 1e-3)).all()
    if len(found):
        torch.testing.assert_close(crops(plane, [inside.flip(0)], (100, 100), size), ranged.flip(0))
