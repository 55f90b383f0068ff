"""mmdet's preprocessor takes a batch picture by picture: each is copied to the device and waited for,
reordered, converted and normalised by itself. Here a batch of 8-bit pictures of one size goes over in one
pinned piece and its boxes in another, and is normalised there at once; values are the same to the last bit.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def apply() -> None:
    """Give mmengine's picture preprocessor, which mmdet's calls, the way of a whole batch."""
    from mmengine.model import ImgDataPreprocessor
    if hasattr(ImgDataPreprocessor, 'one_by_one'):
        return
    ImgDataPreprocessor.one_by_one = ImgDataPreprocessor.forward

    def forward(self, data: dict, training: bool = False) -> dict:
        if not _alike(self, data):
            return self.one_by_one(data, training)
        images = torch.stack(list(data['inputs']))
        rest = {key: value for key, value in data.items() if key != 'inputs'}
        samples = rest.setdefault('data_samples', None)
        if self.device.type != 'cpu':
            images = images.pin_memory().to(self.device, non_blocking=True)
            if samples is not None and _plain(samples):
                send_instances(samples, self.device)
        rest = self.cast_data(rest)
        if self._channel_conversion:
            images = images.flip(1)
        images = images.float()
        if self._enable_normalize:
            images = images.sub_(self.mean).div_(self.std)
        return dict(inputs=images, **rest)

    ImgDataPreprocessor.forward = forward


def _alike(self, data) -> bool:
    inputs = data.get('inputs') if isinstance(data, dict) else None
    return (isinstance(inputs, Sequence) and len(inputs) > 0 and all(
        isinstance(each, Tensor) and each.dtype == torch.uint8 and each.ndim == 3
        and each.device.type == 'cpu' and each.shape == inputs[0].shape for each in inputs)
        and inputs[0].shape[0] == 3 and not any(side % self.pad_size_divisor for side in inputs[0].shape[1:]))


def _plain(samples) -> bool:
    """Whether all that a sample has of tensors is boxes and labels, as detection has it."""
    def boxes_alone(found) -> bool:
        values = dict(found.items())
        return values.keys() <= {'bboxes', 'labels'} and all(
            isinstance(getattr(value, 'tensor', value), Tensor) for value in values.values())
    return isinstance(samples, Sequence) and all(
        set(sample.keys()) <= {'gt_instances', 'ignored_instances'}
        and all(boxes_alone(value) for value in sample.values()) for sample in samples)


def send_instances(samples: Sequence, device: torch.device) -> None:
    """Put boxes and labels of all samples on the device, those of a kind in one copy without a wait."""
    for group in ('gt_instances', 'ignored_instances'):
        found = [sample.get(group) for sample in samples if group in sample]
        for key in {key for each in found for key in each.keys()}:
            holders = [each for each in found if key in each]
            values = [getattr(each[key], 'tensor', each[key]) for each in holders]
            if len({(value.dtype, value.shape[1:]) for value in values}) != 1:
                continue
            joined = torch.cat(values)
            if device.type == 'cuda':
                joined = joined.pin_memory()
            joined = joined.to(device, non_blocking=True)
            for each, part in zip(holders, joined.split([len(value) for value in values]), strict=True):
                boxes = each[key]
                each.set_field(part if isinstance(boxes, Tensor) else type(boxes)(part, clone=False), key)
