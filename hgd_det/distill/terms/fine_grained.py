"""Fine-grained feature imitation (Wang et al., CVPR 2019): imitate near objects only."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgd_det.device import launches
from hgd_det.distill.adapters import resize_map
from hgd_det.distill.boxes import box_iou
from hgd_det.distill.functional import choose, l2_distance, padded_boxes, shared_box_mask
from hgd_det.distill.lesson import Lesson, mean_count
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import Pair
from hgd_det.distill.term import Spec
from hgd_det.errors import UserError

SCOPES = ('global', 'level')


class ImitationAdapter(nn.Sequential):
    """3x3 convolution and ReLU; weights from N(0, 1e-4) truncated at two deviations, bias 0."""

    def __init__(self, student_channels: int, teacher_channels: int):
        conv = nn.Conv2d(student_channels, teacher_channels, 3, padding=1)
        nn.init.trunc_normal_(conv.weight, std=1e-4, a=-2e-4, b=2e-4)
        nn.init.zeros_(conv.bias)
        super().__init__(conv, nn.ReLU())

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return resize_map(super().forward(x), size)

    def __str__(self) -> str:
        return f'3x3 conv + ReLU {self[0].in_channels}->{self[0].out_channels}'


@TERMS.register_module()
class FineGrained(MapTerm):
    """L2 imitation of the heads' maps on the cells whose anchors nearly fit an object.

    ::

        L = 1 / (2 N_p) sum over levels, images, ij of  I_ij sum_c (f(S) - Z)^2

    ``f`` is a 3x3 convolution with ReLU. For each object g let ``m`` be the IoU of every anchor
    with g; a cell is on if any of its anchors has IoU strictly above ``psi max m``, and I is the
    union over the objects. ``N_p`` counts the cells that are on, over all levels and the batch.

    A student without anchors turns on the cells whose centre lies in an object.

    Args:
        psi: Share of the best IoU that an anchor must exceed.
        scope: ``global`` takes the maximum over the anchors of all levels, so that coarse maps join
            for large objects only; ``level`` over each level's own, which gives every level a mask.

    The authors clip gradients at 10; that is the optimizer's part (``optim_wrapper.clip_grad``).
    """
    needs = frozenset({'maps', 'boxes', 'anchors'})
    schedule = dict(weight=0.01, warmup=400)
    policies = ('always',)

    def __init__(self, *, psi: float = 0.5, scope: str = 'global', **stages):
        super().__init__(**stages)
        if not 0 <= psi < 1:
            raise UserError(f'FineGrained: psi={psi}; choose a share from 0 to below 1 (no anchor '
                            'exceeds the whole maximum)')
        choose('FineGrained', 'scope', scope, SCOPES)
        self.psi, self.scope = psi, scope

    def setup(self, spec: Spec) -> None:
        if spec.student_head is None or spec.student_head.anchors is None:
            self.needs = self.needs - {'anchors'}
        super().setup(spec)

    def adapter_for(self, pair: Pair) -> nn.Module:
        return ImitationAdapter(pair.student.channels, pair.teacher.channels)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        maps = list(self.maps(lesson))
        masks = self.masks(lesson, [tuple(S.shape[-2:]) for _, S, _ in maps])
        total = count = 0
        for (pair, S, Z), mask in zip(maps, masks, strict=True):
            size = Z.shape[-2:]
            adapted = self.adapted(pair, S, size)
            # A teacher cell is on if any student cell it covers is.
            mask = F.adaptive_max_pool2d(mask.to(adapted.dtype), size)      # (B, H, W)
            total = total + (l2_distance(adapted, Z) * mask).sum()
            count = count + mask.sum()
        return dict(loss=total / (2 * mean_count(count)), cells=count)

    @torch.no_grad()
    def masks(self, lesson: Lesson, sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Per map (B, H, W) bool: the cells to imitate."""
        if 'anchors' not in self.needs:
            return [shared_box_mask(lesson, size, 'center') for size in sizes]
        anchors = lesson.level_anchors
        per_image = near_cells_of_all(anchors, *padded_boxes(lesson), self.psi, self.scope) if launches(
            anchors[0]) else [near_cells(anchors, boxes.to(anchors[0]), self.psi, self.scope)
                     for boxes in lesson.boxes]
        cells = [tuple(level.shape[:2]) for level in anchors]
        chosen = []
        for pair, size in zip(self.pairs, sizes, strict=True):
            if size not in cells:
                raise UserError(f'FineGrained: {pair.student.tap} is {size[0]}x{size[1]}, but the '
                                f'head predicts on {", ".join(f"{h}x{w}" for h, w in cells)}')
            # Of several levels of one size the stage is the last, as in pair_stages.
            level = len(cells) - 1 - cells[::-1].index(size)
            chosen.append(per_image[level] if launches(anchors[0]) else
                          torch.stack([image[level] for image in per_image]))
        return chosen


def near_cells(anchors: list[Tensor], boxes: Tensor, psi: float, scope: str) -> list[Tensor]:
    """Per level (H, W) bool, from anchors (H, W, A, 4) per level and boxes (n, 4) of one image."""
    if not len(boxes):
        return [level.new_zeros(level.shape[:2], dtype=torch.bool) for level in anchors]
    ious = [pairwise_iou(level, boxes) for level in anchors]         # (H, W, A, n) each
    best = torch.stack([iou.amax((0, 1, 2)) for iou in ious])       # (levels, n)
    if scope == 'global':
        best = best.amax(0).expand_as(best)
    return [(iou > psi * most).any(-1).any(-1) for iou, most in zip(ious, best, strict=True)]


def near_cells_of_all(anchors: list[Tensor], boxes: Tensor, real: Tensor, psi: float, scope: str
                      ) -> list[Tensor]:
    """Per level (B, H, W) bool: :func:`near_cells` of all images at once, from padded boxes (B, n, 4)."""
    if not boxes.shape[1]:
        return [level.new_zeros(len(boxes), *level.shape[:2], dtype=torch.bool) for level in anchors]
    joined = torch.cat([level.flatten(0, 2) for level in anchors])
    iou = box_iou(boxes.flatten(0, 1).to(joined), joined).view(*real.shape, -1)         # (B, n, M)
    sizes = [level.shape[:3].numel() for level in anchors]
    if scope == 'global':
        most = iou.amax(2, keepdim=True)
    else:
        most = torch.cat([part.amax(2, keepdim=True).expand_as(part) for part in iou.split(sizes, 2)], 2)
    near = ((iou > psi * most) & real[..., None]).any(1)                                # (B, M)
    return [part.view(len(boxes), *level.shape[:3]).any(3)
            for part, level in zip(near.split(sizes, 1), anchors, strict=True)]


def pairwise_iou(anchors: Tensor, boxes: Tensor) -> Tensor:
    """(..., n) from anchors (..., 4) and boxes (n, 4)."""
    anchors = anchors[..., None, :]
    corner = torch.maximum(anchors[..., :2], boxes[:, :2])
    extent = (torch.minimum(anchors[..., 2:], boxes[:, 2:]) - corner).clamp(min=0)
    both = extent.prod(-1)
    sizes = [(x[..., 2:] - x[..., :2]).prod(-1) for x in (anchors, boxes)]
    return both / (sizes[0] + sizes[1] - both).clamp(min=1e-6)
