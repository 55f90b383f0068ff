"""mmdet's SSD head with the loss and the detections of a whole batch at once."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import SSDHead
from mmdet.models.task_modules.assigners import BboxOverlaps2D, MaxIoUAssigner
from mmdet.models.task_modules.samplers import PseudoSampler
from mmdet.registry import MODELS
from mmdet.structures.bbox import get_box_tensor
from torch import Tensor

from hgd_det.device import launches, padded
from hgd_det.models import batched_predict
from hgd_det.models.anchor_rows import all_rows, anchor_rows, pick
from hgd_det.models.encoding import encode
from hgd_det.models.matching import NOBODY, hardest, match, match_all, mined

EPS = torch.finfo(torch.float32).eps    # what mmdet adds to the count it divides a box loss by
PIECE = 8192    # rows whose softmax stays in the cache


@MODELS.register_module()
class BatchedSSDHead(SSDHead):
    """SSDHead, whose losses, gradients and detections it computes without a loop over the images.

    Arguments, state dict, outputs and predictions are SSDHead's. So are the losses, image by image:
    anchors are matched in its order, and what ties, in overlap or in hardness, falls to the same anchor.
    Scores and boxes are differentiated only where the loss reads them: at the positives and at the hard
    negatives, a tenth of the anchors.

    Targets are assigned here for `MaxIoUAssigner` as SSD sets it (``gt_max_assign_all=False``) with
    `PseudoSampler`; any other assigner, sampler or border is left to mmdet's own `get_targets`. Mining
    and losses are the same for all of them. A subclass changes `get_targets` or `box_losses`;
    `_get_targets_single` and `loss_by_feat_single` are not called, and what an instance segmentor asks
    of `get_positive_infos` is not kept.

    On a GPU (`hgd_det.device`) the same losses come from all anchors at once, weighted, and nothing is waited
    for; of equally hard negatives the first are taken, and each loss is one number for the batch.

    Detections are mmdet's to the last bit and tie, for the plain NMS of SSD's `test_cfg`; any other is left
    to mmdet (`batched_predict.covers`). `_predict_by_feat_single` and `_bbox_post_process` are then not
    called.
    """

    def grid(self, sizes, device='cuda') -> list[Tensor]:
        """(H*W*A, 4) anchors of each level, made once for each size of the maps."""
        return list(self._grid(tuple(map(tuple, sizes)), device)[0])

    def _grid(self, sizes: tuple, device) -> tuple[list[Tensor], list[Tensor]]:
        grids = self.__dict__.setdefault('_grids', {})
        if (sizes, str(device)) not in grids:
            with torch.inference_mode(False), torch.no_grad():
                grids[sizes, str(device)] = (
                    self.prior_generator.grid_priors(sizes, device=device),
                    [torch.ones(h * w * a, dtype=torch.bool, device=device)
                     for (h, w), a in zip(sizes, self.num_base_priors, strict=True)])
        return grids[sizes, str(device)]

    def get_anchors(self, featmap_sizes, batch_img_metas, device='cuda') -> tuple[list, list]:
        """SSDHead's, but images of one padded shape share their flags, and those of whole maps are kept."""
        sizes = tuple(tuple(size) for size in featmap_sizes)
        priors, whole = self._grid(sizes, device)
        priors, flags = list(priors), {}
        for meta in batch_img_metas:
            shape = tuple(meta['pad_shape'][:2])
            inside = [(min(-(-shape[0] // down), h), min(-(-shape[1] // across), w))
                      for (h, w), (across, down) in zip(sizes, self.prior_generator.strides, strict=True)]
            if not any(h and w for h, w in inside):
                raise ValueError('There is no valid anchor inside the image boundary: '
                                 'check the image size and the sizes of the anchors')
            if shape not in flags:
                flags[shape] = whole if tuple(inside) == sizes else self.prior_generator.valid_flags(
                    featmap_sizes, shape, device)
        return [priors] * len(batch_img_metas), [flags[tuple(meta['pad_shape'][:2])]
                                                 for meta in batch_img_metas]

    def _inside(self, flags: list) -> Tensor | None:
        """(B, M): the anchors in the padded image; None where they all are."""
        if any(flags[0] is whole for _, whole in self.__dict__.get('_grids', {}).values()) and \
                all(each is flags[0] for each in flags):
            return None
        joined = {id(each): torch.cat(each) for each in flags}
        return torch.stack([joined[id(each)] for each in flags])

    @torch.no_grad()
    def get_targets(self, anchor_list, valid_flag_list, batch_gt_instances, batch_img_metas,
                    batch_gt_instances_ignore=None, unmap_outputs: bool = True,
                    return_sampling_results: bool = False) -> tuple:
        """Per level, labels, their weights, boxes, their weights; and the number of positives."""
        if return_sampling_results or not unmap_outputs or not self._as_ssd_matches(
                anchor_list, batch_gt_instances_ignore):
            return super().get_targets(
                anchor_list, valid_flag_list, batch_gt_instances, batch_img_metas,
                batch_gt_instances_ignore, unmap_outputs, return_sampling_results)
        anchors = torch.cat([get_box_tensor(level) for level in anchor_list[0]])            # (M, 4)
        inside = self._inside(valid_flag_list)
        objects = [get_box_tensor(image.bboxes).reshape(-1, 4) for image in batch_gt_instances]
        classes = [image.labels for image in batch_gt_instances]
        whole = launches(anchors)
        boxes, classes = padded(objects, least=whole), padded(classes, least=whole)     # (B, G, 4), (B, G)
        rules = self.assigner
        owner = (match_all if whole else match)(
            anchors, boxes, [len(image) for image in objects], inside,
            positive=rules.pos_iou_thr, negative=rules.neg_iou_thr,
            forced=rules.min_pos_iou if rules.match_low_quality else float('inf'))

        sizes = [len(level) for level in anchor_list[0]]
        parts = (self._all_targets_of if whole else self._targets_of)(owner, anchors, boxes, classes)
        count = (owner >= 0).sum(1).clamp(min=1).sum()      # mmdet counts one in an image without any
        return (*(list(part.split(sizes, 1)) for part in parts), count)

    def _targets_of(self, owner: Tensor, anchors: Tensor, boxes: Tensor, classes: Tensor) -> tuple:
        """What each anchor shall say, (B, M) or (B, M, 4), when it stands for the object ``owner`` (B, M)."""
        image, anchor = where = (owner >= 0).nonzero(as_tuple=True)
        number = owner[where]
        labels = torch.full_like(owner, self.num_classes)
        labels[where] = classes[image, number]
        label_weights = (owner != NOBODY).float()
        if self.train_cfg['pos_weight'] > 0:
            label_weights[where] = self.train_cfg['pos_weight']
        wanted = boxes[image, number]
        if not self.reg_decoded_bbox:
            wanted = self.bbox_coder.encode(anchors[anchor], wanted)
        targets, weights = (anchors.new_zeros(*owner.shape, wanted.shape[1]) for _ in range(2))
        targets[where], weights[where] = wanted.to(targets), 1.0
        return labels, label_weights, targets, weights

    def _all_targets_of(self, owner: Tensor, anchors: Tensor, boxes: Tensor, classes: Tensor) -> tuple:
        """:meth:`_targets_of`, each anchor's computed, and masked where it stands for nothing."""
        free, number = owner < 0, owner.clamp(min=0)
        labels = classes.gather(1, number).masked_fill_(free, self.num_classes)
        label_weights = (owner != NOBODY).float()
        if self.train_cfg['pos_weight'] > 0:
            label_weights = label_weights.masked_fill_(~free, self.train_cfg['pos_weight'])
        wanted = boxes.gather(1, number[..., None].expand(-1, -1, 4))
        if not self.reg_decoded_bbox:
            wanted = encode(self.bbox_coder, anchors.expand_as(wanted), wanted)
        targets = wanted.to(anchors).masked_fill_(free[..., None], 0)
        return labels, label_weights, targets, (~free)[..., None].to(targets.dtype).expand_as(targets)

    def _as_ssd_matches(self, anchor_list: list, ignored: list | None) -> bool:
        """Whether :func:`match` gives what the configured assigner and sampler would."""
        rules = self.assigner
        return (type(rules) is MaxIoUAssigner and type(self.sampler) is PseudoSampler
                and type(rules.iou_calculator) is BboxOverlaps2D and rules.iou_calculator.dtype is None
                and not rules.gt_max_assign_all and getattr(rules, 'perm_repeat_gt_cfg', None) is None
                and isinstance(rules.neg_iou_thr, float) and min(rules.pos_iou_thr, rules.neg_iou_thr) > 0
                and not (rules.ignore_iof_thr > 0 and any(
                    image is not None and len(image.bboxes) for image in ignored or ()))
                and self.train_cfg['allowed_border'] < 0
                and bool(anchor_list) and all(image is anchor_list[0] for image in anchor_list))

    def loss_by_feat(self, cls_scores: list[Tensor], bbox_preds: list[Tensor], batch_gt_instances: list,
                     batch_img_metas: list[dict], batch_gt_instances_ignore: list | None = None) -> dict:
        """Of each image a ``loss_cls`` of shape (1,), and a scalar of each of the box losses."""
        anchor_list, valid_flag_list = self.get_anchors(
            [score.shape[-2:] for score in cls_scores], batch_img_metas, device=cls_scores[0].device)
        *parts, avg_factor = self.get_targets(
            anchor_list, valid_flag_list, batch_gt_instances, batch_img_metas,
            batch_gt_instances_ignore=batch_gt_instances_ignore)[:5]
        labels, label_weights, targets, weights = (torch.cat(part, 1) for part in parts)
        if launches(labels):
            return self._all_losses(cls_scores, bbox_preds, anchor_list[0], labels, label_weights, targets,
                                    weights, avg_factor)
        priors = self.num_base_priors

        with torch.no_grad():
            scores, preds = anchor_rows(cls_scores, priors), anchor_rows(bbox_preds, priors)
            loss = background_loss(scores.flatten(0, 1), self.num_classes)
            chosen, taken, positives = hardest(loss.view_as(labels) * label_weights,
                                               labels == self.num_classes, self.train_cfg['neg_pos_ratio'])
        loss = F.cross_entropy(pick(cls_scores, priors, scores, chosen).flatten(0, 1),
                               labels.gather(1, chosen).flatten(), reduction='none').view(chosen.shape)
        loss = (loss * label_weights.gather(1, chosen)).masked_fill(~taken, 0)

        chosen = chosen[:, :positives]
        preds = pick(bbox_preds, priors, preds, chosen)
        if self.reg_decoded_bbox:
            anchors = torch.cat([get_box_tensor(level) for level in anchor_list[0]])
            preds = self.bbox_coder.decode(anchors[chosen.flatten()], preds.flatten(0, 1)).view_as(preds)
        boxes = self.box_losses(preds, *(part.gather(1, chosen[..., None].expand(-1, -1, part.shape[-1]))
                                         for part in (targets, weights)), avg_factor)
        return dict(loss_cls=list((loss.sum(1, keepdim=True) / avg_factor).unbind()),
                    **{name: list(values.unbind()) for name, values in boxes.items()})

    def _all_losses(self, cls_scores: list[Tensor], bbox_preds: list[Tensor], anchors: list, labels: Tensor,
                    label_weights: Tensor, targets: Tensor, weights: Tensor, avg_factor: Tensor) -> dict:
        """The batch's losses from every anchor, weighted; only whole tensors, and nothing is waited for."""
        scores, preds = (all_rows(maps, self.num_base_priors) for maps in (cls_scores, bbox_preds))
        scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction='none').view_as(labels)
        background = labels == self.num_classes
        with torch.no_grad():
            hard = mined(loss * label_weights, background, self.train_cfg['neg_pos_ratio'])
            counted = label_weights * (hard | ~background)
        if self.reg_decoded_bbox:
            joined = torch.cat([get_box_tensor(level) for level in anchors]).expand(len(preds), -1, -1)
            preds = self.bbox_coder.decode(joined.flatten(0, 1), preds.flatten(0, 1)).view_as(preds)
        boxes = self.box_losses(preds, targets, weights, avg_factor)
        return dict(loss_cls=(loss * counted).sum() / avg_factor,
                    **{name: values.sum() for name, values in boxes.items()})

    def box_losses(self, preds: Tensor, targets: Tensor, weights: Tensor,
                   avg_factor: float) -> dict[str, Tensor]:
        """``{name: (B,)}`` from P anchors of each image: its positives, and others of weight zero.

        Args:
            preds: (B, P, R), what the head put out there.
            targets, weights: (B, P, 4).
        """
        preds = preds.to(torch.result_type(preds, targets))
        loss = weights * F.smooth_l1_loss(preds, targets.to(preds.dtype), reduction='none',
                                          beta=self.train_cfg['smoothl1_beta'])
        return dict(loss_bbox=loss.flatten(1).sum(1) / (avg_factor + EPS))

    def predict_by_feat(self, cls_scores: list[Tensor], bbox_preds: list[Tensor], score_factors=None,
                        batch_img_metas: list[dict] | None = None, cfg=None, rescale: bool = False,
                        with_nms: bool = True) -> list:
        """An `InstanceData` of boxes, scores and labels of each image."""
        settings = self.test_cfg if cfg is None else cfg
        if score_factors is None and batched_predict.covers(self, settings, [*cls_scores, *bbox_preds]):
            return batched_predict.detections(self, cls_scores, bbox_preds, batch_img_metas, settings,
                                              rescale, with_nms)
        return super().predict_by_feat(cls_scores, bbox_preds, score_factors, batch_img_metas, cfg, rescale,
                                       with_nms)


def background_loss(scores: Tensor, background: int) -> Tensor:
    """(N,) cross entropy of (N, K) scores, were all background; in pieces, to hold no second N x K."""
    label = torch.full((min(PIECE, len(scores)),), background, device=scores.device)
    return torch.cat([F.cross_entropy(piece, label[:len(piece)], reduction='none')
                      for piece in scores.split(PIECE)])
