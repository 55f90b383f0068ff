import contextlib
import io

import numpy as np
import pytest
import torch
from mmdet.evaluation.metrics import CocoMetric, VOCMetric
from mmdet.registry import METRICS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hgd_det.errors import UserError
from hgd_det.evaluation.metrics import COCOmAP, VOCmAP

CLASSES = ('cat', 'dog', 'cow')


def samples(seed=0, images=25, classes=3, finds=True):
    """Evaluated samples as mmengine's evaluator passes them on."""
    rng = np.random.default_rng(seed)

    def instances(n, near=None):
        corner, size = rng.uniform(0, 60, (n, 2)), rng.uniform(4, 140, (n, 2))
        box = np.hstack([corner, corner + size])
        label = rng.integers(0, classes, n)
        if near is not None and len(near['labels']):
            chosen = rng.integers(0, len(near['labels']), n)
            close = rng.random(n) < 0.7
            box[close] = near['bboxes'].numpy()[chosen[close]] + rng.normal(0, 3, (close.sum(), 4))
            label[close] = near['labels'].numpy()[chosen[close]]
        return {'bboxes': torch.tensor(box, dtype=torch.float32), 'labels': torch.tensor(label)}

    result = []
    for i in range(images):
        gt, hard = instances(rng.integers(0, 5)), instances(rng.integers(0, 2))
        pred = instances(rng.integers(0, 12) if finds else 0, gt)
        pred['scores'] = torch.tensor(rng.random(len(pred['labels'])), dtype=torch.float32)
        result.append({'gt_instances': gt, 'ignored_instances': hard, 'pred_instances': pred,
                       'img_id': i, 'ori_shape': (200, 200)})
    return result


def run(metric, data, classes=CLASSES):
    metric.dataset_meta = {'classes': classes}
    for sample in data:
        metric.process({}, [sample])
    return metric.evaluate(len(data))


def coco_form(data):
    """The same as a COCO annotation file and a detection file."""
    truth = {'images': [{'id': s['img_id'], 'width': 200, 'height': 200} for s in data],
             'annotations': [],
             'categories': [{'id': 7 * i + 3, 'name': n} for i, n in enumerate(CLASSES)]}
    found = []
    for s in data:
        for crowd, part in ((0, s['gt_instances']), (1, s['ignored_instances'])):
            for box, label in zip(part['bboxes'].tolist(), part['labels'].tolist(), strict=True):
                box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
                truth['annotations'].append(
                    {'id': len(truth['annotations']) + 1, 'image_id': s['img_id'], 'bbox': box,
                     'area': box[2] * box[3], 'category_id': 7 * label + 3, 'iscrowd': crowd})
        pred = s['pred_instances']
        for box, label, score in zip(*(pred[k].tolist() for k in ('bboxes', 'labels', 'scores')),
                                     strict=True):
            found.append({'image_id': s['img_id'], 'category_id': 7 * label + 3, 'score': score,
                          'bbox': [box[0], box[1], box[2] - box[0], box[3] - box[1]]})
    return truth, found


def pycocotools(truth, found):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize('mode', ['11points', 'area'])
def test_voc_map_is_mmdets_without_the_rounding(mode):
    data = samples()
    ours, theirs = run(VOCmAP(mode=mode), data), run(VOCMetric(eval_mode=mode), data)
    assert ours['voc/mAP'] == pytest.approx(theirs['pascal_voc/mAP'], abs=1e-6)
    assert ours['voc/AP50'] == pytest.approx(theirs['pascal_voc/AP50'], abs=5.1e-4)


def test_voc_map_holds_classes_thresholds_and_both_forms():
    result = run(VOCmAP(iou_thrs=[0.5, 0.75], mode=['11points', 'area']), samples())
    for form in ('', '_area'):
        for thr in ('AP50', 'AP75'):
            per_class = [result[f'voc/{thr}{form}/{name}'] for name in CLASSES]
            assert result[f'voc/{thr}{form}'] == pytest.approx(np.mean(per_class), abs=1e-12)
        assert result[f'voc/mAP{form}'] == pytest.approx(
            (result[f'voc/AP50{form}'] + result[f'voc/AP75{form}']) / 2, abs=1e-12)


