"""What a GPU runs of each term equals what a CPU runs, in values and gradients, and waits for nothing."""
import pytest
import torch

from hgd_det.device import as_if_launched
from hgd_det.distill.boxes import all_crops, crops
from hgd_det.experiments.benchmarks.launches import STEP, TEACHER, Counted
from hgd_det.testing import every_term, make_batch, make_distiller, tiny_ssd

pytestmark = pytest.mark.thorough

WAITING = {'LAD', 'Mimic'}      # benchmarks/launches.py says why


def learned(name, launched):
    student, teacher = tiny_ssd(with_bn=False), tiny_ssd(1 / 8, with_bn=False)
    for config in (student, teacher):
        config['bbox_head'] |= dict(type='DistributionSSDHead', n=4, lo=-4., hi=4.) if name == 'LD' else \
            dict(type='BatchedSSDHead')
    model = make_distiller(dict(term=every_term()[name]), student,
                           dict(model=teacher, checkpoint='untrained'))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():       # scores of an untrained head nearly tie, and which of them are hard is chance
        for conv in [*model.student.bbox_head.cls_convs.parameters()]:
            conv += 0.3 * torch.randn(conv.shape, generator=generator)
    with as_if_launched(launched):
        for _ in range(2):
            model.zero_grad()
            data = model.data_preprocessor(make_batch(3, objects=[2, 0, 5]), True)
            with Counted() as found:
                total, log = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
                total.backward()
    log.pop('teacher_share', None)
    return ({k: v.item() for k, v in log.items()}, [p.grad for p in model.parameters() if p.requires_grad],
            found.waits[STEP] + found.waits[TEACHER])


@pytest.mark.parametrize('name', every_term())
def test_a_term_says_and_teaches_the_same_in_both_forms_and_waits_in_none(name):
    (plain, gradients, _), (whole, ours, waits) = (learned(name, launched) for launched in (False, True))
    assert whole == pytest.approx(plain, rel=1e-4, abs=1e-5)
    for mine, wanted in zip(ours, gradients, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-3, atol=1e-4 * max(1e-3, float(wanted.abs().max())))
    assert not waits or name in WAITING, waits


def test_crops_of_padded_boxes_are_those_of_roi_align():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 19, 12, generator=generator, dtype=torch.float64)
    corner, side = torch.rand(2, 2, 8, 2, generator=generator, dtype=torch.float64) * 150
    boxes = torch.cat([corner, corner + side], 2)
    boxes[0, 0] = torch.tensor([0., 0., 300, 290])
    boxes[1, 1] = torch.tensor([10., 290, 12, 290.5])
    for size in (1, 7):
        found = all_crops(x, boxes, (290, 300), size)
        torch.testing.assert_close(found.flatten(0, 1), crops(x, list(boxes), (290, 300), size))
