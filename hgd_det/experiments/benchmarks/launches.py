"""What a training step asks of a GPU, counted on a CPU: the operations it launches, and what it waits for.

The step is the one of a GPU: its whole-tensor form (`hgd_det.device`), on CPU tensors. It is preprocessor,
forward, losses, backward and clipping; the optimizer and the teacher's forward pass are counted apart. An
operation is one call of PyTorch's dispatcher that computes, in autograd's backward as well: no view, no
allocation. It may be several kernels (a sort is), so the count is a measure and no time.

A wait is a call whose result the CPU must see before it can go on: a number (`item`, `tolist`), a size that
depends on values (`nonzero`, a boolean mask as index, `unique`), or a tensor made of Python's numbers on the
device, whose copy is waited for.
"""
from __future__ import annotations

import argparse
import contextlib
import copy
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hgd_det.checkpoint import atomic_write
from hgd_det.device import as_if_launched
from hgd_det.experiments.benchmarks.measure import Row
from hgd_det.paths import names, read_config

# no kernel: memory is set aside, or a tensor is looked at otherwise
FREE = {'empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided', 'lift_fresh', 'detach',
        '_unsafe_view', 'is_same_size', 'resize_', 'set_', '_local_scalar_dense',
        '_record_function_enter_new', '_record_function_exit'}
# the size of the result, or the result itself, depends on values
WAITS = {'nonzero', 'nonzero_numpy', 'masked_select', '_local_scalar_dense', 'is_nonzero', 'item', '_unique',
         '_unique2', 'unique_dim', 'unique_consecutive', 'unique_dim_consecutive', 'bincount', 'equal',
         'histc', 'argwhere'}
INDEXED = {'index', 'index_put', 'index_put_', '_index_put_impl_', '_unsafe_index'}
# seen in Python only: on a CPU they never reach the dispatcher
FETCHES = {'tolist', 'cpu', 'numpy', '__array__', '__reversed__'}
STEP, TEACHER, OPTIMIZER = 'step', 'teacher', 'optimizer'

BATCH = 4
ALONE, HGD, OTHER = 450, 250, 400       # budgets: the student's step, and what a term may add to it
PAIR = ('ssd_half_voc', 'hgd')
DISTRIBUTIONS = {'ld', 'combined'}      # methods of the pair with such heads
LATE = 0.5
EARLY = {'factor_transfer': 0.01}       # where another part of the method runs first
#: What is over its budget, or waits, and why.
OVER = {
    'combined': 'several terms at once',
    'gradient_attention': 'the gradients of both detectors, and the gradient of the student\'s',
    'lad': 'candidates are picked out, and a mixture is fitted until it settles',
    'mimic': 'NMS of what the teacher detects',
    'relational': 'objects are cropped from six maps',
    'netaug': 'a whole wider detector trains',
}
COLUMNS = ('config', 'method', 'batch', 'step', 'student', 'beyond', 'budget', 'teacher', 'optimizer',
           'waits', 'why')


@dataclass(frozen=True)
class Count:
    """One step: operations of the step, of the student's alone, what lies beyond that, and the rest apart."""
    config: str
    method: str
    step: int
    student: int
    budget: int
    teacher: int
    optimizer: int
    waits: int

    @property
    def beyond(self) -> int:
        return self.step - self.student

    def row(self) -> dict:
        return asdict(self) | dict(batch=BATCH, beyond=self.beyond, why=OVER.get(self.method, ''))


def configs() -> list[tuple[str, str]]:
    """Pairs and methods: HGD on the SSD300 half pair, and each method on the built-in shapes."""
    return [PAIR, *(('shapes_ld' if method in DISTRIBUTIONS else 'shapes', method)
                    for method in names('methods') if method != 'born_again')]  # whose steps are logit_kd's


def run(options: argparse.Namespace) -> Iterator[Row]:
    counts = []
    for pair, method in configs():
        counts.append(found := count(pair, method))
        yield Row(f'{pair} {method}, beyond {found.student} of the student, {found.waits} waits', 'launches',
                  found.beyond, found.budget, found.beyond / found.budget,
                  (found.beyond / found.budget,) * 2, '<=1')
    for pair in (PAIR[0], 'shapes'):
        alone = student(pair, 'hgd')
        yield Row(f'student of {pair}, alone', 'launches', alone, ALONE, alone / ALONE,
                  (alone / ALONE,) * 2, '<=1')
    if options.csv:
        write_csv(counts, options.csv)


def write_csv(counts: list[Count], path: Path) -> None:
    from hgd_det.experiments.results import as_csv
    atomic_write(as_csv([found.row() for found in counts], COLUMNS), path)


def count(pair: str, method: str, batch: int = BATCH) -> Count:
    """A step of a pair where its method counts, after one that warmed it up."""
    training = _training(pair, method)
    schedules = training.model.schedules.values()
    late = all(schedule.factor((int(LATE * training.total), training.total)) > 0 for schedule in schedules)
    found = counted(training, LATE if late else 0.1, batch, EARLY.get(method))
    budget = HGD if method == 'hgd' else OTHER
    return Count(pair, method, found.launches(), student(pair, method, batch), budget,
                 found.launches(TEACHER), found.launches(OPTIMIZER),
                 found.waits[STEP].total() + found.waits[TEACHER].total())


