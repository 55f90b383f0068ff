"""Fakes for tests: lessons and specs made from plain tensors, small detectors, pictures of any claim."""
from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from hgd_det.distill.lesson import HeadOutput, Lesson, Side, Targets
from hgd_det.distill.schedule import Progress
from hgd_det.distill.stages import MapSpec, Survey
from hgd_det.distill.term import HeadSpec, Spec


class Sample(SimpleNamespace):
    """As much of a DetDataSample as a lesson reads."""

    def __contains__(self, key: str) -> bool:
        return hasattr(self, key)


class Instances(Sample):
    pass


def make_sample(boxes: Sequence | Tensor = (), labels: Sequence | Tensor | None = None) -> Sample:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.long) if labels is None else torch.as_tensor(labels)
    empty = Instances(bboxes=boxes.new_zeros(0, 4), labels=labels.new_zeros(0))
    return Sample(gt_instances=Instances(bboxes=boxes, labels=labels), ignored_instances=empty)


def make_lesson(student: dict[str, Tensor] | None = None, teacher: dict[str, Tensor] | None = None, *,
                boxes: Sequence | None = None, box_labels: Sequence | None = None,
                input_shape: tuple[int, int] = (300, 300),
                student_head: tuple[Tensor, Tensor] | None = None,
                teacher_head: tuple[Tensor, Tensor] | None = None,
                levels: Sequence[tuple[int, int, int]] | None = None,
                labels: Tensor | None = None, box_targets: Tensor | None = None,
                label_weights: Tensor | None = None, num_classes: int | None = None,
                assigned: Targets | None = None,
                anchors: Tensor | None = None, images: Tensor | None = None,
                iteration: int = 0, total: int = 100) -> Lesson:
    """A lesson from tensors.

    ``boxes`` is one list of boxes per image; ``*_head`` is ``(cls (B,M,C+1), reg (B,M,R))``;
    ``labels`` (B,M) are the anchors' target classes, ``box_targets`` (B,M,4) their encoded boxes,
    ``assigned`` what the head's own assignment said where a term moved that.
    """
    some = next(iter((student or {}).values()), None)
    batch = len(boxes) if boxes is not None else \
        (some.shape[0] if some is not None else student_head[0].shape[0])
    box_labels = box_labels or [None] * batch
    samples = [make_sample(b, n) for b, n in zip(boxes or [()] * batch, box_labels, strict=True)]

    def head(pair):
        if pair is None:
            return None
        cls, reg = pair
        return HeadOutput(cls, reg, shape)

    shape = tuple(levels) if levels else ((1, student_head[0].shape[1], 1),) if student_head else ()
    targets = None
    if labels is not None:
        c = num_classes if num_classes is not None else student_head[0].shape[-1] - 1
        positive = (labels >= 0) & (labels < c)
        weights = torch.ones(labels.shape) if label_weights is None else label_weights
        wanted = torch.zeros(*labels.shape, 4) if box_targets is None else box_targets
        targets = Targets(labels, weights, wanted,
                          positive[..., None].to(wanted.dtype).expand(*labels.shape, 4), c)
    return Lesson(Side(student, head(student_head)), Side(teacher, head(teacher_head)), samples,
                  progress=Progress(iteration, total), input_shape=input_shape, targets=targets,
                  assigned=assigned, anchors=anchors, levels=shape, images=images)


