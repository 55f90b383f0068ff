"""What the loss is measured on."""
import pytest
import torch

pytest.importorskip('mmdet')
from hgd_det.experiments.benchmarks import loss  # noqa: E402


def test_both_heads_compute_the_same_loss_and_gradient_on_the_maps():
    theirs, ours = loss.heads(loss.SHAPES)
    images = loss.objects(3, loss.SHAPES, theirs.num_classes)
    maps = [[level.requires_grad_() for level in kind] for kind in loss.outputs(theirs, images, loss.SHAPES)]
    found = [loss._step(head, maps, images, loss.SHAPES)() for head in (ours, theirs)]
    loss.assert_equal(*found)
    assert found[0][0] > 0 and all(found[0][level].abs().sum() > 0 for level in (1, 2, 5, 6))
    found[1][0] = found[1][0] + 0.1
    with pytest.raises(AssertionError):
        loss.assert_equal(*found)


def test_the_maps_are_those_of_a_detector_that_has_learned():
    head = loss.heads(loss.SSD300)[1]
    images = loss.objects(4, loss.SSD300, head.num_classes)
    maps = loss.outputs(head, images, loss.SSD300)
    assert all(level.is_contiguous(memory_format=torch.channels_last) for kind in maps for level in kind)
    metas = [meta | dict(scale_factor=(1, 1)) for meta in loss.metas(4, loss.SSD300)]
    for image, found in zip(images, head.predict_by_feat(*maps, batch_img_metas=metas), strict=True):
        assert len(found) > 50      # most of them noise, as of real detectors at this threshold
        assert {int(found.labels[0])} <= set(image.labels.tolist())
