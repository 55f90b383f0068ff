"""Which form of a computation a device is fast in: the one place that asks.

On a CPU the arithmetic costs: the code picks out the cells, anchors and images that count, and works through
them in pieces that fit the cache. On a GPU every operation is launched and every number asked for is waited
for: there the code takes whole tensors, and masks stand where a CPU picks out.
"""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_forced: list[bool] = []


def launches(x: Tensor) -> bool:
    """Whether operations on this tensor are launched: few of them, and no waits, are fast."""
    return _forced[-1] if _forced else x.device.type != 'cpu'


@contextlib.contextmanager
def as_if_launched(yes: bool = True) -> Iterator[None]:
    """In the block every tensor is taken for one of a GPU (or of a CPU), wherever it lies."""
    _forced.append(yes)
    try:
        yield
    finally:
        _forced.pop()


def sent(values: Sequence | Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers of Python's, or a CPU's tensor, beside ``like``. Nobody waits: `new_tensor` would."""
    made = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    return made if like.device.type == 'cpu' else made.pin_memory().to(like.device, non_blocking=True)


def padded(rows: Sequence[Tensor], least: int = 0) -> Tensor:
    """(B, n, ...) of B tensors (n_i, ...): zeros where one is shorter than the longest, or than ``least``."""
    counts = [len(each) for each in rows]
    most = max([least, *counts])
    if not launches(rows[0]):
        joined = pad_sequence(list(rows), batch_first=True)
        return joined if joined.shape[1] == most else torch.cat(
            [joined, joined.new_zeros(len(rows), most - joined.shape[1], *joined.shape[2:])], 1)
    shape, total = rows[0].shape[1:], sum(counts)
    places, first = [], 0
    for count in counts:
        places += [*range(first, first + count), *[total] * (most - count)]
        first += count
    joined = torch.cat([*rows, rows[0].new_zeros(1, *shape)])
    return joined.index_select(0, sent(places, joined, torch.long)).view(len(rows), most, *shape)
