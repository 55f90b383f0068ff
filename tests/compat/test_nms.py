"""The stand-in's NMS against the greedy definition, through mmcv's own functions."""

import numpy as np
import pytest
import torch

import hgd_det  # noqa: F401  (provides mmcv._ext)
from hgd_det.compat import nms as ours
from hgd_det.compat import suppression

pytestmark = pytest.mark.thorough

mmcv_ops = pytest.importorskip('mmcv.ops')


def iou(a, b, offset):
    """In single precision, in the operations' order of the compiled operator."""
    f = np.float32
    width = max(f(0), min(a[2], b[2]) - max(a[0], b[0]) + f(offset))
    height = max(f(0), min(a[3], b[3]) - max(a[1], b[1]) + f(offset))
    area_a, area_b = ((c[2] - c[0] + f(offset)) * (c[3] - c[1] + f(offset)) for c in (a, b))
    with np.errstate(invalid='ignore', divide='ignore'):
        return width * height / (area_a + area_b - width * height)


def greedy_by_definition(boxes, scores, threshold, offset=0):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):  # stable: ties in input order
        if not any(iou(boxes[k], boxes[i], offset) > np.float32(threshold) for k in kept):
            kept.append(i)
    return kept


def random_set(rng, most=24):
    """Few boxes on a coarse grid, so that ties, identical, touching and empty boxes are common."""
    n = int(rng.integers(0, most + 1))
    scale = rng.choice([1, 8, 100])
    corner = rng.integers(0, 6, (n, 2)) * scale
    size = rng.integers(0, 6, (n, 2)) * scale
    jitter = rng.normal(0, 0.3, (n, 4)) * rng.integers(0, 2)
    boxes = (np.concatenate([corner, corner + size], 1) + jitter).astype(np.float32)
    scores = rng.choice([rng.random(n), rng.integers(0, 4, n) / 4]).astype(np.float32)
    return boxes, scores


@pytest.mark.parametrize('offset', [0, 1])
def test_nms_equals_the_greedy_definition_on_thousands_of_random_sets(offset):
    rng = np.random.default_rng(offset)
    suppressed = 0
    for _ in range(2500):
        boxes, scores = random_set(rng)
        threshold = float(rng.choice([0, 0.2, 0.45, 0.5, 0.9]))
        wanted = greedy_by_definition(boxes, scores, threshold, offset)
        got = ours.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold, offset)
        assert got.tolist() == wanted, (boxes, scores, threshold)
        suppressed += len(boxes) - len(wanted)
    assert suppressed > 5000  # the sets are no trivial ones


@pytest.mark.filterwarnings('ignore:invalid value')  # numpy's remark on what is not finite
@pytest.mark.parametrize('rounds, pairs', [(1, 1), (8, 1 << 22)])
@pytest.mark.parametrize('offset', [0, 1])
def test_nms_on_a_device_keeps_what_it_keeps_on_a_cpu(monkeypatch, device, offset, rounds, pairs):
    """The very function that boxes on CUDA reach, with identical, empty and endless boxes among them."""
    monkeypatch.setattr(ours, 'ROUNDS', rounds)
    monkeypatch.setattr(ours, 'PAIRS', pairs)
    rng = np.random.default_rng(offset)
    suppressed = 0
    for _ in range(400):
        boxes, scores = map(torch.from_numpy, random_set(rng))
        if not len(boxes):
            continue
        boxes[torch.from_numpy(rng.random(boxes.shape) < 0.01)] = float(rng.choice([np.nan, np.inf]))
        threshold = float(rng.choice([-0.5, 0, 0.2, 0.45, 0.5, 0.9]))
        got = ours.on_device(boxes.to(device), scores.to(device), threshold, offset)
        assert got.tolist() == ours.nms(boxes, scores, threshold, offset).tolist(), (boxes, scores, threshold)
        suppressed += len(boxes) - len(got)
    assert suppressed > 500


