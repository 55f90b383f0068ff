"""Reading a dense head: its raw outputs, anchors and targets, without changing it for good.

Everything is taken from what the head computes anyway: its forward output is hooked, and its
``get_targets`` is shadowed on the instance inside the ``with``, so assignment runs once.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from hgd_det.distill.lesson import HeadOutput, Targets
from hgd_det.distill.stages import evaluating
from hgd_det.distill.taps import Taps
from hgd_det.distill.term import HeadSpec
from hgd_det.errors import UserError


def dense_head(detector: nn.Module) -> nn.Module | None:
    """The one-stage head of a detector, or None (two-stage detectors have proposals instead)."""
    head = getattr(detector, 'bbox_head', None)
    return head if head is not None and hasattr(head, 'prior_generator') else None


def flatten(head: nn.Module, outputs: tuple) -> HeadOutput:
    """Level maps ``(B, A*K, H, W)`` to ``(B, M, K)`` in anchor order."""
    levels = levels_of(head, outputs)

    def join(maps: list[Tensor]) -> Tensor:
        return torch.cat([m.permute(0, 2, 3, 1).reshape(m.shape[0], h * w * a, -1)
                          for m, (h, w, a) in zip(maps, levels, strict=True)], 1)
    return HeadOutput(join(outputs[0]), join(outputs[1]), levels)


def levels_of(head: nn.Module, outputs: tuple) -> tuple[tuple[int, int, int], ...]:
    """(H, W, anchors per cell) of each level."""
    priors = getattr(head, 'num_base_priors', 1)
    priors = [priors] * len(outputs[0]) if isinstance(priors, int) else list(priors)
    return tuple((*scores.shape[-2:], a) for scores, a in zip(outputs[0], priors, strict=True))


def anchors_of(head: nn.Module, levels: tuple, device) -> Tensor | None:
    """(M, 4) anchors of all levels, or None for a head whose priors are points."""
    grid = getattr(head, 'grid', head.prior_generator.grid_priors)      # ours keeps it
    priors = grid([level[:2] for level in levels], device=device)
    joined = torch.cat([getattr(p, 'tensor', p) for p in priors])
    return joined if joined.shape[-1] == 4 else None


def head_spec(detector: nn.Module, input_size: tuple[int, int]) -> HeadSpec | None:
    """What a dry run tells of a detector's head; None where the detector has no dense head."""
    head = dense_head(detector)
    if head is None:
        return None
    parameter = next(detector.parameters())
    image = torch.zeros(1, 3, *input_size, device=parameter.device, dtype=parameter.dtype)
    with evaluating(detector), torch.no_grad():
        outputs = head(detector.extract_feat(image))
        if not (isinstance(outputs, (tuple, list)) and len(outputs) >= 2):
            return None
        out = flatten(head, outputs)
    coder = getattr(head, 'bbox_coder', None)
    described = None if coder is None else dict(
        type=type(coder).__name__,
        means=tuple(float(m) for m in getattr(coder, 'means', ())),
        stds=tuple(float(s) for s in getattr(coder, 'stds', ())))
    return HeadSpec(type(head).__name__, head.num_classes, out.cls.shape[-1], out.reg.shape[-1],
                    bool(getattr(head, 'use_sigmoid_cls', False)),
                    anchors_of(head, out.levels, parameter.device), described,
                    getattr(head, 'project', None), tuple(a for _, _, a in out.levels),
                    bool(getattr(head, 'reg_decoded_bbox', False)))


class Watching:
    """A detector seen while its loss runs: its taps, its head's output, its targets.

    ``retarget`` takes the head's targets and returns those that its loss shall use instead.

    Example::

        with Watching(student, taps) as mine:
            losses = student.loss(inputs, samples)
        mine.maps, mine.output(), mine.targets()
    """

    def __init__(self, detector: nn.Module, taps: Iterable[str] = (),
                 retarget: Callable[[Targets], Targets] | None = None):
        self.head, self.maps, self.retarget = dense_head(detector), Taps(detector, taps), retarget
        self._outputs = self._targets = self._assigned = self._handle = None

    def __enter__(self) -> Watching:
        self.maps.__enter__()
        if self.head is None:
            return self
        self._handle = self.head.register_forward_hook(self._saw)
        original = getattr(self.head, 'get_targets', None)
        if original is None:  # YOLOX and its like assign inside their loss; `targets()` says so
            return self

        def get_targets(*args, **kwargs):
            self._targets = self._assigned = original(*args, **kwargs)
            if self.retarget is not None:
                self._targets = self._moved()
            return self._targets
        self.head.__dict__['get_targets'] = get_targets
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.maps.__exit__(kind, error, trace)
        if self.head is not None:
            self._handle.remove()
            self.head.__dict__.pop('get_targets', None)

    @torch.no_grad()
    def _moved(self) -> tuple:
        """Other targets in the form that the head's loss reads: per level, and the positives' number."""
        before = self._joined(self._assigned)
        with torch.autocast(before.labels.device.type, enabled=False):
            targets = self.retarget(before)
        sizes = [part.shape[1] for part in self._assigned[0]]
        parts = (targets.labels, targets.label_weights, targets.boxes, targets.box_weights)
        count = targets.positive.sum(1).clamp(min=1).sum()  # mmdet counts one in an image without any
        return (*(list(part.split(sizes, 1)) for part in parts), count, *self._assigned[5:])

    def _saw(self, module, args, outputs) -> None:
        self._outputs = outputs

    def _seen(self) -> tuple:
        if self._outputs is None:
            raise UserError("a term reads head outputs, but the student has no dense head (two-stage "
                            'detectors have proposals); use a feature term such as HGD')
        return self._outputs

    def output(self) -> HeadOutput:
        return flatten(self.head, self._seen())

    def levels(self) -> tuple[tuple[int, int, int], ...]:
        return levels_of(self.head, self._seen())

    def anchors(self) -> Tensor | None:
        """(M, 4), or None for a head whose priors are points."""
        outputs = self._seen()
        return anchors_of(self.head, self.levels(), outputs[0][0].device)

    def targets(self) -> Targets:
        """What the loss was computed from."""
        return self._joined(self._targets)

    def assigned(self) -> Targets:
        """What the head's own assignment said."""
        return self.targets() if self._targets is self._assigned else self._joined(self._assigned)

    def _joined(self, found) -> Targets:
        usable = isinstance(found, tuple) and len(found) >= 5 and all(
            isinstance(part, (list, tuple)) and part and isinstance(part[0], Tensor)
            for part in found[:4]) and found[0][0].dtype == torch.long
        if not usable:
            raise UserError(f'a term reads anchor targets, but {type(self.head).__name__} assigns none of '
                            'the kind SSD and RetinaNet heads do; use a feature term such as HGD')
        labels, label_weights, boxes, box_weights = (torch.cat(list(p), 1) for p in found[:4])
        return Targets(labels, label_weights, boxes, box_weights, self.head.num_classes)

    @property
    def neg_pos_ratio(self) -> float:
        config = getattr(self.head, 'train_cfg', None) or {}
        return float(config.get('neg_pos_ratio', 3.0))
