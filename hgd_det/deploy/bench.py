"""Times detectors side by side: the same images, from pixels to detections, in turns."""
from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from hgd_det.checkpoint import sha256, trust_checkpoints
from hgd_det.compat import versions
from hgd_det.deploy.evaluate import evaluate
from hgd_det.deploy.runtime import Model, OnnxModel, open_model
from hgd_det.errors import UserError
from hgd_det.models.complexity import count
from hgd_det.training.runner import load_config

IMAGES = 64    # as many different ones are shown, one after another
TURN = 5       # timed calls before another model has its turn


def bench(paths: Sequence[str | Path], configs: Mapping[str | Path, str] | None = None, *,
          options: Sequence[str] = (), batches: Sequence[int] = (1, 8), threads: Sequence[int] = (),
          repeat: int = 30, warmup: int = 5, images: Sequence[np.ndarray] = (),
          size: tuple[int, int] | None = None, map_config: str | Path | None = None,
          memory: bool = True, trust: bool = False, say: Callable[[str], object] = lambda text: None) -> dict:
    """Everything that was measured, fit for JSON; `bench_table.table` shows it.

    Args:
        paths: Models of any form.
        configs: Of checkpoints that do not hold theirs, by path.
        options: Changes of the checkpoints' configs, `key=value`.
        batches, threads: Every combination is timed; threads default to 1 and all.
        images: RGB, of any sizes; noise if there are none.
        size: (height, width) for models that take any.
        map_config: Whose test set to evaluate on.
        memory: Measure peak memory too, each model in a process of its own.
        trust: What `trust_checkpoints` was told; those processes are told it too.
        say: Is told what happens.
    """
    threads = tuple(threads) or tuple(sorted({1, cores()}))
    _check(paths, batches, threads, repeat, warmup, size)
    names = dict(zip(paths, short_names(paths), strict=True))
    host = dict(cpu=cpu(), cores=cores(), load=os.getloadavg()[0], system=platform.platform())
    opener = {path: partial(open_model, path, (configs or {}).get(path), options) for path in paths}
    cfg = load_config(map_config) if map_config else None
    models, rows = {}, []
    with torch_threads(max(threads)):
        for path in paths:
            model = models[path] = opener[path](threads=max(threads))
            model.input_size = model.input_size or size
            if model.input_size is None:
                raise UserError(f'{path} takes images of any size; say which to time: --size HEIGHT WIDTH')
            rows.append(dict(model=names[path], path=str(path), sha256=sha256(path),
                             bytes=Path(path).stat().st_size, runtime=model.kind,
                             nms_inside=getattr(model, 'with_nms', False),
                             input_size=list(model.input_size), **facts(model)))
            if cfg is not None:
                say(f'mAP of {names[path]}')
                rows[-1]['metrics'] = evaluate(model, cfg)
    pool = images or noise(IMAGES, models[paths[0]].input_size)
    times = []
    for number in threads:
        running = {path: opener[path](threads=number) if isinstance(model, OnnxModel) else model
                   for path, model in models.items()}
        for batch in batches:
            say(f'batch {batch}, {number} thread{"s" * (number > 1)}')
            with torch_threads(number):
                spent = measure([_calls(model, pool, batch) for model in running.values()], repeat, warmup)
            times += [dict(model=names[path], batch=batch, threads=number, **summary(each, batch))
                      for path, each in zip(running, spent, strict=True)]
    if memory:
        for path, row in zip(paths, rows, strict=True):
            say(f'memory of {names[path]}')
            shown = stack(models[path], pool, max(batches))
            row['memory'] = peak_memory(opener[path], shown, max(threads), trust)
    return dict(host=host, versions=versions() | dict(onnxruntime=_version('onnxruntime')),
                images=f'{len(pool)} images' if images else 'noise', repeat=repeat, warmup=warmup,
                models=rows, times=times)


