"""Greedy non-maximum suppression in NumPy, with the arithmetic of mmcv's operators: an IoU strictly above the
threshold suppresses. The stand-in for `mmcv._ext`, SSD's batched detections and exported models share it.
"""
import numpy as np

BLOCK = 256  # boxes compared at once; more would waste work on boxes that are suppressed anyway
HEADS = 16, 256  # of a group at least and at most so many boxes are settled at once
AT_ONCE = 1 << 17  # overlaps computed in one call; more would leave the cache


def overlaps(boxes_a, boxes_b, offset):
    """IoU (..., N, M) of each of `boxes_a` (..., N, 4) with each of `boxes_b` (..., M, 4); NaN if both lack
    area.
    """
    a, b = np.moveaxis(boxes_a, -1, 0)[..., None], np.moveaxis(boxes_b, -1, 0)[..., None, :]
    inter = np.minimum(a[2], b[2])  # in place from here: temporaries would be half the run time
    inter -= np.maximum(a[0], b[0])
    height = np.minimum(a[3], b[3])
    height -= np.maximum(a[1], b[1])
    if offset:
        inter += offset
        height += offset
    np.maximum(inter, 0, out=inter)
    np.maximum(height, 0, out=height)
    inter *= height
    area_a, area_b = ((sides[2] - sides[0] + offset) * (sides[3] - sides[1] + offset) for sides in (a, b))
    union = np.add(area_a, area_b, out=height)
    union -= inter
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.divide(inter, union, out=inter)


def greedy(boxes, threshold, offset):
    """Mask (N,) of the boxes that survive: those that overlap no survivor before them."""
    keep = np.ones(len(boxes), bool)
    for start in range(0, len(boxes), BLOCK):
        block = boxes[start:start + BLOCK]
        alive = keep[start:start + BLOCK]  # a view: writing it writes `keep`
        for before in range(0, start, BLOCK):
            survivors = boxes[before:before + BLOCK][keep[before:before + BLOCK]]
            alive &= ~(overlaps(survivors, block, offset) > threshold).any(0)
        suppresses = np.triu(overlaps(block, block, offset) > threshold, 1)
        spares = ~suppresses
        for i in np.flatnonzero(suppresses.any(1)).tolist():
            if alive[i]:
                alive &= spares[i]
    return keep


def survivors(boxes, sizes, threshold, offset=0):
    """Mask (N,) of the boxes that overlap no survivor before them in their group.

    `boxes` (N, 4) lie group by group, best first; group k has `sizes[k]`. In each round the first few that
    are left of every group are settled among themselves, and drop what they suppress further down: most
    boxes go early, and few pairs are ever looked at.
    """
    keep = np.zeros(len(boxes), bool)
    table = np.append(boxes, np.full((1, 4), np.nan, boxes.dtype), 0)  # the last: padding, overlaps nothing
    left, sizes = np.arange(len(boxes)), np.asarray(sizes)
    while len(left):
        sizes = sizes[sizes > 0]
        width = int(np.clip((AT_ONCE / 2 / len(sizes)) ** 0.5, *HEADS))
        starts, dead = np.cumsum(sizes) - sizes, np.zeros(len(boxes) + 1, bool)
        by_size = np.argsort(-sizes)
        while len(by_size):
            most = int(sizes[by_size[0]])  # the rest is padded to it: groups of about one size go together
            count = min(AT_ONCE // (min(width, most) * most), np.count_nonzero(sizes[by_size] > most // 4))
            chunk, by_size = np.split(by_size, [max(1, count)])
            place = np.arange(most)
            place = np.append(left, len(boxes))[
                np.where(place < sizes[chunk, None], starts[chunk, None] + place, len(left))]
            heads, tail = place[:, :width], place[:, width:]
            alive = _settle(overlaps(table[heads], table[heads], offset) > threshold) & (heads < len(boxes))
            keep[heads[alive]] = True
            if tail.size:
                best = np.argsort(~alive, 1, kind='stable')[:, :alive.sum(1).max()]
                best = np.take_along_axis(np.where(alive, heads, len(boxes)), best, 1)
                dead[tail[(overlaps(table[best], table[tail], offset) > threshold).any(1)]] = True
        rank = np.arange(len(left)) - np.repeat(starts, sizes)
        stays = (rank >= width) & ~dead[left]
        sizes = np.add.reduceat(stays, starts, dtype=np.int64)
        left = left[stays]
    return keep


def _settle(suppresses):
    """(G, K) which of K boxes survive, of (G, K, K): whether the first would suppress the second."""
    suppresses = np.triu(suppresses, 1)
    alive = np.ones(suppresses.shape[:2], bool)
    for i in np.flatnonzero(suppresses.any((0, 2))).tolist():
        alive &= ~(suppresses[:, i] & alive[:, i, None])
    return alive
