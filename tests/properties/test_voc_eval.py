"""mAP of any detections: that of the development kit's loop, in whatever order things come."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgd_det.evaluation.voc_eval import MODES, evaluate, mean_ap

CLASSES, IMAGES = 3, 3
BOX = st.tuples(*[st.integers(0, 20)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]) + 1, max(c[1], c[3]) + 1))
WHERE = st.tuples(st.integers(0, IMAGES - 1), st.integers(0, CLASSES - 1), BOX)
TRUTH = st.lists(st.tuples(WHERE, st.booleans()), max_size=8)


@st.composite
def cases(draw):
    truth = draw(TRUTH)
    near = st.sampled_from([where for where, _ in truth]) if truth else WHERE
    found = draw(st.lists(near | WHERE, max_size=12))
    scores = draw(st.permutations(range(1, len(found) + 1)))
    return truth, list(zip(found, [score / 16 for score in scores],
                           strict=True)), draw(st.sampled_from([.3, .5, .75]))


def arrays(truth, found):
    def columns(places):
        return (np.array([place[0] for place in places], int), np.array([place[1] for place in places], int),
                np.array([place[2] for place in places], np.float32).reshape(-1, 4))
    gt, det = columns([where for where, _ in truth]), columns([where for where, _ in found])
    return dict(gt_image=gt[0],
                gt_label=gt[1],
                gt_box=gt[2],
                gt_difficult=np.array([hard for _, hard in truth], bool),
                det_image=det[0],
                det_label=det[1],
                det_box=det[2],
                det_score=np.array([score for _, score in found], np.float32))


def results(truth, found, threshold, legacy=True):
    return evaluate(**arrays(truth, found), num_classes=CLASSES, iou_thrs=[threshold], legacy=legacy)[0]


def slow_iou(a, b, one):
    width, height = min(a[2], b[2]) - max(a[0], b[0]) + one, min(a[3], b[3]) - max(a[1], b[1]) + one
    shared = max(0, width) * max(0, height)
    size = sum((box[2] - box[0] + one) * (box[3] - box[1] + one) for box in (a, b))
    return np.float32(shared) / np.float32(size - shared)


def slow_ap(truth, found, label, threshold, one):
    """One detection after the other, best first: {mode: AP}, and how many boxes count."""
    boxes = sorted(((where[0], where[2], hard) for where, hard in truth if where[1] == label),
                   key=lambda box: box[2])
    count, claimed, hits = sum(not hard for *_, hard in boxes), set(), []
    for (image, its, box), _ in sorted(found, key=lambda one: -one[1]):
        if its != label:
            continue
        best, overlap = None, -1
        for i, (where, other, _) in enumerate(boxes):
            if where == image and slow_iou(box, other, one) > overlap:
                best, overlap = i, slow_iou(box, other, one)
        if overlap < np.float32(threshold):
            hits.append(False)
        elif not boxes[best][2]:
            hits.append(best not in claimed)
            claimed.add(best)
    points = [(sum(hits[:i]) / max(count, 1), sum(hits[:i]) / i) for i in range(1, len(hits) + 1)]

    def best_from(recall):
        return max((p for r, p in points if r >= recall - 1e-9), default=0.)
    steps = [0., *(r for r, _ in points)]
    return {
        '11points': sum(best_from(t / 10) for t in range(11)) / 11,
        'area': sum((new - old) * best_from(new) for old, new in zip(steps, steps[1:], strict=False))
    }, count


@given(cases(), st.booleans())
def test_average_precision_is_that_of_a_loop_over_detections(case, legacy):
    truth, found, threshold = case
    made = results(truth, found, threshold, legacy)
    wanted = [slow_ap(truth, found, label, threshold, int(legacy)) for label in range(CLASSES)]
    for result, (ap, count) in zip(made, wanted, strict=True):
        assert result.num_gts == count
        for mode in MODES if count else ():
            assert result.ap[mode] == pytest.approx(ap[mode], abs=1e-6)
    for mode in MODES:
        counted = [ap[mode] for ap, count in wanted if count]
        assert mean_ap(made, mode) == pytest.approx(np.mean(counted) if counted else 0, abs=1e-6)


@given(cases(), st.randoms(use_true_random=False))
def test_neither_the_order_of_things_nor_a_rescaling_of_scores_changes_it(case, chance):
    truth, found, threshold = case
    before = [result.ap for result in results(truth, found, threshold)]
    # equal overlaps go to the first box, so the order of boxes is kept among equals
    mixed = [(where, score) for where, score in found]
    chance.shuffle(mixed)
    assert [result.ap for result in results(truth, mixed, threshold)] == before
    bent = [(where, score ** 3 * .9 + .05) for where, score in mixed]
    assert [result.ap for result in results(truth, bent, threshold)] == before
    renamed = chance.sample(range(IMAGES), IMAGES)

    def moved(things):
        return [((renamed[image], label, box), rest) for (image, label, box), rest in things]
    assert [result.ap for result in results(moved(truth), moved(found), threshold)] == before


@given(cases())
def test_a_false_detection_below_all_others_never_helps_and_a_missed_object_found_never_harms(case):
    truth, found, threshold = case
    before = results(truth, found, threshold)
    nowhere = [((0, label, (500, 500, 510, 510)), .001) for label in range(CLASSES)]
    for mode in MODES:
        assert mean_ap(results(truth, found + nowhere, threshold), mode) <= mean_ap(before, mode) + 1e-9
        alone = [(where, False) for where, _ in truth]
        perfect = [(where, 1 - i / 100) for i, (where, _) in enumerate(alone)]
        if len(set(truth_boxes := [where for where, _ in alone])) == len(truth_boxes) and alone:
            assert mean_ap(results(alone, perfect, threshold), mode) == pytest.approx(1, abs=1e-6)