def make_scores(batch: int = 2, anchors: int = 40, classes: int = 3, seed: int = 0, dtype=torch.float32
                ) -> tuple[Tensor, Tensor, Tensor]:
    """Student and teacher logits (B,M,C+1), and labels (B,M) with a few objects in every image."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, batch, anchors, classes + 1, generator=generator).to(dtype) * 2
    labels = torch.full((batch, anchors), classes)
    for image in range(batch):
        labels[image, 5 * image:5 * image + 2 + image] = torch.arange(2 + image) % classes
    return logits[0].requires_grad_(), logits[1].requires_grad_(), labels


def score_lesson(student: Tensor, teacher: Tensor, labels: Tensor, **more) -> Lesson:
    """A lesson of class scores alone."""
    boxes = torch.zeros(*student.shape[:2], 4)
    return make_lesson(student_head=(student, boxes), teacher_head=(teacher, boxes), labels=labels, **more)


def make_maps(channels: int, sizes: Sequence[int] = (4, 3, 2), batch: int = 2, seed: int = 0,
              dtype=torch.float32) -> dict[str, Tensor]:
    """Square maps of these sizes, as a neck has them."""
    generator = torch.Generator().manual_seed(seed)
    return {f'neck[{i}]': torch.randn(batch, channels, s, s, generator=generator).to(dtype)
            .requires_grad_() for i, s in enumerate(sizes)}


def make_survey(maps: dict[str, tuple[int, int]], input_size: int = 300, name: str = 'student',
                sources: Sequence[str] = ()) -> Survey:
    """``maps`` is ``{tap: (channels, size)}`` in execution order."""
    return Survey(name, (input_size, input_size), tuple(
        MapSpec(tap, c, (size, size), source=tap in sources, activated=True)
        for tap, (c, size) in maps.items()))


def make_spec(student: dict[str, tuple[int, int]], teacher: dict[str, tuple[int, int]], *,
              input_size: int = 300, sources: Sequence[str] | None = None,
              head: HeadSpec | None = None, teacher_head: HeadSpec | None = None) -> Spec:
    """A spec from ``{tap: (channels, size)}`` of each detector; all maps are sources by default."""
    return Spec(make_survey(student, input_size, 'student', student if sources is None else sources),
                make_survey(teacher, input_size, 'teacher', teacher if sources is None else sources),
                (nn.Identity(), nn.Identity()), lambda: (head, teacher_head or head))


def make_head_spec(anchors: Tensor | None = None, num_classes: int = 3, reg_channels: int = 4,
                   project: Tensor | None = None, per_cell: Sequence[int] = (), **more) -> HeadSpec:
    return HeadSpec('SSDHead', num_classes, num_classes + 1, reg_channels, False, anchors,
                    dict(type='DeltaXYWHBBoxCoder', means=(0, 0, 0, 0), stds=(.1, .1, .2, .2)),
                    project, tuple(per_cell), **more)


def tiny_ssd(width: float = 1 / 16, num_classes: int = 3, *, depth: int = 16, with_bn: bool = True,
             mean: float = 123.0, base: float = 0.2) -> dict:
    """Model config of a small SSD for 96-pixel images: stages 96, 48, 24, 12, 6, 3, 1."""
    c4, c7 = round(512 * width), round(1024 * width)
    channels = (c4, c7, round(256 * width), round(256 * width))
    return dict(
        type='SingleStageDetector',
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[mean] * 3, std=[58.0] * 3,
                               bgr_to_rgb=True, pad_size_divisor=1),
        backbone=dict(type='SlimSSDVGG', depth=depth, width=width, with_bn=with_bn),
        neck=dict(type='SSDNeck', in_channels=channels[:2], out_channels=channels,
                  level_strides=(2, 1), level_paddings=(1, 0), l2_norm_scale=20,
                  norm_cfg=dict(type='BN') if with_bn else None),
        bbox_head=dict(
            type='SSDHead', in_channels=channels, num_classes=num_classes,
            anchor_generator=dict(
                type='SSDAnchorGenerator', scale_major=False, input_size=96,
                basesize_ratio_range=(base, 0.9), strides=[8, 16, 32, 96],
                ratios=[[2], [2, 3], [2, 3], [2]], min_sizes=[12, 24, 40, 60],
                max_sizes=[24, 40, 60, 90]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4,
                            target_stds=[0.1, 0.1, 0.2, 0.2])),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.0,
                          ignore_iof_thr=-1, gt_max_assign_all=False),
            sampler=dict(type='PseudoSampler'), smoothl1_beta=1.0, allowed_border=-1,
            pos_weight=-1, neg_pos_ratio=3, debug=False),
        test_cfg=dict(nms_pre=200, nms=dict(type='nms', iou_threshold=0.45), min_bbox_size=0,
                      score_thr=0.02, max_per_img=50))


def make_batch(batch: int = 2, size: int = 96, num_classes: int = 3, seed: int = 0,
               objects: Sequence[int] | None = None) -> dict:
    """A batch as a data loader gives it, ready for ``train_step``: random images, random boxes."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    generator = torch.Generator().manual_seed(seed)
    images, samples = [], []
    for i in range(batch):
        n = 2 if objects is None else objects[i]
        corner = torch.rand(n, 2, generator=generator) * size * 0.6
        extent = (0.15 + 0.25 * torch.rand(n, 2, generator=generator)) * size
        sample = DetDataSample(metainfo=dict(img_shape=(size, size), ori_shape=(size, size),
                                             scale_factor=(1.0, 1.0), img_id=i, pad_shape=(size, size),
                                             batch_input_shape=(size, size)))
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + extent], 1),
            labels=torch.randint(num_classes, (n,), generator=generator))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4),
                                                labels=torch.zeros(0, dtype=torch.long))
        images.append((torch.rand(3, size, size, generator=generator) * 255).byte())
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def make_distiller(terms: dict, student: dict | None = None, teacher: dict | bool | None = None, **options):
    """A distiller of tiny detectors, ready to train: the teacher is twice as wide and untrained, or, with
    ``teacher=False``, there is none."""
    from mmengine.config import ConfigDict
    from mmengine.registry import init_default_scope

    from hgd_det.distill.distiller import Distiller
    init_default_scope('mmdet')
    torch.manual_seed(7)
    if teacher is None:
        teacher = dict(model=ConfigDict(tiny_ssd(1 / 8)), checkpoint='untrained')
    model = Distiller(ConfigDict(student or tiny_ssd()), teacher=teacher or None, terms=ConfigDict(terms),
                      input_size=96, **options)
    model.init_weights()
    model.progress = Progress(0, 100)
    return model.train()


