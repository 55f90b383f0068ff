"""What kind of mistakes a detector makes: a smaller TIDE (Bolya et al., ECCV 2020) on NumPy arrays.

Every box a detector finds, and every object there is, is counted once.

**Boxes**, from the highest score to the lowest; the first rule that fits decides:

1. `correct`: overlaps an object of its class, that no box before it has taken, by IoU 0.5 or more; it takes
   the one it overlaps most.
2. `ignored`: overlaps an object of its class that the data set calls difficult by 0.5 or more.
3. `twice`: overlaps an object of its class by 0.5 or more, which is taken.
4. `class`: overlaps an object of another class by 0.5 or more: the right place, the wrong name.
5. `place`: overlaps an object of its class by 0.1 to 0.5: the right name, a bad outline.
6. `background`: none of these; nothing of the kind is there.

**Objects**, those that are not difficult: `found` if a box took it; else `class`, if a box of kind `class`
overlaps none more than it; else `place`, likewise; else `missed`.

TIDE looks for `place` before `class` and has a kind more for boxes of 0.1 to 0.5 on another class; here
these count as `background`.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FOREGROUND, BACKGROUND = 0.5, 0.1
BOXES = ('correct', 'class', 'place', 'twice', 'background', 'ignored')
OBJECTS = ('found', 'class', 'place', 'missed', 'ignored')


class Outcome(NamedTuple):
    """The kind of each box, in the order given, and of each object; `taken` is the number of the box that
    took it, -1 if none did."""
    boxes: list[str]
    objects: list[str]
    taken: list[int]


def outcome(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, truth: np.ndarray,
            truth_labels: np.ndarray, difficult: np.ndarray) -> Outcome:
    """One image: (n, 4) boxes with scores and labels, and (m, 4) objects with labels."""
    overlap = iou(boxes, truth)
    same = labels[:, None] == truth_labels[None]
    own, foreign = np.where(same, overlap, 0), np.where(same, 0, overlap)
    difficult = np.asarray(difficult, bool)
    kinds, objects = [''] * len(boxes), ['ignored' if flag else 'missed' for flag in difficult]
    free, taken = ~difficult, [-1] * len(difficult)
    for box in np.argsort(-scores, kind='stable'):
        kinds[box], target = _kind(own[box], foreign[box], free, difficult)
        if target is None or difficult[target]:
            continue
        if kinds[box] == 'correct':
            free[target], objects[target], taken[target] = False, 'found', int(box)
        elif OBJECTS.index(kinds[box]) < OBJECTS.index(objects[target]):
            objects[target] = kinds[box]
    return Outcome(kinds, objects, taken)


def _kind(own: np.ndarray, foreign: np.ndarray, free: np.ndarray,
          difficult: np.ndarray) -> tuple[str, int | None]:
    """A box's kind and the object it stands for, if any, given its overlap with the objects of its class and
    with the others."""
    def best(overlaps: np.ndarray, least: float) -> int | None:
        return int(overlaps.argmax()) if overlaps.size and overlaps.max() >= least else None

    if (target := best(own * free, FOREGROUND)) is not None:
        return 'correct', target
    if best(own * difficult, FOREGROUND) is not None:
        return 'ignored', None
    if best(own, FOREGROUND) is not None:
        return 'twice', None
    if (target := best(foreign, FOREGROUND)) is not None:
        return 'class', target
    if (target := best(own, BACKGROUND)) is not None:
        return 'place', target
    return 'background', None


def tally(outcomes: Sequence[Outcome]) -> dict[str, Counter]:
    """How many boxes and objects of each kind, over images."""
    return dict(boxes=Counter(kind for each in outcomes for kind in each.boxes),
                objects=Counter(kind for each in outcomes for kind in each.objects))


def recalled(new: Sequence[Outcome], old: Sequence[Outcome]) -> int:
    """Objects that one detector finds and another does not, on the same images."""
    return sum(a == 'found' != b for one, other in zip(new, old, strict=True)
               for a, b in zip(one.objects, other.objects, strict=True))


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m): intersection over union."""
    boxes, others = (np.asarray(part, np.float64).reshape(-1, 4) for part in (boxes, others))
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(0).prod(2)
    area, other = ((part[:, 2:] - part[:, :2]).prod(1) for part in (boxes, others))
    return shared / np.maximum(area[:, None] + other[None] - shared, 1e-9)
