"""What the correspondence table says: who imitates whom, and how a term splits over its stages."""
from __future__ import annotations

import torch
from mmdet.structures import DetDataSample
from mmengine.logging import print_log
from mmengine.structures import InstanceData

from hgd_det.distill.stages import evaluating


@torch.no_grad()
def pairs_with_shares(distiller) -> dict[str, list[dict]]:
    """The pairs of every term, each with its share of the term's value before training.

    Measured on two images of noise with one object in the middle: how a term splits over its
    stages at the start follows from their number, size and statistics, not from the data.
    """
    pairs = {name: term.describe() for name, term in distiller.distill.items()}
    measured = [name for name, term in distiller.distill.items()
                if pairs[name] and term.needs_teacher and 'gradient' not in term.needs]
    if not measured:
        return pairs
    with evaluating(distiller):
        lesson, _ = distiller.lesson(*_noise(distiller), measured)
        for name in measured:
            term = distiller.distill[name]
            values = term(lesson.limited(name, term))
            parts = [float(values[f"d_{p['name']}"] * values.get(f"u_{p['name']}", 1.0))
                     if f"d_{p.get('name')}" in values else None for p in pairs[name]]
            if None not in parts and sum(parts) > 0:
                pairs[name] = [dict(p, share=part / sum(parts))
                               for p, part in zip(pairs[name], parts, strict=True)]
    return pairs


def _noise(distiller) -> tuple[torch.Tensor, list[DetDataSample]]:
    height, width = distiller.input_size
    parameter = next(distiller.student.parameters())
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)).to(parameter)
    samples = []
    for number in range(len(images)):
        sample = DetDataSample(metainfo=dict(
            img_id=number, img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width),
            batch_input_shape=(height, width), scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=images.new_tensor([[width / 4, height / 4, width * 3 / 4, height * 3 / 4]]),
            labels=torch.zeros(1, dtype=torch.long, device=images.device))
        sample.ignored_instances = InstanceData(bboxes=images.new_zeros(0, 4),
                                                labels=torch.zeros(0, dtype=torch.long, device=images.device))
        samples.append(sample)
    return images, samples


def log_correspondence(distiller) -> None:
    """Who imitates whom, in the log of a run; no shares here, which would cost a pass of both detectors."""
    for name, term in distiller.distill.items():
        who = 'teacher' if len(distiller.teachers) < 2 else f'teacher {distiller.teachers.of_term.get(name)},'
        for pair in term.describe():
            print_log(f"{name}: {pair['size'][0]}x{pair['size'][1]}  student {pair['student']} "
                      f"({pair['channels'][0]}) <- {who} {pair['teacher']} ({pair['channels'][1]})",
                      'current')