def test_voc_map_leaves_out_classes_without_objects():
    result = run(VOCmAP(), samples(classes=2))
    assert 'voc/AP50/cow' not in result
    assert result['voc/mAP'] == pytest.approx((result['voc/AP50/cat'] + result['voc/AP50/dog']) / 2)


@pytest.mark.parametrize('metric', [VOCmAP, COCOmAP])
def test_a_detector_that_finds_nothing_scores_zero(metric):
    assert set(run(metric(), samples(finds=False)).values()) == {0.0}


@pytest.mark.parametrize('cfg, message', [
    (dict(type=VOCmAP, mode='12points'), 'choose from 11points, area'),
    (dict(type=VOCmAP, iou_thrs=50), r'50 is not in \(0, 1\]'),
    (dict(type=VOCmAP, iou_thrs=[]), 'at least one'),
    (dict(type=COCOmAP, metric='segm'), "metric='bbox' only"),
    (dict(type=COCOmAP, format_only=True, outfile_prefix='x'), 'submission'),
])
def test_a_wrong_setting_is_refused(cfg, message):
    with pytest.raises(UserError, match=message):
        METRICS.build(cfg)


def test_missing_ground_truth_is_named():
    sample = samples(images=1)[0]
    del sample['gt_instances']
    with pytest.raises(UserError, match='LoadAnnotations'):
        VOCmAP().process({}, [sample])


def test_coco_ap_of_a_fixed_detection_file_is_that_of_pycocotools(tmp_path):
    import json
    data = samples(images=60)
    truth, found = coco_form(data)
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    result = run(COCOmAP(str(tmp_path / 'truth.json')), data)
    expected = pycocotools(truth, found)
    names = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
    np.testing.assert_allclose([result[f'coco/bbox_{n}'] for n in names], expected.stats[:6],
                               atol=1e-6)
    for i, name in enumerate(CLASSES):
        of_class = expected.eval['precision'][:, :, i, 0, -1]
        assert result[f'coco/AP/{name}'] == pytest.approx(of_class[of_class > -1].mean(), abs=1e-6)
    theirs = run(CocoMetric(str(tmp_path / 'truth.json')), data)
    assert result['coco/bbox_mAP'] == pytest.approx(theirs['coco/bbox_mAP'], abs=5.1e-4)


def test_coco_ap_needs_no_annotation_file_and_agrees_with_it(tmp_path):
    import json
    data = samples(images=40)
    (tmp_path / 'truth.json').write_text(json.dumps(coco_form(data)[0]))
    with_file = run(COCOmAP(str(tmp_path / 'truth.json')), data)
    without = run(COCOmAP(), data)
    assert without.keys() == with_file.keys()
    for key, value in with_file.items():
        assert without[key] == pytest.approx(value, abs=1e-6)


def test_coco_ap_counts_only_the_images_that_were_tested(tmp_path):
    import json
    data = samples(images=40)
    (tmp_path / 'truth.json').write_text(json.dumps(coco_form(data)[0]))
    part = run(COCOmAP(str(tmp_path / 'truth.json')), data[:15])
    expected = pycocotools(*coco_form(data[:15]))
    assert part['coco/bbox_mAP'] == pytest.approx(expected.stats[0], abs=1e-6)


def test_a_class_the_annotation_file_does_not_have_is_named(tmp_path):
    import json
    data = samples(images=3)
    (tmp_path / 'truth.json').write_text(json.dumps(coco_form(data)[0]))
    with pytest.raises(UserError, match="no category 'horse'; it has cat, dog, cow"):
        run(COCOmAP(str(tmp_path / 'truth.json')), data, classes=('cat', 'horse', 'cow'))
