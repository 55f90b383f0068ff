"""What the correspondence table says: who imitates whom, and how a term splits over its stages."""
from __future__ import annotations

import torch
from mmdet.structures import DetDataSample
from mmengine.logging import print_log
from mmengine.structures import InstanceData

from hgd_det.distill.lesson import Lesson, Side
from hgd_det.distill.schedule import Progress
from hgd_det.distill.stages import evaluating
from hgd_det.distill.taps import Taps
from hgd_det.distill.term import Term


@torch.no_grad()
def with_shares(distiller, term: Term) -> list[dict]:
    """The term's pairs, each with its share of the term's value before training.

    Measured on two images of noise with one object in the middle: how a term splits over its
    stages at the start follows from their number, size and statistics, not from the data.
    """
    pairs = term.describe()
    if not pairs or distiller.teacher is None or not term.requires <= {'maps', 'boxes'}:
        return pairs
    height, width = distiller.input_size
    parameter = next(distiller.student.parameters())
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)).to(parameter)
    sample = DetDataSample(gt_instances=InstanceData(
        bboxes=images.new_tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]]),
        labels=torch.zeros(1, dtype=torch.long, device=images.device)))
    with evaluating(distiller), Taps(distiller.student, term.student_taps) as maps:
        distiller.student.extract_feat(images)
    with Taps(distiller.teacher.detector, term.teacher_taps, stop=True) as targets:
        distiller.teacher.forward(images, with_head=False)
    values = term(Lesson(Side(maps), Side(targets), [sample] * 2, progress=Progress(0, 1),
                         input_shape=(height, width)))
    parts = [float(values[f"d_{p['name']}"] * values.get(f"u_{p['name']}", 1.0))
             if f"d_{p.get('name')}" in values else None for p in pairs]
    if None in parts or not sum(parts) > 0:
        return pairs
    return [dict(p, share=part / sum(parts)) for p, part in zip(pairs, parts, strict=True)]


def log_correspondence(distiller) -> None:
    """Who imitates whom, in the log of a run; no shares here, which would cost a pass of both detectors."""
    for name, term in distiller.distill.items():
        for pair in term.describe():
            print_log(f"{name}: {pair['size'][0]}x{pair['size'][1]}  student {pair['student']} "
                      f"({pair['channels'][0]}) <- teacher {pair['teacher']} ({pair['channels'][1]})",
                      'current')
