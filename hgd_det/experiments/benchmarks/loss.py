"""SSD's loss and its gradient with respect to the head's maps: a batch at once, against mmdet's head."""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hgd_det.experiments.benchmarks.data import voc_boxes
from hgd_det.experiments.benchmarks.measure import Row, compare
from hgd_det.paths import ROOT


class Scale(NamedTuple):
    """A head of the configs and the maps it reads."""
    name: str
    config: str
    maps: tuple[int, ...]
    pixels: int


SSD300 = Scale('SSD300', 'configs/_base_/models/ssd300_vgg16.py', (38, 19, 10, 5, 3, 1), 300)
SHAPES = Scale('shapes', 'configs/shapes/_base_/model.py', (12, 6, 3, 1), 96)
Maps = list[list[Tensor]]    # scores and deltas of each level, as the head puts them out


def run(options: argparse.Namespace) -> Iterator[Row]:
    for scale in (SSD300, SHAPES):
        theirs, ours = heads(scale)
        for batch in (32, 8, 1):
            images = objects(batch, scale, theirs.num_classes)
            maps = [[level.requires_grad_() for level in kind] for kind in outputs(theirs, images, scale)]
            sides = [_step(head, maps, images, scale) for head in (ours, theirs)]
            assert_equal(*(side() for side in sides))
            yield compare(f'BatchedSSDHead / SSDHead, {scale.name}, batch {batch}', 'images/s', *sides,
                          work=batch, rounds=options.rounds, goal='>=2' if batch == 32 else '')


def _step(head, maps: Maps, images: list, scale: Scale) -> Callable[[], list[Tensor]]:
    levels = [level for kind in maps for level in kind]

    def step() -> list[Tensor]:
        losses = head.loss_by_feat(*maps, images, metas(len(images), scale))
        total = sum(value.sum() for values in losses.values() for value in values)
        return [total.detach(), *torch.autograd.grad(total, levels)]
    return step


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def heads(scale: Scale) -> list:
    """mmdet's head and ours of one configuration."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    import hgd_det.registered  # noqa: F401
    register_all_modules()
    model = Config.fromfile(ROOT / scale.config).model
    model.bbox_head.update(train_cfg=model.train_cfg, test_cfg=model.test_cfg)
    return [MODELS.build(model.bbox_head | dict(type=kind)) for kind in ('SSDHead', 'BatchedSSDHead')]


def objects(batch: int, scale: Scale, classes: int) -> list:
    from mmengine.structures import InstanceData
    rng = np.random.default_rng(0)
    boxes = [torch.from_numpy(voc_boxes(rng, scale.pixels, scale.pixels)).float() for _ in range(batch)]
    return [InstanceData(bboxes=each, labels=torch.from_numpy(rng.integers(0, classes, len(each))))
            for each in boxes]


def metas(batch: int, scale: Scale) -> list[dict]:
    side = scale.pixels
    meta = dict(img_shape=(side, side), pad_shape=(side, side), scale_factor=(side / 500, side / 375))
    return [meta] * batch


def outputs(head, images: list, scale: Scale) -> Maps:
    """Maps of a detector that has learned: noise under background, and over each object its class.

    A class gains in proportion to the anchor's overlap with the object, and there the deltas are near those
    of the object. In memory channels come last, as convolutions leave them on a CPU here.
    """
    from mmdet.structures.bbox import bbox_overlaps
    generator = torch.Generator().manual_seed(0)
    anchors = torch.cat(head.prior_generator.grid_priors([(s, s) for s in scale.maps], device='cpu'))
    scores, deltas = (torch.randn(len(images), len(anchors), width, generator=generator)
                      for width in (head.cls_out_channels, 4))
    scores[..., -1] += 8
    deltas /= 2
    for image, score, delta in zip(images, scores, deltas, strict=True):
        overlap, nearest = bbox_overlaps(anchors, image.bboxes).max(1)
        score.scatter_add_(1, image.labels[nearest, None], 16 * overlap[:, None])
        near = overlap > 0.3
        delta[near] += head.bbox_coder.encode(anchors[near], image.bboxes[nearest[near]])
    counts = [a * s * s for a, s in zip(head.num_base_priors, scale.maps, strict=True)]
    return [[rows.reshape(len(images), s, s, -1).permute(0, 3, 1, 2).contiguous(
        memory_format=torch.channels_last) for rows, s in zip(kind.split(counts, 1), scale.maps, strict=True)]
        for kind in (scores, deltas)]
