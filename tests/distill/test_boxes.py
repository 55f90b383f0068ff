"""Tensor functions on boxes: overlaps, crops, deltas."""
import pytest
import torch

import hgd_det  # noqa: F401
from hgd_det.distill.boxes import crops, overlaps, point_deltas

from mmdet.models.losses.iou_loss import diou_loss  # isort: skip
from mmdet.structures.bbox import bbox_overlaps  # isort: skip


def random_boxes(count, size=100., seed=0):
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * size
    return torch.cat([corners.amin(1), corners.amax(1)], 1)


def test_diou_has_its_closed_form_value():
    iou, diou = overlaps(torch.tensor([[0., 0, 2, 2]]), torch.tensor([[1., 1, 3, 3]]))
    assert iou.item() == pytest.approx(.142857, abs=1e-6)
    assert diou.item() == pytest.approx(.031746, abs=1e-6)


def test_overlaps_equal_mmdets():
    anchors, boxes = random_boxes(40), random_boxes(7, seed=1)
    iou, diou = overlaps(anchors, boxes)
    torch.testing.assert_close(iou, bbox_overlaps(anchors, boxes))
    for g, box in enumerate(boxes):
        loss = diou_loss(anchors, box.expand_as(anchors), reduction='none')
        torch.testing.assert_close(diou[:, g], 1 - loss, rtol=0, atol=1e-5)


def test_boxes_without_area_overlap_nothing_and_stay_finite():
    point = torch.tensor([[5., 5, 5, 5]])
    iou, diou = overlaps(point, point)
    assert iou.item() == 0 and torch.isfinite(diou).all()
    assert overlaps(random_boxes(3), torch.zeros(0, 4))[0].shape == (3, 0)


def test_a_crop_of_a_linear_map_is_the_position_of_its_samples():
    # value at a cell's centre = its x; a box over the whole map samples x evenly
    x = (torch.arange(10.) + .5).expand(1, 1, 10, 10)
    crop = crops(x, [torch.tensor([[30., 30, 270, 270]])], (300, 300), 4)     # cells 1 to 9
    assert crop.shape == (1, 1, 4, 4)
    assert crop[0, 0, 0].tolist() == pytest.approx([2., 4., 6., 8.])


def test_crops_take_their_own_image_in_order_and_carry_axes_over_separately():
    x = torch.stack([torch.full((1, 6, 3), float(i)) for i in range(3)])
    boxes = [torch.tensor([[0., 0, 30, 30], [10., 10, 20, 20]]), torch.zeros(0, 4),
             torch.tensor([[5., 5, 25, 55]])]
    assert crops(x, boxes, (60, 30), 2).mean((1, 2, 3)).tolist() == [0, 0, 2]
    tall = torch.arange(6.).view(1, 1, 6, 1).expand(1, 1, 6, 3)
    lower = crops(tall, [torch.tensor([[0., 30, 30, 60]])], (60, 30), 3)      # rows 3, 4, 5
    assert lower[0, 0, :, 0].tolist() == pytest.approx([3., 4., 5.])


def test_crops_are_linear_and_a_single_cell_fills_its_crop():
    x, y = torch.randn(2, 1, 3, 8, 8).unbind(0)
    box = [torch.tensor([[3., 4, 50, 61]])]
    torch.testing.assert_close(crops(x - y, box, (64, 64)),
                               crops(x, box, (64, 64)) - crops(y, box, (64, 64)))
    assert (crops(torch.full((1, 2, 1, 1), 3.), box, (64, 64)) == 3).all()


def test_the_gradient_of_crops_is_right():
    boxes = [torch.tensor([[2., 3, 20, 30]], dtype=torch.double),
             torch.tensor([[0., 0, 32, 32]], dtype=torch.double)]
    x = torch.randn(2, 2, 4, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: crops(m, boxes, (32, 32), 2), x)


def test_point_deltas_are_the_output_itself_or_the_expectation_of_its_bins():
    reg = torch.randn(2, 5, 4)
    assert point_deltas(reg, None) is reg
    logits = torch.randn(2, 5, 4, 3)
    wanted = (logits.softmax(-1) * torch.tensor([-1., 0, 1])).sum(-1)
    torch.testing.assert_close(point_deltas(logits.flatten(2), torch.tensor([-1., 0, 1])), wanted)
