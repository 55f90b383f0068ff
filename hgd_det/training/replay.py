"""Augmentation that a resumed run repeats: every draw of a sample has random numbers of its own.

What an augmentation draws usually depends on how much was drawn before it, in which worker. A
resumed run skips the data it has had, so it goes on with other crops and flips. Here the n-th draw of
a run seeds Python, NumPy and torch with (seed, process, epoch, n) before its pipeline runs: the same
in an interrupted run as in a whole one, and with any number of workers.
"""
from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from hgd_det.errors import RunError, UserError
from hgd_det.training.distill_hook import show_teachers
from hgd_det.training.loading import Stalled, patient
from hgd_det.training.signals import Interrupted, StopHook


class Draw(int):
    """A sample's index that remembers in which epoch, and as which number, it was drawn."""

    def __new__(cls, index: int, epoch: int, number: int):
        draw = super().__new__(cls, index)
        draw.epoch, draw.number = epoch, number
        return draw

    def __reduce__(self):  # on its way to a worker
        return Draw, (int(self), self.epoch, self.number)


class Numbered:
    """A sampler whose indices are :class:`Draw`; in everything else the sampler itself."""

    def __init__(self, sampler):
        self._sampler, self._skipped = sampler, 0

    def __iter__(self) -> Iterator[Draw]:
        epoch = getattr(self._sampler, 'epoch', 0)
        for number, index in enumerate(self._sampler, self._skipped):
            yield Draw(index, epoch, number)

    def __len__(self) -> int:
        return len(self._sampler)

    def __getattr__(self, name: str):
        if name == '_sampler':  # while being unpickled
            raise AttributeError(name)
        value = getattr(self._sampler, name)
        return self._skip if name == 'skip' else value

    def _skip(self, count: int) -> None:
        """mmengine's way to go on in the middle of an endless sampler, where the sampler knows it."""
        self._sampler.skip(count)
        self._skipped += count


class Seeded:
    """Fetches a batch of draws, each under its own seed; leaves the process's own state alone."""

    def __init__(self, dataset, seed: int, rank: int):
        self.dataset, self.seed, self.rank = dataset, seed, rank

    def __call__(self, indices: Sequence[int]) -> list:
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            return [self._fetch(index) for index in indices]
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])

    def _fetch(self, index: int):
        if isinstance(index, Draw):
            key = np.random.SeedSequence([self.seed, self.rank, index.epoch, index.number])
            seed = int(key.generate_state(1)[0])
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
        try:
            sample = self.dataset[int(index)]
        except UserError:
            raise
        except Exception as error:  # whatever a file or a step of the pipeline fails with
            raise RunError(f'{_name(self.dataset, int(index))} cannot be used: {type(error).__name__}: '
                           f'{" ".join(str(error).split())}. `hgd-det data check CONFIG` finds all such '
                           'files (HGD_DET_TRACEBACK=1 shows where)') from error
        if isinstance(sample, dict) and 'inputs' not in sample:
            raise UserError("the data set's pipeline makes no inputs for the model; its last step is "
                            "dict(type='PackDetInputs')")
        return sample


def _name(dataset, index: int) -> str:
    """The file of a sample where the data set knows it, else its number."""
    with contextlib.suppress(Exception):
        info = dataset.get_data_info(index)
        return str(info.get('img_path') or info['file_name'])
    return f'sample {index} of {type(dataset).__name__}'


def install(loader: DataLoader, seed: int) -> DataLoader:
    """Make a data loader's draws repeatable."""
    if getattr(loader, 'batch_sampler', None) is None or not hasattr(loader.batch_sampler, 'sampler'):
        return loader
    numbered = loader.batch_sampler.sampler = Numbered(loader.batch_sampler.sampler)
    object.__setattr__(loader, 'sampler', numbered)  # DataLoader forbids the plain assignment
    # DataLoader asks the dataset for a whole batch where it has this method
    loader.dataset.__getitems__ = Seeded(loader.dataset, seed, get_rank())
    return loader


class ReplayRunner(Runner):
    """mmengine's runner with repeatable draws, pictures for teachers of their own resolution, and maps in
    channels last: convolutions are a quarter faster on a CPU, and on a GPU what reads a map cell by cell
    copies nothing."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        # before the wrapper lays out its buffers: afterwards it would hand out gradients in another order
        model = model.to(memory_format=torch.channels_last)
        return super().wrap_model(model_wrapper_cfg, model)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        if isinstance(self._train_dataloader, dict):    # mmengine's loop may start the workers as it is built
            different = self._randomness_cfg.get('diff_rank_seed', False)
            self._train_dataloader = self.build_dataloader(self._train_dataloader, self.seed, different)
            show_teachers(self.model, self._train_dataloader.dataset)
        return super().build_train_loop(loop)

    @staticmethod
    def build_dataloader(dataloader, seed: int | None = None, diff_rank_seed: bool = False) -> DataLoader:
        loader = patient(Runner.build_dataloader(dataloader, seed, diff_rank_seed))
        return loader if seed is None else install(loader, seed)

    def train(self) -> nn.Module:
        try:
            return super().train()
        except Interrupted as stop:
            for hook in self._stoppers():
                hook.save_and_stop(self, stop.number)
            raise
        except Stalled:
            for hook in self._stoppers():
                hook.save(self)
            raise

    def _stoppers(self) -> list[StopHook]:
        return [hook for hook in self.hooks if isinstance(hook, StopHook)]
