"""`mmdet.evaluation.eval_map` is the reference; parity is asked for to 1e-6 and found to 1e-7."""
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from mmdet.evaluation.functional import eval_map

from hgd_det.evaluation.voc_eval import average_precision, evaluate, mean_ap

pytestmark = pytest.mark.thorough

BCCD = Path(__file__).parents[3] / 'shared/data/bccd/VOC2007'


def random_image(rng, classes, dets, gts, tied):
    """Random boxes, most detections near a box, in mmdet's form: ((boxes, scores, labels),
    truth).
    """
    def boxes(n):
        corner, size = rng.uniform(0, 200, (n, 2)), rng.uniform(5, 100, (n, 2))
        return np.hstack([corner, corner + size]).astype(np.float32)
    truth = {'bboxes': boxes(rng.integers(gts + 1)), 'bboxes_ignore': boxes(rng.integers(3))}
    truth['labels'] = rng.integers(0, classes, len(truth['bboxes']))
    truth['labels_ignore'] = rng.integers(0, classes, len(truth['bboxes_ignore']))
    near = np.vstack([truth['bboxes'], truth['bboxes_ignore']])
    near_labels = np.r_[truth['labels'], truth['labels_ignore']]
    n = rng.integers(dets + 1)
    found, labels = boxes(n), rng.integers(0, classes, n)
    for i in range(n):
        if len(near) and rng.random() < 0.6:
            chosen = rng.integers(len(near))
            found[i] = near[chosen] + rng.normal(0, 4, 4) * (rng.random() < 0.8)
            labels[i] = near_labels[chosen]
    scores = rng.random(n).astype(np.float32)
    return (found, np.round(scores * 4) / 4 if tied else scores, labels), truth


def flat(dets, truths):
    def image(counts):
        return np.repeat(np.arange(len(counts)), counts)
    gt_counts = [(len(t['labels']), len(t['labels_ignore'])) for t in truths]
    return {
        'det_image': image([len(d[1]) for d in dets]),
        'det_box': np.concatenate([d[0] for d in dets]),
        'det_score': np.concatenate([d[1] for d in dets]),
        'det_label': np.concatenate([d[2] for d in dets]),
        'gt_image': image([sum(counts) for counts in gt_counts]),
        'gt_box': np.concatenate([t[k] for t in truths for k in ('bboxes', 'bboxes_ignore')]),
        'gt_label': np.concatenate([t[k] for t in truths for k in ('labels', 'labels_ignore')]),
        'gt_difficult': np.concatenate([np.repeat([False, True], counts) for counts in gt_counts]),
    }


def of_mmdet(dets, truths, classes, **kwargs):
    per_class = [[np.hstack([boxes[labels == c], scores[labels == c, None]])
                  for c in range(classes)]
                 for boxes, scores, labels in dets]
    return eval_map(per_class, truths, logger='silent', nproc=2, **kwargs)


def assert_parity(dets, truths, classes, legacy=True, iou_thr=0.5):
    ours, = evaluate(**flat(dets, truths), num_classes=classes, legacy=legacy, iou_thrs=[iou_thr])
    for mode in ('11points', 'area'):
        mean, theirs = of_mmdet(dets, truths, classes, eval_mode=mode, iou_thr=iou_thr,
                                use_legacy_coordinate=legacy)
        assert mean_ap(ours, mode) == pytest.approx(mean, abs=1e-6)
        for one, other in zip(ours, theirs, strict=True):
            assert one.ap[mode] == pytest.approx(float(other['ap']), abs=1e-6)
            assert (one.num_gts, one.num_dets) == (other['num_gts'], other['num_dets'])
            np.testing.assert_allclose(one.recall, other['recall'], atol=1e-6)
            np.testing.assert_allclose(one.precision, other['precision'], atol=1e-6)


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('legacy', [False, True])
def test_equals_eval_map_on_random_detections(legacy, tied):
    rng = np.random.default_rng(0)
    for images, classes, dets, gts in [(30, 3, 20, 6), (8, 1, 60, 3), (25, 6, 4, 1)]:
        sample = [random_image(rng, classes, dets, gts, tied) for _ in range(images)]
        for iou_thr in (0.5, 0.75):
            assert_parity(*zip(*sample, strict=True), classes, legacy, iou_thr)


