"""The benchmark of evaluation compares what is equal, on detections as hard as real ones."""
import numpy as np
import pytest

pytest.importorskip('mmdet')
from hgd_det.experiments.benchmarks import evaluation  # noqa: E402
from hgd_det.experiments.benchmarks.loss import SHAPES  # noqa: E402


def test_every_comparison_asserts_equal_values_and_yields_its_row():
    rows = [evaluation._postprocessing(SHAPES, 2, 1), evaluation._suppression(1), *evaluation._voc(40, 1),
            evaluation._coco(6, 1)]
    assert len(rows) == 5 and all(row.ours > 0 and row.other > 0 for row in rows)
    assert [row.goal for row in rows] == ['', '', '>=5', '', '']
    assert '40 images' in rows[2].what and 'faster-coco-eval' in rows[4].what


def test_a_difference_is_not_measured_but_raised(monkeypatch):
    from hgd_det.engine import voc_eval
    monkeypatch.setattr(voc_eval, 'mean_ap', lambda results, mode: 0.5)
    with pytest.raises(AssertionError):
        next(evaluation._voc(20, 1))
    monkeypatch.setattr('hgd_det.compat.nms.nms', lambda boxes, scores, threshold: scores.argsort())
    with pytest.raises(AssertionError):
        evaluation._suppression(1)


def test_samples_have_ties_difficult_boxes_and_hits():
    samples = evaluation.samples(300, 20, 200)
    scores = [sample['pred_instances']['scores'].numpy() for sample in samples]
    assert sum(len(each) - len(np.unique(each)) for each in scores) > 300
    assert all((np.diff(each) <= 0).all() and 20 <= len(each) <= 200 for each in scores)
    hard, plain = (sum(len(sample[key]['labels']) for sample in samples)
                   for key in ('ignored_instances', 'gt_instances'))
    assert 0.08 < hard / (hard + plain) < 0.18


def test_mmdets_pool_is_back_afterwards():
    from mmdet.evaluation.functional import mean_ap
    before = mean_ap.Pool
    with evaluation.in_this_process():
        assert mean_ap.Pool(4).starmap(divmod, [(7, 2), (9, 4)]) == [(3, 1), (2, 1)]
    assert mean_ap.Pool is before
