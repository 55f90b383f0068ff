"""Two ways of doing one thing, measured side by side."""
from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Clock = Callable[[], float]


@dataclass(frozen=True)
class Row:
    """Medians of `unit` over the rounds, and of the ratio with its quartiles.

    Attributes:
        goal: What the ratio is meant to be, '>=3' or '<=1.1'; empty where the row only informs.
    """
    what: str
    unit: str
    ours: float
    other: float
    ratio: float
    spread: tuple[float, float]
    goal: str = ''

    @property
    def met(self) -> bool | None:
        if not self.goal:
            return None
        wanted = float(self.goal[2:])
        return self.ratio >= wanted if self.goal.startswith('>=') else self.ratio <= wanted


def turns(sides: Sequence[Callable[[], object]], rounds: int, clock: Clock = time.process_time) -> np.ndarray:
    """Seconds (rounds, sides). The sides take turns, so that a machine that grows busy or hot slows them all.

    A first call of each does not count. In a round all draw the same random numbers of numpy.
    """
    times = [[_seconds(side, number, clock) for side in sides] for number in range(rounds + 1)]
    return np.array(times)[1:]


def compare(what: str, unit: str, ours: Callable, other: Callable, *, work: int, rounds: int, goal: str = '',
            clock: Clock = time.process_time) -> Row:
    """How much of its work each side gets done in a second, `work` a call; above 1 ours is faster."""
    times = turns([ours, other], rounds, clock)
    return row(what, unit, *(work / np.median(times, 0)).tolist(), times[:, 1] / times[:, 0], goal)


def row(what: str, unit: str, ours: float, other: float, ratios: Sequence[float], goal: str = '') -> Row:
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return Row(what, unit, ours, other, middle, (low, high), goal)


def _seconds(function: Callable, number: int, clock: Clock) -> float:
    np.random.seed(number)
    start = clock()
    function()
    return clock() - start