@pytest.mark.parametrize('dets, gts', [(0, 5), (20, 0), (0, 0)])
def test_equals_eval_map_without_detections_or_without_objects(dets, gts):
    rng = np.random.default_rng(1)
    sample = [random_image(rng, 3, dets, gts, False) for _ in range(10)]
    assert_parity(*zip(*sample, strict=True), 3)


def test_equals_eval_map_on_one_image_and_on_a_class_with_difficult_objects_only():
    box = np.array([[10, 10, 50, 50]], np.float32)
    none = np.zeros((0, 4), np.float32)
    truth = {'bboxes': none, 'labels': np.zeros(0, int), 'bboxes_ignore': box,
             'labels_ignore': np.zeros(1, int)}
    dets = (np.repeat(box, 3, 0), np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 0, 1]))
    assert_parity([dets], [truth], 2)


def test_equals_eval_map_on_photographs():
    if not BCCD.exists():
        pytest.skip('needs the BCCD photographs')
    rng, names, dets, truths = np.random.default_rng(2), ['RBC', 'WBC', 'Platelets'], [], []
    for file in sorted((BCCD / 'Annotations').glob('*.xml'))[:120]:
        objects = [(names.index(o.findtext('name')), int(o.findtext('difficult') or 0),
                    [float(o.findtext(f'bndbox/{c}')) for c in ('xmin', 'ymin', 'xmax', 'ymax')])
                   for o in ET.parse(file).iter('object')]
        label, hard, box = (np.array([o[i] for o in objects]) for i in range(3))
        hard, box = hard.astype(bool), box.astype(np.float32)
        truths.append({'bboxes': box[~hard], 'labels': label[~hard], 'bboxes_ignore': box[hard],
                       'labels_ignore': label[hard]})
        twice = np.repeat(np.arange(len(box)), 2)
        dets.append(((box[twice] + rng.normal(0, 12, (len(twice), 4))).astype(np.float32),
                     rng.random(len(twice)).astype(np.float32), label[twice]))
    assert_parity(dets, truths, 3)


def test_the_order_of_images_and_of_classes_does_not_matter():
    rng = np.random.default_rng(3)
    sample = [random_image(rng, 4, 30, 5, False) for _ in range(20)]
    first = evaluate(**flat(*zip(*sample, strict=True)), num_classes=4)[0]
    again = evaluate(**flat(*zip(*sample[::-1], strict=True)), num_classes=4)[0]
    assert [r.ap for r in first] == [r.ap for r in again]


def test_known_values_by_hand():
    # ranks: true, false, true of two objects -> recall .5 .5 1, precision 1 1/2 2/3
    recall, precision = np.array([.5, .5, 1.]), np.array([1., .5, 2 / 3])
    assert average_precision(recall, precision, 'area') == pytest.approx(.5 + .5 * 2 / 3)
    assert average_precision(recall, precision, '11points') == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert average_precision(np.zeros(0), np.zeros(0), 'area') == 0
    assert average_precision(np.zeros(0), np.zeros(0), '11points') == 0
    with pytest.raises(ValueError, match='11points'):
        average_precision(recall, precision, '101points')


def test_a_difficult_object_found_counts_neither_way():
    image, box = np.zeros(2, int), np.array([[0, 0, 10, 10], [40, 40, 60, 60]], np.float32)
    result = evaluate(image, image, box, np.array([.9, .8]), image, image, box,
                      np.array([True, False]), num_classes=1)[0][0]
    assert result.num_gts == 1 and result.ap == {'11points': 1.0, 'area': 1.0}
    assert result.precision.tolist() == [0, 1] and result.recall.tolist() == [0, 1]


def test_thousands_of_images_take_a_fifth_of_the_time_of_eval_map_at_most():
    rng = np.random.default_rng(4)
    sample = [random_image(rng, 20, 80, 4, False) for _ in range(1500)]
    dets, truths = zip(*sample, strict=True)
    arrays = flat(dets, truths)
    began = time.process_time()
    evaluate(**arrays, num_classes=20, modes=['area'])
    ours = time.process_time() - began
    per_class = [[np.hstack([b[n == c], s[n == c, None]]) for c in range(20)] for b, s, n in dets]
    began = time.perf_counter()
    eval_map(per_class, truths, logger='silent', nproc=1)
    assert time.perf_counter() - began > 5 * ours
