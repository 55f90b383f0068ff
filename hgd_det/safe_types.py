"""What a checkpoint may contain beside tensors and plain values."""

from __future__ import annotations

import contextlib
import pickletools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from hgd_det.errors import UserError

# mmengine's log buffers and the one-cycle schedule carry references to their own static methods
METHODS = {'HistoryBuffer': {'min', 'max', 'current', 'mean'},
           'OneCycleParamScheduler': {'_annealing_cos', '_annealing_linear'}}


@contextlib.contextmanager
def safe_types() -> Iterator[None]:
    """A context in which `torch.load(weights_only=True)` takes exactly what mmengine writes.

    mmengine lists the built-in `getattr` and numpy's constructors as safe. Stand-ins under the same
    names do only what an honest file asks of them.
    """
    from mmengine.logging import HistoryBuffer
    from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

    dtypes = {type(np.dtype(code)) for code in '?bBhHiIlLqQefdSU'}
    stand_ins = [_stand_in(_method, 'builtins', 'getattr')]
    # numpy 1 and 2 write different names
    for module in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        stand_ins += [_stand_in(_empty_array, module, '_reconstruct'),
                      _stand_in(_scalar, module, 'scalar')]
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(
        [HistoryBuffer, OneCycleParamScheduler, np.ndarray, np.dtype, Counter, *dtypes, *stand_ins])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _stand_in(function: Callable, module: str, name: str) -> Callable:
    def call(*args):
        return function(*args)

    # torch finds it under these
    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call


def _method(owner: type, name: str) -> Callable:
    if isinstance(owner, type) and name in METHODS.get(owner.__name__, ()):
        return getattr(owner, name)
    raise UserError(f'it asks for the attribute {name!r} of {owner!r}')


def _empty_array(subtype: type, shape: tuple, typecode: bytes) -> np.ndarray:
    if subtype is not np.ndarray or tuple(shape) != (0,):
        raise UserError(f'it asks for a {getattr(subtype, "__name__", subtype)} of shape {shape}')
    # numpy's own pickles start empty; the state that follows gives type, shape and data
    return np.ndarray(0, np.int8)


def _scalar(dtype: np.dtype, data) -> np.generic:
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise UserError(f'it holds a numpy scalar of type {dtype!r}')
    return np.frombuffer(data if isinstance(data, bytes) else data.encode('latin1'), dtype)[0]


def called(path: Path) -> str | None:
    """The first type or function that a bare pickle names; its opcodes are read, not run."""
    strings = []
    with contextlib.suppress(ValueError, OSError, IndexError, MemoryError), open(path, 'rb') as file:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == 'GLOBAL':
                return argument.replace(' ', '.')
            if opcode.name == 'STACK_GLOBAL':
                return '.'.join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    return None