def _check(paths, batches, threads, repeat, warmup, size) -> None:
    if len({Path(path).absolute() for path in paths}) < len(paths):
        raise UserError('a model is given twice')
    for name, least, values in (('batch', 1, batches), ('threads', 1, threads), ('repeat', 1, [repeat]),
                                ('warmup', 0, [warmup]), ('size', 1, size or [1])):
        if min(values) < least:
            raise UserError(f'--{name} {min(values)}: give {least} or more')


# ------------------------------------------------------------------------------------------ timing
def measure(calls: Sequence[Callable[[int], object]], repeat: int, warmup: int) -> list[list[int]]:
    """Nanoseconds of `repeat` calls each; a call is given its number.

    Models take turns, so that what else happens on the machine meets all alike. The first call of a
    turn is not timed: it ends what the model before left behind, threads that still spin and caches
    full of other weights.
    """
    for call in calls:
        for number in range(warmup):
            call(number)
    spent = [[] for _ in calls]
    for start in range(0, repeat, TURN):
        for call, times in zip(calls, spent, strict=True):
            call(start)
            for number in range(start, min(start + TURN, repeat)):
                began = time.perf_counter_ns()
                call(number)
                times.append(time.perf_counter_ns() - began)
    return spent


def summary(nanoseconds: Sequence[int], batch: int) -> dict:
    ms = np.array(nanoseconds) / 1e6
    median = float(np.median(ms))
    return dict(median_ms=median, p95_ms=float(np.percentile(ms, 95)), images_per_s=1e3 * batch / median,
                ms=ms.tolist())


def _calls(model: Model, images: Sequence[np.ndarray], batch: int) -> Callable[[int], object]:
    starts = range(0, max(1, len(images) - batch + 1), batch)
    stacks = [stack(model, images, batch, start) for start in starts]
    return lambda number: model.detect(stacks[number % len(stacks)])


def stack(model: Model, images: Sequence[np.ndarray], batch: int, start: int = 0) -> np.ndarray:
    return np.stack([model.resize(images[(start + i) % len(images)]) for i in range(batch)])


def noise(number: int, size: tuple[int, int]) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (number, *size, 3), dtype=np.uint8))


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------ memory
def peak_memory(opener: Callable[..., Model], batch: np.ndarray, threads: int, trust: bool) -> dict:
    """Bytes that a new process takes at most to load the model and run it: in all, and beyond what it
    had with the libraries loaded."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn'), initializer=trust_checkpoints,
                             initargs=(trust,)) as pool:
        return pool.submit(_peak, opener, batch, threads).result()


def _peak(opener: Callable[..., Model], batch: np.ndarray, threads: int) -> dict:
    torch.set_num_threads(threads)
    with contextlib.suppress(ImportError):
        import onnxruntime  # noqa: F401  a library is no part of a model
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')    # forgets the peak of importing
    before = _memory('VmRSS')
    model = opener(threads=threads)
    for _ in range(3):
        model.detect(batch)
    peak = _memory('VmHWM')
    return dict(bytes=peak - before, process_bytes=peak, batch=len(batch), threads=threads)


def _memory(key: str) -> int:
    """`VmRSS`, what this process has in memory, or `VmHWM`, what it had at most."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


# ------------------------------------------------------------------------------------------- facts
def facts(model: Model) -> dict:
    """Parameters, multiply-adds, precision: counted on a checkpoint, else what the export noted."""
    meta = model.meta
    if not meta:
        cost = count(model.student.detector, model.input_size)
        meta = dict(params=cost.params, macs=cost.macs, precision='float32')
    return {key: meta.get(key) for key in ('params', 'macs', 'precision')}


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """File names, with as many folders before them as tell the models apart."""
    parts = [Path(path).absolute().parts for path in paths]
    depth = next(n for n in range(1, max(map(len, parts)) + 1)
                 if len({each[-n:] for each in parts}) == len(parts))
    return ['/'.join(each[-depth:]) for each in parts]


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0))


def cpu() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line for line in lines if line.startswith('model name')).partition(':')[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
