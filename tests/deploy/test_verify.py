"""Verification finds another network, and forgives what chance decides."""
from pathlib import Path

import numpy as np
import pytest

from hgd_det.deploy.postprocess import Detections, Settings, detections
from hgd_det.deploy.runtime import Model
from hgd_det.deploy.verify import Comparison, compare, match, table

IMAGE = np.zeros((50, 100, 3), np.uint8)


class Fixed(Model):
    """Finds the same in every image; knows its raw outputs or not."""

    def __init__(self, boxes, scores, name='x.onnx', opaque=False):
        super().__init__(Path(name), 'ab', (10, 10), Settings(0.02, 0.45, 20, 0, (len(boxes),)))
        self.boxes, self.scores, self.opaque = np.float32(boxes), np.float32(scores), opaque

    def raw(self, batch):
        return None if self.opaque else (self.boxes[None], self.scores[None])

    def detect(self, batch):
        return [detections(self.boxes, self.scores, self.settings)]


def boxes(count=40, seed=0):
    corner = np.random.default_rng(seed).random((count, 2)) * .8
    return np.concatenate([corner, corner + .1], 1)


def scores(count=40, seed=1):
    return np.random.default_rng(seed).random((count, 2))


@pytest.mark.parametrize('opaque', [False, True])
def test_the_same_network_holds(opaque):
    row, = compare(Fixed(boxes(), scores()), [Fixed(boxes(), scores(), opaque=opaque)], [IMAGE] * 2)
    assert row.holds and (row.images, row.detections, row.alone) == (2, 40, 0)
    assert row.raw_score is None if opaque else row.raw_score == row.raw_box == 0


@pytest.mark.parametrize('opaque', [False, True])
def test_scores_and_boxes_beyond_the_limit_are_found(opaque):
    reference = Fixed(boxes(), scores())
    off, = compare(reference, [Fixed(boxes(), scores() + 3e-4, opaque=opaque)], [IMAGE])
    assert not off.holds and off.score == pytest.approx(3e-4, rel=.01) and off.alone == 0
    moved, = compare(reference, [Fixed(boxes() + .001, scores(), opaque=opaque)], [IMAGE])
    assert not moved.holds and moved.box == pytest.approx(.1, rel=.01)   # pixels of 100
    assert compare(reference, [Fixed(boxes(), scores() + 3e-4)], [IMAGE], 'float16')[0].holds


def test_other_detections_are_found_even_where_raw_outputs_agree():
    class Lossy(Fixed):
        def detect(self, batch):
            return [Detections(*(part[2:] for part in super().detect(batch)[0]))]
    row, = compare(Fixed(boxes(), scores()), [Lossy(boxes(), scores())], [IMAGE])
    assert row.raw_score == 0 and row.alone == 2 and row.ties == 0 and not row.holds


def test_what_ties_decide_is_forgiven():
    """A thousand boxes of one score but for its last digit: which twenty are kept is chance."""
    level = .5 + 1e-7 * scores(1000)
    again = .5 + 1e-7 * scores(1000, seed=2)
    for opaque in (False, True):
        row, = compare(Fixed(boxes(1000), level), [Fixed(boxes(1000), again, opaque=opaque)], [IMAGE])
        assert row.alone > 10 and row.ties > 10 and row.holds


def test_partners_are_the_nearest_of_the_class():
    def some(*rows):
        return Detections(np.float32([r[:4] for r in rows]).reshape(-1, 4),
                          np.float32([r[4] for r in rows]), np.array([r[5] for r in rows], int))
    truth = some((0, 0, 10, 10, .9, 0), (20, 0, 30, 10, .8, 1))
    assert match(truth, some((20, .5, 30, 10, .7, 1), (0, 0, 10, 10, .9, 0))) == (
        pytest.approx(.1), .5, 0)
    assert match(truth, some((0, 0, 10, 10, .9, 1)))[2] == 3       # another class
    assert match(truth, some())[2] == match(some(), truth)[2] == 2


def test_the_table_has_a_line_for_each():
    rows = [Comparison('a.onnx', images=3, raw_score=1e-6, raw_box=.01, metrics={'voc/mAP': .5}),
            Comparison('b.pt2', images=3, score=1.0)]
    text = table(rows, {'voc/mAP': .5})
    assert [line.split()[0] for line in text.splitlines()] == ['form', 'checkpoint', 'a.onnx', 'b.pt2']
    assert text.splitlines()[2].endswith('50.000  yes') and text.splitlines()[3].endswith('NO')
    assert len(set(line.count('|') for line in table(rows, markdown=True).splitlines())) == 1
