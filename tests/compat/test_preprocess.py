"""A batch of 8-bit pictures is prepared at once, to mmdet's last bit."""
import copy

import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor

import hgd_det.registered  # noqa: F401
from hgd_det.compat.preprocess import _alike, _plain, send_instances
from hgd_det.testing import make_batch


@pytest.mark.parametrize('options', [
    dict(mean=[123., 116., 103.], std=[58., 57., 56.], bgr_to_rgb=True), dict(bgr_to_rgb=True), {},
    dict(mean=[1.], std=[3.]), dict(mean=[123., 116., 103.], std=[58., 57., 56.], pad_size_divisor=64)],
    ids=str)
def test_values_and_samples_are_those_of_one_by_one(options, monkeypatch):
    made, data = DetDataPreprocessor(**options), make_batch(3, objects=[2, 0, 1])
    ours = made(copy.deepcopy(data), True)
    assert _alike(made, data) == ('pad_size_divisor' not in options)
    monkeypatch.setattr('hgd_det.compat.preprocess._alike', lambda *args: False)
    theirs = made(copy.deepcopy(data), True)
    assert torch.equal(ours['inputs'], theirs['inputs'])
    for mine, other in zip(ours['data_samples'], theirs['data_samples'], strict=True):
        assert mine.metainfo == other.metainfo
        assert torch.equal(mine.gt_instances.bboxes, other.gt_instances.bboxes)


def test_boxes_of_a_batch_travel_together():
    data = make_batch(3, objects=[2, 0, 1])
    samples = copy.deepcopy(data['data_samples'])
    assert _plain(samples)
    send_instances(samples, torch.device('cpu'))
    for mine, other in zip(samples, data['data_samples'], strict=True):
        for key in ('bboxes', 'labels'):
            assert torch.equal(mine.gt_instances[key], other.gt_instances[key])
    assert samples[0].gt_instances.bboxes._base is samples[2].gt_instances.bboxes._base is not None
