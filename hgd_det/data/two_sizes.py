"""One picture at two sizes: beside the student's, what a teacher of another size shall see of it.

A train pipeline resizes each picture to the student's size, and what is lost there nobody can get back. From
that step on each step is done for both: on the student's picture, whose sample stays bit for bit what it
would be alone, and with the same draws on one that was resized to the teacher's size out of the same pixels.
That one travels as a field of the data sample, in the values that the pipeline has (a teacher normalises it
as its own). Boxes are the student's: those of the teacher's picture are larger by the ratio of the sizes.
"""
from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose, LoadAnnotations, RandomApply, RandomChoice, RandomFlip, Resize
from mmdet.datasets import transforms as mmdet
from mmdet.datasets.transforms.colorspace import ColorTransform

from hgd_det.errors import UserError

from .ssd_augment import SSDAugment

RESIZING = (Resize, SSDAugment)
# resizes that pad, or keep the ratio in a way of their own
STRETCHING = (mmdet.FixScaleResize, mmdet.FixShapeResize)
# what changes pixels, or mirrors them, whatever the size of the picture
FOR_EACH = (RandomFlip, mmdet.PhotoMetricDistortion, mmdet.YOLOXHSVRandomAug, ColorTransform)
FOR_NONE = (LoadAnnotations, mmdet.FilterAnnotations, mmdet.PackDetInputs)      # what touches no pixel

Size = tuple[int, int]  # (height, width)


def install(dataset, wanted: Mapping[str, Size]) -> bool:
    """Let a training set's samples carry pictures of more sizes, ``{field of the sample: size}``; whether
    that took a change.

    A size that the pipeline gives anyway is left out. Before the data loader's workers start: each has a
    copy of the set.
    """
    inner = [*getattr(dataset, 'datasets', ()), *filter(None, [getattr(dataset, 'dataset', None)])]
    if inner and not hasattr(dataset, 'pipeline'):    # one that repeats, balances or joins others
        return any([install(one, wanted) for one in inner])
    pipeline = getattr(dataset, 'pipeline', None)
    steps = getattr(pipeline, 'transforms', None)
    if inner or not isinstance(steps, list):
        raise _refusal(wanted, f'{type(dataset).__name__} ' + (
            'mixes several pictures into one' if inner else 'has no pipeline of steps'))
    if isinstance(steps[-1], TwoSizes):
        return False
    pipeline.transforms = _divided(steps, wanted)
    return pipeline.transforms is not steps


def _divided(steps: list, wanted: Mapping[str, Size]) -> list:
    """The steps with those from the resize on as one, for all sizes."""
    at = next((i for i, step in enumerate(steps) if isinstance(step, RESIZING)), None)
    if at is None:
        raise _refusal(wanted, 'the train pipeline has no Resize')
    size = _size(steps[at], wanted)
    wanted = {field: other for field, other in wanted.items() if other != size}
    if not wanted:
        return steps
    for step in steps[at + 1:]:
        if not (_for_each(step) or isinstance(step, FOR_NONE)):
            raise _refusal(wanted, f'the step {type(step).__name__} behind the resize cannot be done '
                           'alike at two sizes (flips and changes of colour can); put it before the resize')
    if not isinstance(steps[-1], mmdet.PackDetInputs):
        raise _refusal(wanted, 'the train pipeline does not end in PackDetInputs')
    return [*steps[:at], TwoSizes(steps[at:], wanted)]


def _size(step, wanted: Mapping[str, Size]) -> Size:
    if isinstance(step, SSDAugment):
        return step.geometry.output[::-1]
    if isinstance(step, STRETCHING) or step.keep_ratio or not step.scale:
        raise _refusal(wanted, f'{type(step).__name__}(keep_ratio={step.keep_ratio}, scale={step.scale}) '
                       'gives each picture a shape of its own, or a border, which one of a fixed size would '
                       "not share; write dict(type='Resize', scale=(width, height), keep_ratio=False)")
    return tuple(step.scale)[::-1]


def _for_each(step) -> bool:
    if isinstance(step, Compose) or type(step) in (RandomApply, RandomChoice):
        return all(map(_for_each, step))
    return isinstance(step, FOR_EACH)


def _refusal(wanted: Mapping[str, Size], reason: str) -> UserError:
    sizes = ' and '.join(f'{height}x{width}' for height, width in wanted.values())
    return UserError(f'a teacher wants a picture of {sizes} (its input_size) of what the student sees, but '
                     f'{reason}; or leave input_size out, and the teacher sees the student\'s picture')


class TwoSizes:
    """The last steps of a pipeline, the first of which resizes, at the student's size and at others."""

    def __init__(self, steps: Sequence, sizes: Mapping[str, Size]):
        self.steps, self.sizes = list(steps), dict(sizes)
        if isinstance(self.steps[0], SSDAugment):    # it decodes by itself, and no finer than it must
            self.steps[0].also = [size[::-1] for size in self.sizes.values()]

    def __call__(self, results: dict) -> dict | None:
        resize, *rest = self.steps
        whole = results.get('img')
        results = resize(results)
        if results is None:
            return None
        if isinstance(resize, SSDAugment):
            images = results.pop('also')
        else:
            images = [mmcv.imresize(whole, size[::-1], interpolation=resize.interpolation,
                                    backend=resize.backend) for size in self.sizes.values()]
        pictures = [dict(img=image, img_shape=image.shape[:2]) for image in images]
        for step in rest:
            if not _for_each(step):
                results = step(results)
            else:
                results, pictures = _with_equal_draws(step, results, pictures)
            if results is None:    # the data set takes another sample
                return None
        for field, picture in zip(self.sizes, pictures, strict=True):
            planes = np.ascontiguousarray(np.atleast_3d(picture['img']).transpose(2, 0, 1))
            results['data_samples'].set_field(torch.from_numpy(planes), field)
        return results

    def __repr__(self) -> str:
        return f'TwoSizes({self.steps}, {self.sizes})'


def _with_equal_draws(step, results: dict, pictures: list[dict]) -> tuple[dict, list[dict]]:
    """A step done on each, with the random numbers that the first draws; they go on behind that one's."""
    before = _random_state()
    results = step(results)
    after = _random_state()
    done = []
    for picture in pictures:
        _go_on_from(before)
        done.append(step(picture))
    _go_on_from(after)
    return results, done


def _random_state() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _go_on_from(state: tuple) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
