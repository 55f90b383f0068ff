"""The mAP of any form of a detector, by the evaluator that also judges checkpoints."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from mmdet.models.utils.misc import samplelist_boxtype2tensor
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData

import hgd_det.registered  # noqa: F401  what configs name
from hgd_det.deploy.postprocess import Detections
from hgd_det.deploy.runtime import Model
from hgd_det.deploy.student import building
from hgd_det.engine.runner import warn
from hgd_det.errors import UserError


def evaluate(model: Model, cfg: Config) -> dict[str, float]:
    """The figures of the config's `test_evaluator` on its test set; `hgd-det test` gives the same.

    The config's pipeline loads and resizes the images; of its detector nothing is built.
    """
    if not cfg.get('test_dataloader') or not cfg.get('test_evaluator'):
        raise UserError('the config has no test_dataloader or no test_evaluator, so there is nothing '
                        'to test on')
    with building(cfg):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        evaluator = Evaluator(cfg.test_evaluator)
        evaluator.dataset_meta = dataset.metainfo
        _check_classes(model, dataset.metainfo.get('classes') or ())
        for samples in _batches(dataset, cfg.test_dataloader.get('batch_size', 1)):
            _predict(model, samples)
            evaluator.process(data_samples=[sample['data_samples'] for sample in samples])
        return evaluator.evaluate(len(dataset))


def _check_classes(model: Model, tested: Iterable[str]) -> None:
    if len(tested) != len(model.classes):
        raise UserError(f'{model.path} knows {len(model.classes)} classes ({", ".join(model.classes)}), '
                        f'the test set has {len(tested)} ({", ".join(tested)})')
    compare_names(model.path, model.classes, tested)


def compare_names(what: str | Path, trained: Iterable[str], tested: Iterable[str]) -> None:
    """Warn where a detector was trained for classes of other names than the test set has."""
    if list(trained) != list(tested):
        warn(f'{what} was trained for the classes {", ".join(trained)}, but the test set has '
             f'{", ".join(tested)}: the figures mean something only if these are the same things by '
             'other names')


def _batches(dataset, size: int) -> Iterator[list[dict]]:
    """Samples in order; those in one batch have one shape."""
    batch = []
    for index in range(len(dataset)):
        sample = dataset[index]
        if batch and (len(batch) == size or sample['inputs'].shape != batch[0]['inputs'].shape):
            yield batch
            batch = []
        batch.append(sample)
    yield batch


def _predict(model: Model, samples: list[dict]) -> None:
    """Put what the model finds into the samples, as boxes in the original images."""
    images = np.stack([sample['inputs'].numpy()[::-1].transpose(1, 2, 0) for sample in samples])  # RGB
    if model.input_size and images.shape[1:3] != model.input_size:
        raise UserError('the pipeline of the test set gives images of {} x {}, {} takes {} x {}'.format(
            *images.shape[1:3], model.path, *model.input_size))
    samples = [sample['data_samples'] for sample in samples]
    samplelist_boxtype2tensor(samples)
    for sample, found in zip(samples, model.detect(np.ascontiguousarray(images)), strict=True):
        height, width = sample.ori_shape
        sample.pred_instances = _instances(found.scaled(width, height))


def _instances(found: Detections) -> InstanceData:
    boxes, scores, labels = map(torch.from_numpy, found)
    return InstanceData(bboxes=boxes, scores=scores, labels=labels)
