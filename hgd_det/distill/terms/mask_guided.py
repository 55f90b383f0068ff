"""Mask Guided (Zhu et al., ICME 2019): whole maps and the objects in them, before any detection."""
from __future__ import annotations

import torch
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import bbox2delta
from torch import Tensor

from hgd_det.device import launches, sent
from hgd_det.distill.boxes import all_crops, crops
from hgd_det.distill.functional import padded_boxes
from hgd_det.distill.lesson import Lesson, mean_count
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS
from hgd_det.distill.term import Spec
from hgd_det.errors import UserError
from hgd_det.models.encoding import deltas_between


@TERMS.register_module()
class MaskGuided(MapTerm):
    """First imitate features only, then train the detector plainly from there.

    ::

        first 30 %   L      = L_glob + beta L_loc                          no detection loss
                     L_glob = sum over the head maps of mean_ij |V - Z|^2 / C_T
                     L_loc  = mean over the objects' crops of the same  (7x7 RoIAlign)
        then         plain SSD training, no distillation

    An object is cropped from every level on which the student's assignment gave it an anchor. Only
    the paper's abstract was at hand: two phases, global maps, regions covered by objects. The
    equations and the 30 % are ours.

    The first phase lasts until the schedule's ``stop``; its ``detection=0`` multiplies the detection
    losses by 0 meanwhile, so the heads do not learn (weight decay still touches them: by less than
    2 % over VOC's first phase). Both phases follow from the iteration alone; a run resumes in the
    right one.

    Args:
        beta: Weight of the local part.
        crop: Cells per side of a crop.
    """
    needs = frozenset({'maps', 'targets', 'boxes', 'anchors'})
    schedule = dict(weight=1.0, stop=0.3, detection=0.0)

    def __init__(self, *, beta: float = 1.0, crop: int = 7, **stages):
        super().__init__(**stages)
        if beta < 0:
            raise UserError(f'MaskGuided: beta={beta}; it cannot be negative')
        if crop < 1:
            raise UserError(f'MaskGuided: crop={crop}; a crop has at least one cell')
        self.beta, self.crop = beta, crop
        self.coder: dict = {}
        self.limits: tuple[float, float] | None = None
        if not beta:
            self.needs = frozenset({'maps'})

    def setup(self, spec: Spec) -> None:
        head = spec.student_head
        if self.beta and (head is None or head.anchors is None or head.coder is None
                          or head.coder['type'] != 'DeltaXYWHBBoxCoder'):
            raise UserError(f'MaskGuided: the student head {head.kind if head else "(none)"} has '
                            'no anchors with encoded boxes, which tell the level of each object; '
                            'use an SSD head, or beta=0')
        if self.beta and head.decoded:
            raise UserError('MaskGuided: with reg_decoded_bbox=True the targets are not encoded '
                            'boxes, which tell the level of each object; use False, or beta=0')
        if self.beta:
            self.coder = dict(means=head.coder['means'], stds=head.coder['stds'])
            if head.project is not None:  # a distribution head clamps its targets to its bins
                self.limits = (head.project.min().item(), head.project.max().item() - 1e-3)
        super().setup(spec)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        launched = launches(next(iter(lesson.student.maps.values())))
        objects = (self._all_objects if launched else self._objects)(lesson) if self.beta else {}
        whole, parts, count, log = 0.0, 0.0, 0, {}
        for pair, student, teacher in self.maps(lesson):
            error = self.adapted(pair, student, teacher.shape[-2:]) - teacher
            log[f'd_{pair.name}'] = error.square().mean()    # over C_T: the sum over channels, / C_T
            whole = whole + log[f'd_{pair.name}']
            boxes = objects.get(tuple(student.shape[-2:]))
            if launched and boxes is not None:
                local = all_crops(error, padded_boxes(lesson).boxes, lesson.input_shape, self.crop)
                parts = parts + (local.square().mean((2, 3, 4)) * boxes).sum()
                count = count + boxes.sum()
            elif boxes is not None and sum(map(len, boxes)):
                # pooling is linear: the crop of the difference is the difference of the crops
                local = crops(error, boxes, lesson.input_shape, self.crop)
                parts = parts + local.square().mean((1, 2, 3)).sum()
                count += len(local)
        seen = count.float() if isinstance(count, Tensor) else whole.new_full((), float(count))
        local = whole.new_zeros(()) + parts / mean_count(seen)
        return dict(loss=whole + self.beta * local, whole=whole.detach(), local=local.detach(),
                    crops=seen, **{key: value.detach() for key, value in log.items()})

    @torch.no_grad()
    def _objects(self, lesson: Lesson) -> dict[tuple[int, int], list[Tensor]]:
        """By map size, per image: the objects that own an anchor on that level."""
        levels = lesson.levels
        level_of = torch.cat([torch.full((h * w * a,), i) for i, (h, w, a) in enumerate(levels)])
        found = [[] for _ in levels]
        for image, boxes in enumerate(lesson.boxes):
            own = lesson.targets.positive[image].nonzero()[:, 0]
            hit = torch.zeros(len(levels), len(boxes), dtype=torch.bool, device=boxes.device)
            if len(own) and len(boxes):
                anchor_level = level_of.to(own.device)[own]
                hit[anchor_level, self._owner(lesson, image, own, boxes)] = True
            for level, mask in enumerate(hit):
                found[level].append(boxes[mask])
        return {(h, w): boxes for (h, w, _), boxes in zip(levels, found, strict=True)}

    @torch.no_grad()
    def _all_objects(self, lesson: Lesson) -> dict[tuple[int, int], Tensor]:
        """By map size (B, n) bool: which of the padded boxes own an anchor on that level."""
        (boxes, real), levels = padded_boxes(lesson), lesson.levels
        count, number = real.shape
        if not number:
            return {}
        encoded = deltas_between(lesson.anchors[:, None], boxes[:, None], **self.coder)     # (B, M, n, 4)
        encoded = encoded.clamp(*self.limits) if self.limits else encoded
        apart = (encoded - lesson.targets.boxes[:, :, None]).abs().sum(-1)
        owner = apart.masked_fill(~real[:, None], torch.inf).argmin(2)                      # (B, M)
        level = sent(torch.arange(len(levels)).repeat_interleave(
            torch.tensor([h * w * a for h, w, a in levels]), output_size=owner.shape[1]), owner)
        hits = boxes.new_zeros(count, len(levels) * number).scatter_add_(
            1, level * number + owner, lesson.targets.positive.to(boxes.dtype)) > 0
        hits = hits.view(count, -1, number).unbind(1)
        return {(h, w): hit for (h, w, _), hit in zip(levels, hits, strict=True)}

    def _owner(self, lesson: Lesson, image: int, own: Tensor, boxes: Tensor) -> Tensor:
        """Which object each positive anchor stands for: the one whose encoding is its target.

        IoU would not tell: an anchor forced on a small object may overlap a large one more.
        """
        shape = (len(own), len(boxes), 4)
        encoded = bbox2delta(lesson.anchors[own][:, None].expand(shape),
                             boxes[None].expand(shape).contiguous(), **self.coder)
        if self.limits:
            encoded = encoded.clamp(*self.limits)
        return (encoded - lesson.targets.boxes[image][own][:, None]).abs().sum(-1).argmin(1)
