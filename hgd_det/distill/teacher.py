"""The teacher: built from its own config, checked on loading, and never part of the model.

A :class:`Teacher` is a plain object, no module: it appears in no ``parameters()``, ``state_dict()``,
``init_weights()`` or averaged copy of the student. It is always in eval, its parameters are frozen,
and it runs under ``no_grad``.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor, nn

from hgd_det import checkpoint as checkpoints
from hgd_det import weights
from hgd_det.distill.folding import Folding
from hgd_det.distill.heads import flatten
from hgd_det.distill.lesson import Side
from hgd_det.distill.taps import Taps
from hgd_det.errors import UserError
from hgd_det.paths import read_config

UNTRAINED = 'untrained'


class Teacher:
    """The detector a student learns from.

    Args:
        model: Path of its config (from the working folder or the project's root), or the config.
        checkpoint: Its weights: strict, every key and shape must fit. ``'untrained'`` says in so
            many words that random weights are wanted (for tests).
        input_size: Where the teacher wants images of another size than the student's: the batch
            is resized for it.
        sha256: Refuse a checkpoint of another digest.
        same_classes: Set False to learn features from a teacher of other classes (COCO to VOC, say);
            without it such a teacher is taken for a mistake.
    """

    def __init__(self, model: str | Path | Config | dict, checkpoint: str | None = None,
                 input_size: int | tuple[int, int] | None = None, sha256: str | None = None,
                 same_classes: bool = True):
        self.config = _read(model)
        self.checkpoint, self.sha256, self.same_classes = checkpoint, sha256, same_classes
        self.input_size = None if input_size is None else as_pair(input_size)
        self._convert: tuple | None = None  # (student's, teacher's) normalisation where they differ
        self.classes: tuple[str, ...] | None = None
        self.digest: str | None = None
        self.loaded = False
        detector = self.config.model
        if detector['type'] == 'Distiller':  # a distilled student teaches: its plain self is meant
            detector = detector['student']
        self.detector: nn.Module = MODELS.build(detector.copy())
        self.detector.eval().requires_grad_(False)

    def __deepcopy__(self, memo) -> Teacher:
        return self  # copies of a student (EMA) share their teacher

    @property
    def name(self) -> str:
        return str(getattr(self.config, 'filename', None) or 'teacher config')

    def load(self) -> None:
        """Load the weights, strictly; once."""
        if self.loaded:
            return
        if self.checkpoint is None:
            raise UserError(
                'the teacher has no checkpoint, so there is nothing to learn from it; give one with\n'
                '  --cfg-options model.teacher.checkpoint=PATH\n'
                f'(train it first: tools/train.py {self.name})')
        if self.checkpoint == UNTRAINED:
            self.detector.init_weights()
            print_log('the teacher is untrained, as asked', 'current')
        else:
            self.checkpoint = self._file(self.checkpoint)
            content = checkpoints.load(self.checkpoint)
            self.digest = checkpoints.sha256(self.checkpoint)
            if self.sha256 and not self.digest.startswith(self.sha256):
                raise UserError(f'teacher {self.checkpoint}: sha256 is {self.digest}, wanted '
                                f'{self.sha256}; this is another file')
            weights.load_into(self.detector, weights.student_state_dict(content),
                                  what=f'teacher {self.checkpoint} for {self.name}')
            self.classes = weights.class_names(content)
        self.detector.eval().requires_grad_(False)
        self.loaded = True

    def _file(self, path: str) -> str:
        """The checkpoint itself, or the newest intact one of a work directory."""
        if not Path(path).exists():
            raise UserError(f'the teacher checkpoint {path} does not exist; train the teacher first\n'
                            f'  tools/train.py {self.name}\n'
                            'or point elsewhere with --cfg-options model.teacher.checkpoint=PATH')
        if not Path(path).is_dir():
            return path
        newest, skipped = checkpoints.newest_intact(path)
        if newest is None:
            raise UserError(f'the teacher\'s work directory {path} holds no intact checkpoint'
                            + ''.join(f'\n  {reason}' for reason in skipped))
        return str(newest)

    def check_classes(self, classes: tuple[str, ...] | None) -> None:
        """Refuse a teacher that learned other classes, or the same ones in another order."""
        if not (self.same_classes and self.classes and classes) or tuple(classes) == self.classes:
            return
        differ = [f'{i}: teacher {a!r}, student {b!r}' for i, (a, b) in enumerate(
            zip(self.classes, classes, strict=False)) if a != b][:4]
        raise UserError(f'the teacher {self.checkpoint} was trained for other classes '
                        f'({len(self.classes)} against {len(classes)}; {"; ".join(differ)}); take a '
                        'teacher of the same data set, or allow it with model.teacher.same_classes=False')

    def fit_input(self, student_preprocessor: nn.Module) -> None:
        """Prepare the conversion from the student's input normalisation to the teacher's."""
        mine, theirs = _normalisation(self.detector.data_preprocessor), \
            _normalisation(student_preprocessor)
        if mine == theirs:
            return
        self._convert = (theirs, mine)
        print_log(f'teacher and student normalise images differently: the student {theirs}, the '
                  f'teacher {mine}; batches are converted for the teacher', 'current')

    def inputs(self, batch: Tensor) -> Tensor:
        """The student's normalised batch as the teacher wants it."""
        if self._convert is not None:
            (mean_s, std_s, rgb_s), (mean_t, std_t, rgb_t) = self._convert
            shape = (1, -1, 1, 1)
            batch = batch * batch.new_tensor(std_s).view(shape) + batch.new_tensor(mean_s).view(shape)
            if rgb_s != rgb_t:
                batch = batch.flip(1)
            batch = (batch - batch.new_tensor(mean_t).view(shape)) / batch.new_tensor(std_t).view(shape)
        if self.input_size and tuple(batch.shape[-2:]) != self.input_size:
            batch = F.interpolate(batch, size=self.input_size, mode='bilinear', align_corners=False)
        return batch

    def observe(self, images: Tensor, samples: list, *, taps: Iterable[str] = (), head: bool = False,
                gradient: bool = False) -> Side:
        """What the teacher puts out for a batch: run as deep as needed, that is backbone and extras, and the
        head where some term reads it.

        ``gradient`` keeps the way back to the images; the weights stay frozen.
        """
        outputs = None
        with Taps(self.detector, taps, stop=not head) as maps, torch.set_grad_enabled(gradient):
            images = self.inputs(images)
            # forward only, channels last is a third faster on a CPU; on a GPU the student's maps lie so too
            self.detector.to(memory_format=torch.channels_last)  # costs nothing once done
            images = images.contiguous(memory_format=torch.channels_last)
            with self.folding() if images.device.type == 'cpu' else contextlib.nullcontext():
                features = self.detector.extract_feat(images)
                if head:
                    outputs = flatten(self.detector.bbox_head, self.detector.bbox_head(features))
        return Side(maps, outputs)

    @cached_property
    def folding(self) -> Folding:
        return Folding(self.detector)


def _read(config) -> Config:
    if isinstance(config, (str, Path)):
        config = read_config(config)
    elif not isinstance(config, Config):
        config = Config(dict(config))
    if 'model' not in config:
        config = Config(dict(model=config), filename=config.filename)
    if not isinstance(config.model, (dict, Config)) or 'type' not in config.model:
        raise UserError(f'the teacher config {config.filename or ""} has no model')
    return config


def _normalisation(preprocessor: nn.Module) -> tuple:
    """(mean, std, RGB order) of a data preprocessor; no normalisation is mean 0, std 1."""
    enabled = getattr(preprocessor, '_enable_normalize', False)
    mean = preprocessor.mean.flatten().tolist() if enabled else [0.0]
    std = preprocessor.std.flatten().tolist() if enabled else [1.0]
    return (tuple(mean * 3)[:3] if len(mean) == 1 else tuple(mean),
            tuple(std * 3)[:3] if len(std) == 1 else tuple(std),
            bool(getattr(preprocessor, '_channel_conversion', False)))


def as_pair(size) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else size
    if not (isinstance(pair, (list, tuple)) and len(pair) == 2
            and all(isinstance(side, int) and side > 0 for side in pair)):
        raise UserError(f'input_size={size!r}; give the side in pixels, or (height, width)')
    return tuple(pair)
