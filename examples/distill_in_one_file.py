"""Hands-on Guidance Distillation in one file: no registry, no runner, no config.

    python examples/distill_in_one_file.py

A teacher learns the built-in shapes for a moment; then a student of a quarter of its channels learns
its own task and, at the same time, the direction of the teacher's feature vectors at every stage.
The idea is all here; `hgd_det` adds what real training needs (pairing, resume, checks, speed).
"""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import hgd_det.registered  # noqa: E402,F401  first: it makes mmdet work without compiled ops

# isort: split
from mmdet.models import SingleStageDetector  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from hgd_det.data.shapes import picture  # noqa: E402
from hgd_det.testing import tiny_ssd  # noqa: E402

register_all_modules(init_default_scope=True)
MMLogger.get_current_instance().setLevel('ERROR')
TEACHER_STEPS, STUDENT_STEPS, BATCH = 40, 60, 8


def build(width):
    """An SSD for 96-pixel images; its backbone and extras give maps of 96, 48, 24, 12, 6, 3 and 1."""
    config = tiny_ssd(width, num_classes=6)
    config.pop('type')
    detector = SingleStageDetector(**config)
    detector.init_weights()
    return detector.train()


def batch(step):
    """Normalised images (B,3,96,96) and their boxes, drawn on the spot."""
    images, samples = [], []
    for i in range(BATCH):
        image, objects = picture('train', step * BATCH + i)
        sample = DetDataSample(metainfo=dict(img_shape=(96, 96), pad_shape=(96, 96)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([o[1:] for o in objects], dtype=torch.float32),
            labels=torch.tensor([o[0] for o in objects]))
        images.append(torch.from_numpy(image).permute(2, 0, 1).flip(0).float())
        samples.append(sample)
    return (torch.stack(images) - 123) / 58, samples


def detection_loss(detector, x, samples):
    return detector.parse_losses(detector.loss(x, samples))[0]


def stages(detector):
    """The last map of each spatial size, in order of execution: the stages."""
    maps, handles = {}, []
    for module in [*detector.backbone.features, *detector.neck.extra_layers]:
        if not isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):  # maps after their activation
            handles.append(module.register_forward_hook(
                lambda _, __, out: maps.__setitem__(out.shape[-1], out)))
    return maps, handles


def hgd(student_maps, teacher_maps, adapters, samples):
    """L = sum_s u_s * (sum_ij v_ij (1 - cos(V_ij, Z_ij))) / sum_ij v_ij, averaged over the images."""
    total = 0.0
    for size, S in student_maps.items():
        V, Z = adapters[str(size)](S), teacher_maps[size]
        distance = 1 - F.cosine_similarity(V, Z, dim=1)                 # (B,H,W)
        u = S.detach().var(1, unbiased=False).sigmoid().mean((1, 2))    # (B,) macro: variance
        v = torch.stack([mask(s.gt_instances.bboxes, size) for s in samples])  # micro: inside a box
        total = total + (u * (v * distance).sum((1, 2)) / v.sum((1, 2)).clamp(min=1)).mean()
    return total


def mask(boxes, size):
    """(size,size): 1 in every cell that a ground-truth box touches."""
    m = torch.zeros(size, size)
    for x1, y1, x2, y2 in (boxes * size / 96).tolist():
        m[int(y1):max(int(y1) + 1, -int(-y2 // 1)), int(x1):max(int(x1) + 1, -int(-x2 // 1))] = 1
    return m


def main():
    torch.manual_seed(0)
    teacher, student = build(1 / 8), build(1 / 32)
    optimizer = torch.optim.AdamW(teacher.parameters(), 2e-3)
    for step in range(TEACHER_STEPS):
        loss = detection_loss(teacher, *batch(step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), 35)
        optimizer.step()
        if step % 20 == 0:
            print(f'teacher  step {step:3d}  detection {loss:7.3f}')
    teacher.eval().requires_grad_(False)

    # One dry run tells every stage's channels, and so the adapters
    (mine, my_hooks), (theirs, their_hooks) = stages(student), stages(teacher)
    with torch.no_grad():
        x, _ = batch(0)
        student.extract_feat(x), teacher.extract_feat(x)
    adapters = nn.ModuleDict({str(s): nn.Conv2d(mine[s].shape[1], theirs[s].shape[1], 1) for s in mine})
    optimizer = torch.optim.AdamW([*student.parameters(), *adapters.parameters()], 2e-3)
    history = []
    for step in range(STUDENT_STEPS):
        x, samples = batch(step)
        with torch.no_grad():
            teacher.extract_feat(x)                       # fills `theirs`
        detection = detection_loss(student, x, samples)   # fills `mine`
        imitation = hgd(mine, theirs, adapters, samples)
        optimizer.zero_grad()
        (detection + imitation).backward()
        nn.utils.clip_grad_norm_(student.parameters(), 35)
        optimizer.step()
        history.append(imitation.item())
        if step % 10 == 0:
            print(f'student  step {step:3d}  detection {detection:7.3f}  imitation {imitation:6.3f}')
    for handle in my_hooks + their_hooks:
        handle.remove()
    first, last = sum(history[:10]) / 10, sum(history[-10:]) / 10
    print(f'imitation fell from {first:.3f} to {last:.3f}; the student kept for use has '
          f'{sum(p.numel() for p in student.parameters()):,} parameters, the teacher '
          f'{sum(p.numel() for p in teacher.parameters()):,}')
    return first, last


if __name__ == '__main__':
    main()