@cache
def student(pair: str, method: str, batch: int = BATCH) -> int:
    """Operations of a step of a pair's student alone, under the method's schedule."""
    return counted(_training(pair, method, alone=True), LATE, batch).launches()


def counted(training, fraction: float, batch: int = BATCH, before: float | None = None) -> Counted:
    """What a step asks for, on a second batch of its kind; ``before``: a part of the run that comes first."""
    from hgd_det.experiments.benchmarks.step import shapes_batch, voc_batch
    classes = getattr(training.model, 'student', training.model).bbox_head.num_classes
    data = shapes_batch(batch, 96) if classes == 6 else voc_batch(batch, 300, classes)
    teacher = getattr(training.model, 'teacher', None)
    found = Counted()
    with as_if_launched(), contextlib.ExitStack() as apart:
        for at in [before] * (before is not None) + [fraction]:
            training.take(copy.deepcopy(data))
            training.step(at)
        if teacher is not None:
            apart.enter_context(found.apart(teacher, 'observe', TEACHER))
        apart.enter_context(found.apart(training.optimizer.optimizer, 'step', OPTIMIZER))
        data = copy.deepcopy(data)
        with found:
            training.take(data)
            training.step(fraction)
    return found


def _training(pair: str, method: str, alone: bool = False):
    """The training of a pair under a method, untrained, its optimizer in a GPU's form (`foreach`)."""
    from hgd_det.experiments.benchmarks.step import _register
    from hgd_det.experiments.cost import Training
    from hgd_det.training.runner import load_config, plain
    _register()
    cfg = load_config(pair, method=method)
    if cfg.model.get('teacher'):
        taught = read_config(cfg.model.teacher.model)
        taught.model.backbone.init_cfg = None
        cfg.model.teacher.update(model=taught, checkpoint='untrained')
    cfg.model.student.backbone.init_cfg = None
    cfg.optim_wrapper.optimizer.foreach = True
    torch.manual_seed(0)
    return Training(plain(cfg) if alone else cfg, total=100)


class Counted:
    """In the block: operations and waits, by part of the step and name.

    Attributes:
        calls: ``{part: {operation: times}}``.
        waits: ``{part: {(what, line of ours that asked): times}}``.
    """

    def __init__(self):
        self.calls: dict[str, Counter] = {part: Counter() for part in (STEP, TEACHER, OPTIMIZER)}
        self.waits: dict[str, Counter] = {part: Counter() for part in (STEP, TEACHER, OPTIMIZER)}
        self.part = STEP
        self._modes = contextlib.ExitStack()

    def __enter__(self) -> Counted:
        self._modes.enter_context(_Python(self))
        self._modes.enter_context(_Dispatched(self))
        return self

    def __exit__(self, *error) -> None:
        self._modes.close()

    def launches(self, part: str = STEP) -> int:
        return self.calls[part].total()

    def wait(self, what: str) -> None:
        self.waits[self.part][what, _asked()] += 1

    @contextlib.contextmanager
    def apart(self, owner, method: str, part: str) -> Iterator[None]:
        """In the block what this method of an object does counts as another part."""
        original = getattr(owner, method)

        def named(*args, **kwargs):
            before, self.part = self.part, part
            try:
                return original(*args, **kwargs)
            finally:
                self.part = before
        setattr(owner, method, named)
        try:
            yield
        finally:
            delattr(owner, method)


class _Dispatched(TorchDispatchMode):

    def __init__(self, found: Counted):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split('::')[1]
        if name in WAITS or name in INDEXED and _masked(args[1]) or (
                name == 'repeat_interleave' and not (kwargs or {}).get('output_size')):
            self.found.wait(name)
        if not (name in FREE or _is_view(function)):
            self.found.calls[self.found.part][name] += 1
        return function(*args, **(kwargs or {}))


class _Python(TorchFunctionMode):

    def __init__(self, found: Counted):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name, kwargs = getattr(function, '__name__', ''), kwargs or {}
        made = name == 'new_tensor' or name in ('tensor', 'as_tensor') and kwargs.get('device') is not None \
            and not isinstance(args[0], torch.Tensor)
        listed = name in ('__getitem__', '__setitem__') and any(
            isinstance(part, list) for part in (args[1] if isinstance(args[1], tuple) else args[1:2]))
        if name in FETCHES or made or listed:
            self.found.wait(name)
        return function(*args, **kwargs)


def _masked(indices) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _is_view(function) -> bool:
    returns = function._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _asked() -> str:
    """The innermost line that is neither PyTorch's nor this file's."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename != __file__ and '/torch/' not in frame.filename:
            return f'{"/".join(Path(frame.filename).parts[-2:])}:{frame.lineno}'
    return ''
