"""`nms`, `softnms` and `nms_match` of mmcv's extension: in numpy on a CPU; elsewhere `nms` on the device.

Signatures, dtypes and arithmetic (single precision; an IoU strictly above the threshold suppresses)
are the extension's, so results equal the compiled operators'. One thing is stricter: equal scores
keep their input order, so that results do not depend on the sorting routine of the day.
"""

import numpy as np
import torch

from hgd_det.compat.sampling import single, torchvision_op
from hgd_det.compat.suppression import greedy, overlaps

ROUNDS = 8  # of suppression between two looks at whether it is over: each look waits for the device
PAIRS = 1 << 22  # overlaps computed at once on a device
PACK = 48  # islands smaller than this are compared together, as a call costs more than its work


def as_numpy(tensor):
    """A view where possible. Half precision becomes single: numpy has no bfloat16."""
    tensor = tensor.detach().cpu()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


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
    if boxes.device.type != 'cpu':
        op = None if offset else torchvision_op('nms', boxes.device)
        return op(*single(boxes, scores), iou_threshold) if op else on_device(
            boxes, scores, iou_threshold, offset)
    order = scores.detach().sort(descending=True, stable=True).indices
    ranked = as_numpy(boxes)[order.numpy()]
    threshold = ranked.dtype.type(iou_threshold)
    if threshold < 0:  # even boxes that do not touch suppress one another
        keep = greedy(ranked, threshold, offset)
    else:
        keep = np.ones(len(ranked), bool)
        for island in islands(ranked, offset):
            keep[island] = greedy(ranked[island], threshold, offset)
    return order[torch.from_numpy(keep)]


def on_device(boxes, scores, iou_threshold, offset=0):
    """`nms` in PyTorch, on any device.

    A box survives if no survivor before it suppresses it. Asked again and again of all boxes at once, that
    settles on the one right answer after as many rounds as the longest chain of suppressions has links.
    """
    boxes, scores = single(boxes, scores)
    order = scores.sort(descending=True, stable=True).indices
    boxes = boxes[order]
    rows = max(1, PAIRS // len(boxes))
    suppresses = torch.cat([iou(block, boxes, offset) > iou_threshold for block in boxes.split(rows)]).triu(1)
    keep, before = torch.ones_like(suppresses[0]), None
    while before is None or not torch.equal(keep, before):
        before = keep
        for _ in range(ROUNDS):
            keep = ~(suppresses & keep[:, None]).any(0)
    return order[keep]


def iou(boxes_a, boxes_b, offset):
    """(N, 4), (M, 4) -> (N, M), in the order of operations of `suppression.overlaps`."""
    a, b = boxes_a[:, None], boxes_b[None]
    width = (torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0]) + offset).clamp(min=0)
    height = (torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1]) + offset).clamp(min=0)
    area_a, area_b = ((c[..., 2] - c[..., 0] + offset) * (c[..., 3] - c[..., 1] + offset) for c in (a, b))
    inter = width * height
    return inter / (area_a + area_b - inter)


def nms_match(dets, iou_threshold):
    """Groups of indices: each box kept, best first, with those that it suppresses (an IoU of the threshold
    already does). dets (N, 5) as x1 y1 x2 y2 score, on the CPU.
    """
    table, groups = as_numpy(dets), []
    threshold = table.dtype.type(iou_threshold)
    left = dets[:, 4].detach().sort(descending=True, stable=True).indices.numpy()
    while len(left):
        best, left = left[0], left[1:]
        falls = overlaps(table[best:best + 1, :4], table[left, :4], 0)[0] >= threshold
        groups.append([int(best), *left[falls].tolist()])
        left = left[~falls]
    return groups


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
