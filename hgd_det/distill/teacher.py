"""The teacher: built from what its config says, checked on loading, and never part of the model.

A :class:`Teacher` is a plain object, no module: it appears in no ``parameters()``, ``state_dict()``,
``init_weights()`` or averaged copy of the student. It is always in eval, its parameters are frozen,
and it runs under ``no_grad``.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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
from hgd_det.distill.classes import Regrouped, check_map, groups, names_in
from hgd_det.distill.folding import Folding
from hgd_det.distill.heads import dense_head, flatten
from hgd_det.distill.lesson import HeadOutput, Side
from hgd_det.distill.sources import newest, resolve
from hgd_det.distill.taps import Taps
from hgd_det.distill.term import HeadSpec
from hgd_det.errors import UserError
from hgd_det.gate import Admitted, sealed

UNTRAINED = 'untrained'


class Teacher:
    """The detector a student learns from.

    Args:
        model: What it is: a config (its path, or a dict), a run's folder, or a checkpoint that carries its
            config (:data:`~hgd_det.distill.sources.KINDS`).
        checkpoint: Its weights, a file or a run's folder: strict, every key and shape must fit. None: those
            that `model` implies, of a folder the newest. ``'untrained'`` says in so many words that random
            weights are wanted (for tests).
        sha256: Refuse a checkpoint of another digest.
        classes: None: the student's, in the same order. Else ``{'mine': 'theirs'}``, or a list of theirs: the
            scores that a term reads are the student's then.
        input_size: None: it sees the student's picture. Else it sees the same crop at this size, (height,
            width), with what the student's size has lost (:mod:`hgd_det.data.two_sizes`); where samples carry
            no such picture, the student's, resized.
    """
    owner = 'model.teacher'    # what its options are called in a config

    def __init__(self, model: str | Path | Config | dict, checkpoint: str | None = None,
                 sha256: str | None = None, classes: dict | None = None,
                 input_size: int | tuple[int, int] | None = None):
        source = resolve(model)
        self.name, self.config = source.name, source.config
        self.checkpoint, self.sha256 = checkpoint or source.checkpoint, sha256
        if classes is not None:
            check_map(classes)
        self.mapping: Mapping[str, str | Sequence[str]] | None = classes
        self.input_size = None if input_size is None else as_pair(input_size)
        self._convert: tuple | None = None  # (student's, teacher's) normalisation where they differ
        self._regrouped: Regrouped | None = None
        self._said = False
        self.classes: tuple[str, ...] | None = names_in(self.config)
        self.digest: str | None = None
        self.loaded = False
        # a seal around all of this, as where the whole distillation came in a file, is never lifted
        with sealed(self.config) if isinstance(self.config, Admitted) else contextlib.nullcontext():
            self.detector: nn.Module = MODELS.build(source.model.copy())
        self.detector.eval().requires_grad_(False)

    def __deepcopy__(self, memo) -> Teacher:
        return self  # copies of a student (EMA) share their teacher

    def load(self) -> None:
        """Load the weights, strictly; once."""
        if self.loaded:
            return
        if self.checkpoint is None:
            raise UserError(
                'the teacher has no checkpoint, so there is nothing to learn from it; give one with\n'
                f'  --cfg-options {self.owner}.checkpoint=PATH\n'
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
            self.classes = weights.class_names(content) or self.classes
        self.detector.eval().requires_grad_(False)
        self.loaded = True

    def _file(self, path: str) -> str:
        """The checkpoint itself, or the newest intact one of a work directory."""
        if not Path(path).exists():
            raise UserError(f'the teacher checkpoint {path} does not exist; train the teacher first\n'
                            f'  tools/train.py {self.name}\n'
                            f'or point elsewhere with --cfg-options {self.owner}.checkpoint=PATH')
        return newest(path) if Path(path).is_dir() else path

    # -- its classes -----------------------------------------------------------------------------
    def learn_classes(self, mine: Sequence[str] | None, readers: Sequence[str]) -> None:
        """Be told the student's classes, and which terms (by name) read this teacher's class scores.

        Refused where a term would compare the scores of different classes.
        """
        theirs, told = self.classes, ', '.join(map(repr, readers))
        if self.mapping is not None:
            if not readers:
                return
            for who, names in (('student', mine), ('teacher', theirs)):
                if not names:
                    raise UserError(f"{self.owner}.classes: the {who}'s classes have no names: neither its "
                                    "data set's metainfo nor its checkpoint gives them")
            head = dense_head(self.detector)
            if len(theirs) != head.num_classes:
                raise UserError(f'{self.owner}: {self.name} names {len(theirs)} classes, its head knows '
                                f'{head.num_classes}')
            self._regrouped = self._regroup(groups(self.mapping, mine, theirs, self.owner))
        elif mine and theirs and tuple(mine) != tuple(theirs):
            differ = [f'{i}: teacher {a!r}, student {b!r}' for i, (a, b) in enumerate(
                zip(theirs, mine, strict=False)) if a != b][:4]
            text = (f'the teacher {self.checkpoint} was trained for other classes ({len(theirs)} against '
                    f'{len(mine)}; {"; ".join(differ)})')
            if readers:
                raise UserError(f'{text}, whose scores {told} would read; take a teacher of the same data '
                                f"set, or say with {self.owner}.classes={{'mine': 'theirs'}} which are whose")
            print_log(f'{text}; features need no common classes', 'current')

    def check_numbers(self, student: nn.Module, readers: Sequence[str]) -> None:
        """What can be told of the classes before anybody has named them."""
        counts = [getattr(dense_head(d), 'num_classes', None) for d in (student, self.detector)]
        if not readers or None in counts:
            return
        told = ', '.join(map(repr, readers))
        if self.mapping is None and counts[0] != counts[1]:
            raise UserError(f'the student knows {counts[0]} classes, the teacher {counts[1]} ({self.name}), '
                            f'whose scores {told} would read; take a teacher of the same data set, or say '
                            f"with {self.owner}.classes={{'mine': 'theirs'}} which are whose")
        if self.mapping is not None and counts[0] != len(self.mapping):
            raise UserError(f'{self.owner}.classes names {len(self.mapping)} classes of the student, which '
                            f'has {counts[0]}; {told} reads the scores of all of them')

    def as_student_counts(self, theirs: HeadSpec | None, mine: HeadSpec | None) -> HeadSpec | None:
        """The spec of the teacher's head whose classes are put in the student's order."""
        if self.mapping is None or theirs is None or mine is None:
            return theirs
        return replace(theirs, num_classes=mine.num_classes,
                       cls_channels=mine.num_classes + (not theirs.use_sigmoid))

    def _regroup(self, wanted: Sequence[Sequence[int]]) -> Regrouped:
        head = dense_head(self.detector)
        sigmoid = bool(getattr(head, 'use_sigmoid_cls', False))
        return Regrouped(wanted, head.num_classes + (not sigmoid), sigmoid)

    def _in_my_order(self, output: HeadOutput) -> HeadOutput:
        if self.mapping is None:
            return output
        if self._regrouped is None:
            if self.loaded:
                raise UserError(f'{self.owner}.classes: nobody has named the student\'s classes; call '
                                'Distiller.check(classes=(...)) before the first step')
            count = dense_head(self.detector).num_classes    # a dry run: whose noise is whose does not matter
            self._regrouped = self._regroup([[i % count] for i in range(len(self.mapping))])
        return replace(output, cls=self._regrouped(output.cls))

    # -- what it sees ----------------------------------------------------------------------------
    @property
    def picture(self) -> str | None:
        """The field of a sample that holds the picture at this teacher's own size."""
        return self.input_size and 'picture_{}x{}'.format(*self.input_size)

    def fit_input(self, student_preprocessor: nn.Module) -> None:
        """Prepare the conversion from the student's input normalisation to the teacher's."""
        mine, theirs = _normalisation(self.detector.data_preprocessor), \
            _normalisation(student_preprocessor)
        if mine == theirs:
            return
        self._convert = (theirs, mine)
        print_log(f'teacher and student normalise images differently: the student {theirs}, the '
                  f'teacher {mine}; batches are converted for the teacher', 'current')

    def inputs(self, batch: Tensor, samples: Sequence = ()) -> Tensor:
        """What the teacher sees of the student's normalised batch: its own pictures where the samples have
        them, normalised as its own; else the batch, as the teacher wants it."""
        if self.picture and samples and all(self.picture in sample for sample in samples):
            return self._own(batch, samples)
        if self._convert is not None:
            (mean_s, std_s, rgb_s), (mean_t, std_t, rgb_t) = self._convert
            shape = (1, -1, 1, 1)
            batch = batch * batch.new_tensor(std_s).view(shape) + batch.new_tensor(mean_s).view(shape)
            if rgb_s != rgb_t:
                batch = batch.flip(1)
            batch = (batch - batch.new_tensor(mean_t).view(shape)) / batch.new_tensor(std_t).view(shape)
        if self.input_size and tuple(batch.shape[-2:]) != self.input_size:
            if samples and not self._said:
                self._said = True
                print_log(f'{self.owner}: the samples carry no picture of {self.input_size}; the teacher '
                          "sees the student's, resized", 'current')
            batch = F.interpolate(batch, size=self.input_size, mode='bilinear', align_corners=False)
        return batch

    def _own(self, batch: Tensor, samples: Sequence) -> Tensor:
        shown = samples[0].get('img_shape')
        if shown and tuple(shown[:2]) != tuple(batch.shape[-2:]):
            raise UserError(f'{self.owner}: the student\'s pictures of {tuple(shown[:2])} are padded to '
                            f'{tuple(batch.shape[-2:])}, the teacher\'s are not, so that places in their '
                            'maps differ; resize to a multiple of data_preprocessor.pad_size_divisor')
        pictures = torch.stack([sample.get(self.picture) for sample in samples]).to(batch)
        own = self.detector.data_preprocessor
        if getattr(own, '_channel_conversion', False):
            pictures = pictures.flip(1)
        return (pictures - own.mean) / own.std if getattr(own, '_enable_normalize', False) else pictures

    def observe(self, images: Tensor, samples: list, *, taps: Iterable[str] = (), head: bool = False,
                gradient: bool = False) -> Side:
        """What the teacher puts out for a batch: run as deep as needed, that is backbone and extras, and the
        head where some term reads it.

        ``gradient`` keeps the way back to the images; the weights stay frozen.
        """
        outputs = None
        with Taps(self.detector, taps, stop=not head) as maps, torch.set_grad_enabled(gradient):
            images = self.inputs(images, samples)
            # forward only, channels last is a third faster on a CPU; on a GPU the student's maps lie so too
            self.detector.to(memory_format=torch.channels_last)  # costs nothing once done
            images = images.contiguous(memory_format=torch.channels_last)
            with self.folding() if images.device.type == 'cpu' else contextlib.nullcontext():
                features = self.detector.extract_feat(images)
                if head:
                    outputs = self._in_my_order(
                        flatten(self.detector.bbox_head, self.detector.bbox_head(features)))
        return Side(maps, outputs)

    @cached_property
    def folding(self) -> Folding:
        return Folding(self.detector)


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