def test_nms_on_a_device_follows_a_long_chain(device):
    """Each box suppresses the next alone, so that every second one survives, however long it takes."""
    left = torch.arange(101., device=device)
    boxes = torch.stack([left, left * 0, left + 2, left * 0 + 1], 1)
    assert ours.on_device(boxes, -left, 0.3).tolist() == list(range(0, 101, 2))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_nms_of_mmcv_runs_on_the_device_of_the_boxes(device, dtype):
    boxes = torch.tensor([[0., 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], dtype=dtype, device=device)
    scores = torch.tensor([0.5, 0.9, 0.7], dtype=dtype, device=device)
    for offset in (0, 1):
        dets, keep = mmcv_ops.nms(boxes, scores, 0.5, offset)
        assert keep.tolist() == [1, 2] and dets.dtype == dtype and keep.device == boxes.device
    assert mmcv_ops.nms(boxes[:0], scores[:0], 0.5)[1].device == boxes.device
    dets, keep = mmcv_ops.soft_nms(boxes.float(), scores.float(), 0.5)
    assert dets.device == keep.device == boxes.device


def test_nms_by_torchvision_keeps_the_same_boxes(torchvision, monkeypatch):
    rng = np.random.default_rng(2)
    for _ in range(300):
        boxes, scores = map(torch.from_numpy, random_set(rng))
        wanted = ours.nms(boxes, scores, 0.45)
        with monkeypatch.context() as patch:
            patch.setattr('hgd_det.compat.sampling.PLAIN', ())
            op = ours.torchvision_op('nms', boxes.device)
        assert op(boxes, scores, 0.45).tolist() == wanted.tolist()


def test_nms_match_groups_each_kept_box_with_those_it_suppresses():
    """By the definition of mmcv's operator: an IoU of exactly the threshold suppresses."""
    rng = np.random.default_rng(9)
    for _ in range(300):
        boxes, scores = random_set(rng)
        threshold, taken, wanted = float(rng.choice([0.2, 0.5, 0.9])), set(), []
        order = sorted(range(len(boxes)), key=lambda i: -scores[i])
        for i in order:
            if i not in taken:
                falls = [j for j in order[order.index(i) + 1:] if j not in taken
                         and iou(boxes[i], boxes[j], 0) >= np.float32(threshold)]
                taken.update(falls)
                wanted.append([i, *falls])
        got = mmcv_ops.nms_match(torch.from_numpy(np.c_[boxes, scores]), threshold)
        assert [group.tolist() for group in got] == wanted


@pytest.mark.parametrize('block, pack', [(1, 1), (3, 1), (4, 7), (256, 1000)])
def test_nms_does_not_depend_on_how_boxes_are_grouped(monkeypatch, block, pack):
    monkeypatch.setattr(suppression, 'BLOCK', block)
    monkeypatch.setattr(ours, 'PACK', pack)
    rng = np.random.default_rng(7)
    for _ in range(300):
        boxes, scores = random_set(rng)
        got = ours.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.3)
        assert got.tolist() == greedy_by_definition(boxes, scores, 0.3)


def test_nms_of_many_boxes_crosses_blocks():
    rng = np.random.default_rng(3)
    corner = rng.random((700, 2)) * 60
    boxes = np.concatenate([corner, corner + rng.random((700, 2)) * 30], 1).astype(np.float32)
    scores = rng.random(700).astype(np.float32)
    wanted = greedy_by_definition(boxes, scores, 0.4)
    assert suppression.BLOCK < len(wanted) < 700
    assert ours.nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4).tolist() == wanted


def test_nms_of_nothing_is_nothing():
    dets, keep = mmcv_ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and keep.shape == (0,) and keep.dtype == torch.long


def test_nms_keeps_the_first_of_identical_boxes_with_equal_scores():
    boxes = torch.tensor([[0., 0, 10, 10]]).repeat(50, 1)
    assert ours.nms(boxes, torch.full((50,), 0.7), 0.5).tolist() == [0]


def test_nms_keeps_boxes_at_exactly_the_threshold():
    boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 10, 5]])
    assert ours.nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist() == [0, 1]
    assert ours.nms(boxes, torch.tensor([0.9, 0.8]), 0.499).tolist() == [0]


def test_nms_keeps_boxes_without_area_and_boxes_with_nan():
    boxes = torch.tensor([[5., 5, 5, 5], [5, 5, 5, 5], [float('nan'), 0, 9, 9], [0, 0, 9, 9]])
    assert ours.nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), 0.1).tolist() == [0, 1, 2, 3]


