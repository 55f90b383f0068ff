"""`nms` and `softnms` of mmcv's extension, in numpy.

Signatures, dtypes and arithmetic (single precision; an IoU strictly above the threshold suppresses)
are the extension's, so results equal the compiled operators'. One thing is stricter: equal scores
keep their input order, so that results do not depend on the sorting routine of the day.
"""

import numpy as np
import torch

BLOCK = 256  # boxes compared at once; more would waste work on boxes that are suppressed anyway
PACK = 48  # islands smaller than this are compared together, as a call costs more than its work


def as_numpy(tensor):
    """A view where possible. Half precision becomes single: numpy has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


def areas(boxes, offset):
    return (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)


def overlaps(boxes_a, boxes_b, offset):
    """IoU of each of `boxes_a` (N, 4) with each of `boxes_b` (M, 4); NaN if both lack area."""
    a, b = boxes_a.T[:, :, None], boxes_b.T[:, None, :]
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
    union = np.add(areas(boxes_a, offset)[:, None], areas(boxes_b, offset)[None], out=height)
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


def islands(boxes, offset):
    """Ascending index arrays of boxes, such that boxes of different arrays do not touch along x.

    `batched_nms` shifts each class to its own place on the diagonal: the islands are then the
    classes or parts of them, and comparing within islands is many times less work.
    """
    order = np.argsort(boxes[:, 0], kind='stable')
    reach = np.maximum.accumulate(boxes[order, 2])
    gaps = np.flatnonzero(boxes[order[1:], 0] > reach[:-1] + offset) + 1
    start = 0
    for end in [*gaps.tolist(), len(order)]:
        if end - start >= PACK or end == len(order):
            yield np.sort(order[start:end])
            start = end


def nms(boxes, scores, iou_threshold, offset=0):
    """Indices of the kept boxes, by descending score. boxes (N, 4) as x1 y1 x2 y2, scores (N,)."""
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    order = scores.detach().cpu().sort(descending=True, stable=True).indices
    ranked = as_numpy(boxes)[order.numpy()]
    threshold = ranked.dtype.type(iou_threshold)
    if threshold < 0:  # even boxes that do not touch suppress one another
        keep = greedy(ranked, threshold, offset)
    else:
        keep = np.ones(len(ranked), bool)
        for island in islands(ranked, offset):
            keep[island] = greedy(ranked[island], threshold, offset)
    return order[torch.from_numpy(keep)].to(boxes.device)


def softnms(boxes, scores, dets, iou_threshold, sigma, min_score, method, offset=0):
    """Repeatedly take the best box and lower the scores of those it overlaps.

    The score of a box with IoU o is multiplied by, for `method` 0 (naive): 0 and 1 (linear): 1 - o,
    both only if o >= iou_threshold; 2 (gaussian): exp(-o^2 / sigma). Scores below `min_score` drop
    out. Writes x1 y1 x2 y2 score of the k boxes taken into `dets[:k]`, returns their k indices.
    Boxes without area overlap nothing (the compiled operator turns their scores into NaN).
    """
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    table = np.concatenate([as_numpy(boxes), as_numpy(scores)[:, None]], 1)
    threshold, sigma, min_score = (table.dtype.type(v) for v in (iou_threshold, sigma, min_score))
    inds = np.arange(len(table))
    taken, count = 0, len(table)
    while taken < count:
        best = taken + int(table[taken:count, 4].argmax())
        for column in (table, inds):
            column[[taken, best]] = column[[best, taken]]
        rest = table[taken + 1:count]
        overlap = np.nan_to_num(overlaps(table[taken:taken + 1, :4], rest[:, :4], offset)[0])
        if method == 2:
            rest[:, 4] *= np.exp(-(overlap * overlap) / sigma)
        else:
            hit = overlap >= threshold
            rest[hit, 4] *= 1 - overlap[hit] if method == 1 else 0
        taken += 1
        count = taken + drop(rest[:, 4] < min_score, rest, inds[taken:count])
    dets[:count] = torch.from_numpy(table[:count])
    return torch.from_numpy(inds[:count]).to(boxes.device)


def drop(dead, *columns):
    """Fill the holes of the dead with survivors from the end, last first; return how many survive.

    `column[~dead]` would leave another order, and thus another winner among equal scores than in
    the compiled operator.
    """
    count = len(dead) - int(dead.sum())
    holes = np.flatnonzero(dead[:count])
    fillers = count + np.flatnonzero(~dead[count:])[::-1]
    for column in columns:
        column[holes] = column[fillers]
    return count
