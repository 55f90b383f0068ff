"""An SSD head that predicts where a box side may lie, not just where it lies."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.models.dense_heads import SSDHead
from mmdet.models.losses.gfocal_loss import distribution_focal_loss
from mmdet.registry import MODELS
from torch import Tensor, nn

from hgd_det.errors import UserError


@MODELS.register_module()
class DistributionSSDHead(SSDHead):
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

    def loss_by_feat(self, *args, **kwargs) -> dict[str, list[Tensor]]:
        losses = super().loss_by_feat(*args, **kwargs)
        both = losses['loss_bbox']  # of each image: (smooth L1, DFL), see below
        return losses | dict(loss_bbox=[image[0] for image in both],
                             loss_dfl=[image[1] for image in both])

    def loss_by_feat_single(self, cls_score: Tensor, bbox_pred: Tensor, anchor: Tensor,
                            labels: Tensor, label_weights: Tensor, bbox_targets: Tensor,
                            bbox_weights: Tensor, avg_factor: float) -> tuple[Tensor, Tensor]:
        """SSDHead's losses of one image on the expectations; the box loss comes as a pair."""
        # SSDHead cut the logits into rows of 4; in memory they still run anchor, delta, bin
        logits = bbox_pred.reshape(-1, 4, self.n + 1)
        loss_cls, loss_bbox = super().loss_by_feat_single(
            cls_score, integral(logits, self.project), anchor, labels, label_weights, bbox_targets,
            bbox_weights, avg_factor=avg_factor)
        used = bbox_weights > 0                                             # (M, 4)
        position = (bbox_targets[used] - self.lo) * (self.n / (self.hi - self.lo))
        loss_dfl = self.dfl_weight * distribution_focal_loss(
            logits[used].float(), position.clamp(0, self.n - 1e-4), weight=bbox_weights[used],
            avg_factor=avg_factor)
        return loss_cls, torch.stack([loss_bbox, loss_dfl])

    def _get_targets_single(self, *args, **kwargs) -> tuple:
        """SSDHead's targets of one image, the encoded boxes clamped to the bins."""
        labels, label_weights, bbox_targets, *rest = super()._get_targets_single(*args, **kwargs)
        return (labels, label_weights, bbox_targets.clamp(self.lo, self.hi - 1e-3), *rest)


def integral(logits: Tensor, project: Tensor) -> Tensor:
    """Expectation ``sum_k softmax(z)_k y_k`` over the last axis, in float32 at least."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # a sum of products, not a matmul: autocast would run that in half precision
    return (logits.softmax(-1) * project.to(logits.dtype)).sum(-1)