def test_nms_with_a_negative_threshold_keeps_one_box_as_mmcv_does():
    boxes = torch.tensor([[0., 0, 1, 1], [50, 50, 51, 51]])
    assert ours.nms(boxes, torch.tensor([0.1, 0.9]), -0.5).tolist() == [1]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_takes_every_floating_type_and_returns_it(dtype):
    boxes = torch.tensor([[0., 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], dtype=dtype)
    dets, keep = mmcv_ops.nms(boxes, torch.tensor([0.5, 0.9, 0.7], dtype=dtype), 0.5)
    assert keep.tolist() == [1, 2] and dets.dtype == dtype


def test_nms_takes_boxes_that_require_grad():
    boxes = torch.tensor([[0., 0, 10, 10], [1, 1, 10, 10]], requires_grad=True)
    assert ours.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist() == [1]


def test_nms_returns_numpy_for_numpy_and_honours_score_threshold_and_max_num():
    boxes = np.array([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]], np.float32)
    scores = np.array([0.2, 0.9, 0.5], np.float32)
    dets, keep = mmcv_ops.nms(boxes, scores, 0.5, score_threshold=0.3, max_num=1)
    assert isinstance(dets, np.ndarray) and keep.tolist() == [1]


@pytest.mark.parametrize('split_thr', [10000, 5])
def test_batched_nms_suppresses_within_classes_only(split_thr):
    rng = np.random.default_rng(11)
    for _ in range(300):
        boxes, scores = random_set(rng, most=30)
        if not len(boxes):
            continue
        boxes, scores = np.round(np.abs(boxes)), scores + np.arange(len(boxes)) * 1e-3  # no ties
        scores = scores.astype(np.float32)
        labels = rng.integers(0, 4, len(boxes))
        wanted = []
        for label in range(4):
            index = np.flatnonzero(labels == label)
            wanted += index[greedy_by_definition(boxes[index], scores[index], 0.45)].tolist()
        wanted.sort(key=lambda i: -scores[i])
        dets, keep = mmcv_ops.batched_nms(
            torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels),
            dict(type='nms', iou_threshold=0.45, split_thr=split_thr))
        assert keep.tolist() == wanted
        assert torch.equal(dets, torch.from_numpy(np.c_[boxes, scores][wanted]))


def soft_nms_by_definition(boxes, scores, threshold, sigma, min_score, method):
    """Without regard for order among equal scores (the sets below have none)."""
    left, scores, taken = list(range(len(boxes))), scores.astype(np.float64), []
    while left:
        best = max(left, key=lambda i: scores[i])
        left.remove(best)
        taken.append((best, scores[best]))
        for i in left:
            o = float(np.nan_to_num(iou(boxes[best], boxes[i], 0)))
            if method == 'gaussian':
                scores[i] *= np.exp(-o * o / sigma)
            elif o >= threshold:
                scores[i] *= 1 - o if method == 'linear' else 0
        left = [i for i in left if scores[i] >= min_score]
    return taken


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_equals_its_definition(method):
    rng = np.random.default_rng(5)
    for _ in range(400):
        boxes, _ = random_set(rng)
        scores = (rng.permutation(len(boxes)) + rng.random(len(boxes)) * 0.5).astype(np.float32)
        scores /= max(len(boxes), 1)
        wanted = soft_nms_by_definition(boxes, scores, 0.3, 0.5, 0.05, method)
        dets, inds = mmcv_ops.soft_nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.3,
                                       sigma=0.5, min_score=0.05, method=method)
        assert inds.dtype == torch.long and dets.shape == (len(inds), 5)
        assert inds.tolist() == [i for i, _ in wanted]
        np.testing.assert_allclose(dets[:, 4], [s for _, s in wanted], rtol=2e-5, atol=1e-7)
        np.testing.assert_array_equal(dets[:, :4], boxes[inds.numpy()])


def test_soft_nms_breaks_ties_by_the_order_that_swapping_leaves():
    """Worked by hand after the compiled operator: the last box takes the place of a dropped one."""
    far = [[100. * i, 0, 100 * i + 10, 10] for i in range(1, 4)]
    boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 10, 10], *far])
    scores = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.5])
    _, inds = mmcv_ops.soft_nms(boxes, scores, 0.3, method='naive', min_score=0.01)
    assert inds.tolist() == [0, 4, 2, 3]
