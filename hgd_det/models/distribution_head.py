"""An SSD head that predicts where a box side may lie, not just where it lies."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.models.losses.gfocal_loss import distribution_focal_loss
from mmdet.registry import MODELS
from torch import Tensor, nn

from hgd_det.errors import UserError
from hgd_det.models.ssd_head import EPS, BatchedSSDHead


@MODELS.register_module()
class DistributionSSDHead(BatchedSSDHead):
    """SSDHead with ``n+1`` logits per delta instead of the delta.

    Each of the four encoded deltas (stds .1 .1 .2 .2) is a distribution over fixed bins, and what
    counts as the box is its expectation::

        y_k   = lo + k (hi - lo) / n,  k = 0..n
        P     = softmax(z)
        delta = sum_k P_k y_k
        L_box = smoothL1(delta, t) + dfl_weight DFL(z, t)
        DFL   = -(k+1-r) log P_k - (r-k) log P_{k+1},   r = (t-lo) n / (hi-lo),  k = floor(r)

    both terms summed over the deltas of the positive anchors and divided by their number. The
    spread of ``P`` says how sure the head is of a side, which is what localization distillation
    (``LD``) hands on.

    Matching, hard-negative mining, box decoding and NMS are SSDHead's own: it is given the
    expectations. The regression convolutions have ``n+1`` times the outputs; everything else,
    and every key of the state dict, is as in SSDHead. The bins follow from the config and are not
    saved. With one set of bins per deployment the decode is exact: :meth:`to_deltas` turns raw
    outputs into the maps a plain SSDHead would have put out.

    Args:
        n: Bins minus one. ``n=5`` is the six-bin view: a side as a six-way classification, at a
            third of the cost of the default.
        lo, hi: First and last bin, in encoded units. A match of IoU 0.5 has ``|dx| <= 5`` and
            ``|dw| <= 3.5``; the default leaves room for the forced matches of odd objects, whose
            targets are clamped to ``[lo, hi - 0.001]``.
        dfl_weight: Weight of DFL beside the smooth L1.
        **ssd: Arguments of mmdet's SSDHead.
    """

    def __init__(self, *, n: int = 16, lo: float = -8.0, hi: float = 8.0, dfl_weight: float = 0.25,
                 **ssd):
        if n < 1 or int(n) != n:
            raise UserError(f'DistributionSSDHead: n={n!r}; it is the number of bins minus one, '
                            'so a whole number from 1 (16 by default)')
        if not lo < hi - 1e-3:
            raise UserError(f'DistributionSSDHead: lo={lo} and hi={hi}; the bins run upwards from '
                            'lo to hi, -8 to 8 by default')
        if dfl_weight < 0:
            raise UserError(f'DistributionSSDHead: dfl_weight={dfl_weight}; it cannot be negative')
        if ssd.get('reg_decoded_bbox'):
            raise UserError('DistributionSSDHead: reg_decoded_bbox=True asks for a loss on '
                            'absolute boxes, but the bins are encoded deltas; leave it False')
        super().__init__(**ssd)
        self.n, self.lo, self.hi, self.dfl_weight = int(n), float(lo), float(hi), float(dfl_weight)
        for convs in self.reg_convs:
            last = convs[-1]
            convs[-1] = nn.Conv2d(last.in_channels, last.out_channels * (self.n + 1),
                                  last.kernel_size, padding=last.padding)
        # From the config, hence not in the state dict: a plain SSDHead's keys stay the head's keys
        self.register_buffer('project', torch.linspace(self.lo, self.hi, self.n + 1),
                             persistent=False)

    def to_deltas(self, bbox_preds: Sequence[Tensor]) -> list[Tensor]:
        """Level maps ``(B, A*4*(n+1), H, W)`` of logits to ``(B, A*4, H, W)`` of deltas.

        What a plain SSDHead puts out: for export, or for any code that expects four deltas.
        """
        # channels run anchor, delta, bin
        return [integral(logits.unflatten(1, (-1, self.n + 1)).movedim(2, -1), self.project)
                for logits in bbox_preds]

    def predict_by_feat(self, cls_scores: list[Tensor], bbox_preds: list[Tensor], *args, **kwargs):
        return super().predict_by_feat(cls_scores, self.to_deltas(bbox_preds), *args, **kwargs)

    def get_targets(self, *args, **kwargs) -> tuple:
        """SSDHead's targets, the encoded boxes clamped to the bins."""
        labels, label_weights, boxes, *rest = super().get_targets(*args, **kwargs)
        return labels, label_weights, [level.clamp(self.lo, self.hi - 1e-3) for level in boxes], *rest

    def box_losses(self, preds: Tensor, targets: Tensor, weights: Tensor,
                   avg_factor: float) -> dict[str, Tensor]:
        """SSDHead's loss of the expectations, and DFL."""
        logits = preds.unflatten(-1, (4, self.n + 1))
        losses = super().box_losses(integral(logits, self.project), targets, weights, avg_factor)
        position = ((targets - self.lo) * (self.n / (self.hi - self.lo))).clamp(0, self.n - 1e-4)
        dfl = distribution_focal_loss(logits.flatten(0, 2).float(), position.flatten(),
                                      weight=weights.flatten(), reduction='none')
        return losses | dict(loss_dfl=self.dfl_weight * dfl.view(len(preds), -1).sum(1) / (avg_factor + EPS))


def integral(logits: Tensor, project: Tensor) -> Tensor:
    """Expectation ``sum_k softmax(z)_k y_k`` over the last axis, in float32 at least."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # a sum of products, not a matmul: autocast would run that in half precision
    return (logits.softmax(-1) * project.to(logits.dtype)).sum(-1)
