"""What HGD costs is measured on what it says: equal batches, and a plain term that is the same term."""
import math

import pytest
import torch

pytest.importorskip('mmdet')
from hgd_det.distill.functional import box_mask  # noqa: E402
from hgd_det.experiments.benchmarks.step import HALFWAY, SHAPES, Obvious, Steps, inside, learn, voc_batch  # noqa: E402


@pytest.fixture(scope='module')
def shapes():
    steps = Steps(SHAPES)
    steps.side('hgd'), steps.side('alone')
    steps.take(3, 96)
    return steps


def test_the_term_equals_the_obvious_one_in_value_and_gradient(shapes):
    torch.manual_seed(0)
    for adapter in shapes.term.adapters.values():
        torch.nn.init.normal_(adapter.bias)     # no adapted map is 0, where torch's cosine is steep
    lesson, found = shapes.lesson(), []
    for term in (shapes.term, Obvious(shapes.term)):
        value = learn(term, lesson)
        found.append([torch.tensor(value), *(leaf.grad.clone() for leaf in (
            *lesson.student.maps.values(), *shapes.term.parameters()))])
    assert len(found[0]) == 1 + 3 * 7 and found[0][0] > 0.1
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


def loss(training) -> float:
    ready = training.ready
    return training.model.parse_losses(training.model.loss(ready['inputs'], ready['data_samples']))[0].item()


def test_a_row_compares_a_step_with_its_parts(shapes):
    row = shapes.cost(3, 96, 3, '<=1.15')
    assert row.what.startswith('HGD / (student + teacher), shapes, 96x96, batch 3')
    assert 0.8 < row.ratio < 3 and row.ours > 0 and row.met in (True, False)
    side = shapes.side('alone')
    first, _, second = loss(side), side.step(HALFWAY), loss(side)
    assert math.isfinite(first) and first != second     # the optimizer's step is part of it


def test_the_boxes_cover_as_much_as_those_of_voc():
    samples = voc_batch(400, 20, 20)['data_samples']
    boxes = [sample.gt_instances.bboxes for sample in samples]
    assert 2.2 < sum(map(len, boxes)) / len(boxes) < 2.6
    assert all((0 <= b).all() and (b <= 20).all() for b in boxes)
    fine = voc_batch(200, 300, 20)['data_samples']
    covered = box_mask([sample.gt_instances.bboxes for sample in fine], (75, 75), (300, 300)).float().mean()
    assert 0.32 < covered < 0.40


@pytest.mark.parametrize('cells', [1, 5, 38])
def test_the_loop_marks_the_cells_that_the_term_marks(cells):
    boxes = [sample.gt_instances.bboxes for sample in voc_batch(8, 300, 20)['data_samples']]
    assert torch.equal(inside(boxes, (cells, cells), (300, 300)) > 0,
                       box_mask(boxes, (cells, cells), (300, 300)))
