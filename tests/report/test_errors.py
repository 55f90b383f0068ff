"""Kinds of errors, on cases that can be checked by eye. Boxes of 10 x 10 unless said otherwise."""
import numpy as np
import pytest

from hgd_det.report.errors import iou, outcome, recalled, tally

CAT, DOG = 0, 1


def box(x, y=0, width=10, height=10):
    return [x, y, x + width, y + height]


def judge(found, truth, difficult=()):
    """`found`: (box, score, label); `truth`: (box, label)."""
    boxes, scores, labels = zip(*found, strict=True) if found else ([], [], [])
    objects, names = zip(*truth, strict=True) if truth else ([], [])
    flags = np.array([i in difficult for i in range(len(objects))], bool)
    return outcome(np.array(boxes, float).reshape(-1, 4), np.array(scores), np.array(labels, int),
                   np.array(objects, float).reshape(-1, 4), np.array(names, int), flags)


@pytest.mark.parametrize('found, kind, fate', [
    ((box(1), .9, CAT), 'correct', 'found'),          # IoU 9 / 11
    ((box(1), .9, DOG), 'class', 'class'),
    ((box(5), .9, CAT), 'place', 'place'),            # IoU 5 / 15
    ((box(5), .9, DOG), 'background', 'missed'),      # neither the place nor the name
    ((box(9), .9, CAT), 'background', 'missed'),      # IoU 1 / 19
    ((box(50), .9, CAT), 'background', 'missed'),
])
def test_one_box_and_one_object(found, kind, fate):
    got = judge([found], [(box(0), CAT)])
    assert (got.boxes, got.objects) == ([kind], [fate])
    assert got.taken == [0 if kind == 'correct' else -1]


def test_the_better_scored_of_two_boxes_takes_the_object_and_the_other_is_one_too_many():
    got = judge([(box(0), .4, CAT), (box(1), .8, CAT)], [(box(0), CAT)])
    assert (got.boxes, got.objects, got.taken) == (['twice', 'correct'], ['found'], [1])


def test_a_box_may_take_the_second_best_object_when_the_best_is_taken():
    got = judge([(box(0), .9, CAT), (box(1), .8, CAT)], [(box(0), CAT), (box(3), CAT)])
    assert got.boxes == ['correct', 'correct'] and got.taken == [0, 1]


def test_a_found_object_stays_found_whatever_else_lies_on_it():
    got = judge([(box(0), .9, DOG), (box(5), .8, CAT), (box(0), .7, CAT)], [(box(0), CAT)])
    assert (got.boxes, got.objects) == (['class', 'place', 'correct'], ['found'])


def test_the_right_place_with_the_wrong_name_weighs_more_than_a_bad_outline():
    got = judge([(box(5), .9, CAT), (box(0), .8, DOG)], [(box(0), CAT)])
    assert (got.boxes, got.objects) == (['place', 'class'], ['class'])


def test_difficult_objects_and_boxes_on_them_count_neither_way():
    got = judge([(box(0), .9, CAT), (box(40), .5, CAT)], [(box(0), CAT), (box(20), CAT)], difficult=[0])
    assert (got.boxes, got.objects) == (['ignored', 'background'], ['ignored', 'missed'])


def test_images_without_boxes_or_without_objects():
    assert judge([], [(box(0), CAT)]).objects == ['missed']
    assert judge([(box(0), .9, CAT)], []).boxes == ['background']
    assert judge([], []) == ([], [], [])


def test_every_box_and_every_object_is_counted_once():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (40, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 30, (40, 2))])
    got = outcome(boxes, rng.random(40), rng.integers(0, 3, 40), boxes[::4] + rng.uniform(-3, 3, (10, 4)),
                  rng.integers(0, 3, 10), rng.random(10) < .2)
    counts = tally([got])
    assert sum(counts['boxes'].values()) == 40 and sum(counts['objects'].values()) == 10
    assert counts['boxes']['correct'] == counts['objects']['found'] == sum(i >= 0 for i in got.taken) > 0


def test_recalled_counts_what_one_finds_and_the_other_does_not():
    truth = [(box(0), CAT), (box(20), CAT), (box(40), CAT)]
    one = judge([(box(0), .9, CAT), (box(20), .9, CAT)], truth)
    other = judge([(box(20), .9, CAT), (box(40), .9, CAT)], truth)
    assert recalled([one], [other]) == 1 and recalled([one], [one]) == 0


def test_overlap_is_intersection_over_union():
    assert iou(np.array([box(0)]), np.array([box(0), box(5), box(10)])).tolist() == [[1, 5 / 15, 0]]
