"""What a training step costs under each config, in time and memory."""
from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

import hgd_det.registered  # noqa: F401
from hgd_det.distill.peer import quiet
from hgd_det.distill.schedule import Progress
from hgd_det.training.deferred import deferred
from hgd_det.training.mistakes import user_errors
from hgd_det.training.runner import keep_freed_memory

# seconds, and the keys of what was logged: they tell a method's phases apart
Step = tuple[float, frozenset[str]]
LOOKED = 5     # steps in the process whose memory is measured


class Training:
    """A config's model and optimizer as the runner has them on a CPU, and the batch that it trains on."""

    def __init__(self, cfg: Config, total: int):
        self.total = total
        with _scope(cfg):
            self.model = MODELS.build(cfg.model)
            with quiet():
                self.model.init_weights()
            self.model.to(memory_format=torch.channels_last).train()     # as the runner does
            self.optimizer = build_optim_wrapper(self.model, deferred(cfg.optim_wrapper))

    @classmethod
    def of(cls, cfg: Config) -> Training:
        """On a batch of its own training set, for as long as the config says."""
        size, loop = int(cfg.train_dataloader.batch_size), cfg.train_cfg
        with _scope(cfg):
            data = DATASETS.build(cfg.train_dataloader.dataset)
        made = cls(cfg, loop.get('max_iters') or loop.max_epochs * max(1, len(data) // size))
        made.take(pseudo_collate([data[i % len(data)] for i in range(size)]))
        return made

    def take(self, batch: dict) -> None:
        self.ready = self.model.data_preprocessor(batch, True)

    def step(self, fraction: float) -> Step:
        """One step, losses to optimizer, as it is after this fraction of the training."""
        self.model.progress = Progress(int(fraction * self.total), self.total)
        began = time.perf_counter()
        total, log = self.model.parse_losses(
            self.model.loss(self.ready['inputs'], self.ready['data_samples']))
        self.optimizer.update_params(total)
        return time.perf_counter() - began, frozenset(log)


@contextlib.contextmanager
def _scope(cfg: Config) -> Iterator[None]:
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet'), user_errors():
        yield


def measure(configs: Sequence[Config], repeat: int = 30, memory: bool = True,
            say: Callable[[str], object] = lambda text: None) -> list[dict]:
    """``step_ms``, ``phases`` and ``memory_mb`` of each config.

    ``repeat`` steps of each are spread evenly over its training, and the configs take turns, so that
    what else happens on the machine meets all alike. ``step_ms`` is the median of a phase's steps, averaged
    over the phases by their share of the training (:func:`phases`).

    ``memory_mb`` is what a process of its own takes at most for model, teacher, optimizer, batch and
    steps, beyond what it has with the libraries loaded. It counts data being loaded too.
    """
    peaks = []
    for cfg in configs if memory else ():
        say(f'memory of {cfg.filename}')
        peaks.append(peak_memory(cfg))
    keep_freed_memory()     # as the runner does
    trainings = [Training.of(cfg) for cfg in configs]
    taken: list[list[Step]] = [[] for _ in configs]
    for training in trainings:
        training.step(0)
    for turn in range(repeat):
        say(f'turn {turn + 1} of {repeat}')
        for training, steps in zip(trainings, taken, strict=True):
            steps.append(training.step((turn + .5) / repeat))
    found = [dict(step_ms=sum(share * ms for share, ms in phases(steps)), phases=phases(steps))
             for steps in taken]
    return [each | (dict(memory_mb=peaks[i] / 1e6) if memory else {}) for i, each in enumerate(found)]


def phases(steps: Sequence[Step]) -> list[tuple[float, float]]:
    """(share of the training, median milliseconds) of each phase, in their order."""
    groups: dict[frozenset, list[float]] = {}
    for seconds, keys in steps:
        groups.setdefault(keys, []).append(1e3 * seconds)
    return [(len(group) / len(steps), statistics.median(group)) for group in groups.values()]


# ------------------------------------------------------------------------------------------ memory
def peak_memory(cfg: Config) -> int:
    """Bytes that a new process takes at most for some steps of the training."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(_peak, cfg, torch.get_num_threads()).result()


def _peak(cfg: Config, threads: int) -> int:
    torch.set_num_threads(threads)

    def train() -> None:
        keep_freed_memory()
        training = Training.of(cfg)
        for i in range(LOOKED):
            training.step(i / LOOKED)

    with contextlib.redirect_stdout(sys.stderr):
        return peak_of(train)


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that this process takes at most during some work, beyond what it has now."""
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')    # forgets the peak up to here
    before = _memory('VmRSS')
    work()
    return _memory('VmHWM') - before


def _memory(key: str) -> int:
    """`VmRSS`, what this process has in memory, or `VmHWM`, what it had at most."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
