"""A term's weight as a pure function of the iteration, and the automatic balance.

Iterations are counted, not epochs: an "epoch" of a repeated data set is several.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from hgd_det.errors import UserError

MOST = sys.float_info.max  # an int can be larger, and then is no number to calculate with


class Progress(NamedTuple):
    """Where training stands: this iteration (from 0) and how many there will be."""
    iteration: int
    total: int

    @property
    def fraction(self) -> float:
        return self.iteration / max(1, self.total)


@dataclass(frozen=True)
class Schedule:
    """``weight(it) = 0 if it < warmup else weight * min(1, (it - warmup) / ramp)``, 0 from stop.

    ``end`` other than 1 multiplies that by ``1 + (end - 1) (it - warmup) / (stop - warmup)``.

    Args:
        weight: A number, or ``'auto'``: then :class:`Balance` sets the factor.
        warmup: The student trains alone that long; an int counts iterations, a float below 1 is
            a fraction of the training.
        ramp: Linear rise behind the warm-up; 0 is a hard switch.
        end: Multiple of the weight at the end (`stop`, or the last iteration): between, it falls or rises
            linearly.
        stop: From here the weight is 0 again (some methods help most in the beginning).
        detection: Factor on all of the student's own losses while the term counts. With 0 the term
            is a phase of imitation alone; what follows `stop` is plain training from there.
        ratio: For ``'auto'``: the term's wanted size relative to the detection loss.
        average: For ``'auto'``: iterations to average over before the factor is frozen.
    """
    weight: float | Literal['auto'] = 1.0
    warmup: float = 0
    ramp: float = 0
    end: float = 1.0
    stop: float | None = None
    detection: float = 1.0
    ratio: float = 1.0
    average: int = 100

    KEYS = ('weight', 'warmup', 'ramp', 'end', 'stop', 'detection', 'ratio', 'average')

    def __post_init__(self):
        if isinstance(self.weight, str):
            if self.weight != 'auto':
                raise UserError(f"weight={self.weight!r}; give a number or 'auto'")
        elif not 0 <= self.weight <= MOST:
            raise UserError(f'weight={self.weight}; a term cannot have a negative weight, or one without end')
        for key in ('warmup', 'ramp', 'end', 'stop', 'detection', 'ratio'):
            value = getattr(self, key)
            if value is not None and not 0 <= value <= MOST:
                raise UserError(f'{key}={value}; it cannot be negative or without end')
        for key in ('warmup', 'ramp', 'stop'):
            value = getattr(self, key)
            if isinstance(value, float) and value >= 1 and (value == 1 or value % 1):
                raise UserError(f'{key}={value}; an int counts iterations, a float below 1 is a fraction of '
                                'the training')
        if self.average < 1:
            raise UserError(f'average={self.average}; it needs at least one iteration')

    @property
    def auto(self) -> bool:
        return self.weight == 'auto'

    @property
    def off(self) -> bool:
        """Whether the term never counts, whatever the iteration."""
        return not self.auto and self.weight == 0

    def check(self, total: int, name: str) -> None:
        """Refuse a warm-up, or a phase without detection, that never ends."""
        warmup = self._iterations(self.warmup, total)
        if warmup >= total:
            raise UserError(f'term {name!r}: warmup={self.warmup} is {warmup} iterations, but training '
                            f'has only {total}; the term would never count')
        stop = total if self.stop is None else self._iterations(self.stop, total)
        if stop <= warmup:
            raise UserError(f'term {name!r}: stop={self.stop} comes before warmup={self.warmup} ends')
        if self.detection == 0 and warmup == 0 and stop >= total:
            raise UserError(f'term {name!r}: detection=0 until stop={self.stop}, but training has '
                            f'{total} iterations; the student would never learn to detect')

    def begins(self, total: int) -> int:
        """The first iteration at which the factor is above 0."""
        warmup = self._iterations(self.warmup, total)
        return warmup + (self._iterations(self.ramp, total) > 0)

    def factor(self, progress: Progress) -> float:
        """The multiple of the weight at this iteration: 0 outside its time, 1 at full strength."""
        iteration, total = progress
        warmup = self._iterations(self.warmup, total)
        if iteration < warmup:
            return 0.0
        stop = total if self.stop is None else self._iterations(self.stop, total)
        if self.stop is not None and iteration >= stop:
            return 0.0
        ramp = self._iterations(self.ramp, total)
        risen = 1.0 if ramp <= 0 else min(1.0, (iteration - warmup) / ramp)
        passed = (iteration - warmup) / max(1, stop - warmup)
        return risen * (1 + (self.end - 1) * min(1.0, passed))

    @staticmethod
    def _iterations(value: float, total: int) -> int:
        return int(round(value * total)) if isinstance(value, float) and value < 1 else int(value)


class Balance(nn.Module):
    """``factor = ratio * mean(detection loss) / mean(term)`` over the first iterations it counts.

    While it averages, the factor is that of the iterations seen so far; then it is frozen. The
    sums are buffers, so a resumed run goes on with the same factor. In data-parallel training
    the two losses are averaged over the processes first: all of them hold the same factor.
    """

    def __init__(self, ratio: float = 1.0, average: int = 100):
        super().__init__()
        self.ratio, self.average = ratio, average
        self.register_buffer('sums', torch.zeros(2, dtype=torch.float64))
        self.register_buffer('count', torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, detection: Tensor, term: Tensor) -> None:
        """Take one iteration in, as long as it averages; nothing here waits for a number."""
        both = torch.stack([detection.detach().double(), term.detach().double()])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(both)
            both /= torch.distributed.get_world_size()
        counts = torch.isfinite(both).all() & (both[1] > 0) & (self.count < self.average)
        self.sums += torch.where(counts, both, 0)
        self.count += counts

    @property
    def factor(self) -> Tensor:
        """A scalar; 0 until the term had a value."""
        detection, term = self.sums
        return torch.where(term > 0, self.ratio * detection / torch.where(term > 0, term, 1), 0)
