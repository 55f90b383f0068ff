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
import csv
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hgd_det.benchmarks.measure import Row
from hgd_det.device import as_if_launched

# no kernel: memory is set aside, or a tensor is looked at otherwise
FREE = {'empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided', 'lift_fresh', 'detach',
        '_unsafe_view', 'is_same_size', 'resize_', 'set_', '_local_scalar_dense'}
# the size of the result, or the result itself, depends on values
WAITS = {'nonzero', 'nonzero_numpy', 'masked_select', '_local_scalar_dense', 'is_nonzero', 'item', '_unique',
         '_unique2', 'unique_dim', 'unique_consecutive', 'unique_dim_consecutive', 'bincount', 'equal',
         'histc', 'argwhere'}
INDEXED = {'index', 'index_put', 'index_put_', '_index_put_impl_', '_unsafe_index'}
# seen in Python only: on a CPU they never reach the dispatcher
FETCHES = {'tolist', 'cpu', 'numpy', '__array__', '__reversed__'}
STEP, TEACHER, OPTIMIZER = 'step', 'teacher', 'optimizer'


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