def every_term() -> dict[str, dict]:
    """``{name: entry}`` of every term of ours, each counting from the first iteration at weight 1: what
    laws run over."""
    import hgd_det.distill.terms  # noqa: F401
    from hgd_det.distill.registry import TERMS
    kinds = {name: kind for name, kind in TERMS.module_dict.items()
             if kind.__module__.startswith('hgd_det.distill.terms.')}
    small = dict(Mimic=dict(max_boxes=8))   # untrained teachers see hundreds
    always = dict(weight=1.0, warmup=0, ramp=0, stop=None, detection=1.0)
    return {name: dict(type=name, **always, **small.get(name, {})) for name in sorted(kinds)}


def train_step(model, data: dict, optimizer=None) -> tuple[Tensor, dict[str, float]]:
    """``(total loss, log)`` of one batch of :func:`make_batch`; a step of the optimizer if there is one."""
    import copy
    ready = model.data_preprocessor(copy.deepcopy(data), True)
    total, log = model.parse_losses(model.loss(ready['inputs'], ready['data_samples']))
    if optimizer is not None:
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return total, {k: v.item() for k, v in log.items()}


def torch_calls(work: Callable[[], object]) -> int:
    """How many operations of torch some work is made of."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += 1
            return function(*args, **(kwargs or {}))

    with Count() as count:
        work()
    return count.calls


def make_student(model: dict, size: int = 96, seed: int = 0):
    """A :class:`~hgd_det.deploy.student.Student` with random weights that finds something, and something
    else in each image: BatchNorm is fitted to noise, as the features would die out on their way, and
    the scores are drawn wide."""
    from pathlib import Path

    from mmengine.config import Config

    from hgd_det.deploy.student import Student, build
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(size, size), keep_ratio=False),
                dict(type='PackDetInputs', meta_keys=('img_shape', 'ori_shape', 'scale_factor'))]
    config = Config(dict(model=model, input_size=size, default_scope='mmdet',
                         test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = build(config)
        detector.init_weights()
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            noise = nn.functional.interpolate(torch.randn(8, 3, 12, 12), (size, size))
            detector.train().extract_feat(4 * noise)
        for name, weights in detector.bbox_head.named_parameters():
            if name.endswith('weight'):
                nn.init.normal_(weights, std=.06)
    classes = tuple(f'class{i}' for i in range(detector.bbox_head.num_classes))
    detector.dataset_meta = dict(classes=classes)
    return Student(detector.eval(), config, classes, (size, size), Path('student.pth'))


def png(width: int, height: int, rows: int = 0, grey: bool = False) -> bytes:
    """A black picture whose header claims any size, with only so many of its rows."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack('>I', zlib.crc32(kind + content))
        return struct.pack('>I', len(content)) + kind + content + check

    pack, row = zlib.compressobj(9), bytes(1 + width * (1 if grey else 3))
    content = b''.join(pack.compress(row) for _ in range(rows)) + pack.flush()
    head = struct.pack('>IIBBBBB', width, height, 8, 0 if grey else 2, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', content) + chunk(b'IEND', b''))


def textured(width: int, height: int, seed: int = 0):
    """An image (H, W, 3) of noise with the spectrum of photographs: amplitude falls as 1 / frequency."""
    import numpy as np
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    grey = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency, (height, width))
            for _ in range(3)]
    image = np.stack([grey[0] + 0.3 * other for other in grey], 2)
    return np.clip(128 + 55 * image / image.std(), 0, 255).astype(np.uint8)


def digests(*folders: Path) -> dict[Path, str]:
    """Of every file below some folders the sha256: whether something changed."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in folders for path in folder.rglob('*') if path.is_file()}
