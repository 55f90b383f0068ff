"""Mimic (Li et al., CVPR 2017): imitate features only inside boxes worth looking at."""
from __future__ import annotations

import torch
from mmcv.ops import batched_nms
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox
from torch import Tensor

from hgd_det.distill.boxes import crops, point_deltas
from hgd_det.distill.functional import precise
from hgd_det.distill.lesson import Lesson, mean_count
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS
from hgd_det.distill.term import HeadSpec, Spec
from hgd_det.errors import UserError

CANDIDATES = 1000  # boxes per image that reach NMS, as in SSD's own test settings


@TERMS.register_module()
class Mimic(MapTerm):
    """The student's features inside a box, pooled, become the teacher's.

    ::

        L = 1/(2N) sum_i |u_i - v_i|^2 / m_i

    over the N boxes of the batch: u_i is the teacher's and v_i the adapted student's crop (7x7
    RoIAlign), m_i = 49 C_T the values in it. The paper pools at sampled proposals. SSD has none:
    here they are the objects and what the teacher detects (after NMS per class), up to 256 per
    image, objects first. A box belongs to the level whose anchors have the nearest size.

    Args:
        teacher_boxes: Use the teacher's detections too. Without them no head of the teacher runs.
        score, iou: Least score of a detection, and overlap at which NMS drops it.
        max_boxes: Most boxes per image.
        crop: Cells per side of a crop.
    """
    needs = frozenset({'maps', 'head', 'boxes', 'anchors'})

    def __init__(self, *, teacher_boxes: bool = True, score: float = 0.3, iou: float = 0.45,
                 max_boxes: int = 256, crop: int = 7, **stages):
        super().__init__(**stages)
        if not (0 < score < 1 and 0 < iou < 1):
            raise UserError(f'Mimic: score={score}, iou={iou}; both lie between 0 and 1')
        if max_boxes < 1 or crop < 1:
            raise UserError(f'Mimic: max_boxes={max_boxes}, crop={crop}; both are at least 1')
        self.teacher_boxes, self.score, self.iou = teacher_boxes, score, iou
        self.max_boxes, self.crop = max_boxes, crop
        if not teacher_boxes:
            self.needs = self.needs - {'head'}
        self.teacher_head: HeadSpec | None = None
        self.teacher_input: tuple[int, int] = (0, 0)
        self.register_buffer('teacher_anchors', None, persistent=False)
        self.register_buffer('teacher_project', None, persistent=False)

    def setup(self, spec: Spec) -> None:
        mine, theirs = spec.student_head, spec.teacher_head
        if mine is None or mine.anchors is None:
            raise UserError('Mimic: a box goes to the level of its size, which the anchors of the '
                            'student tell, and it has none; use an SSD head, or a term such as HGD')
        if self.teacher_boxes:
            self._learn_teacher(mine, theirs)
            self.teacher_input = spec.teacher.input_size
        super().setup(spec)

    def _learn_teacher(self, mine: HeadSpec, theirs: HeadSpec | None) -> None:
        if theirs is None or theirs.anchors is None or theirs.coder is None \
                or theirs.coder['type'] != 'DeltaXYWHBBoxCoder':
            raise UserError('Mimic: the detections of a teacher whose head is '
                            f'{theirs.kind if theirs else "of two stages"} cannot be decoded here; '
                            'set teacher_boxes=False to use the objects alone')
        self.teacher_head = theirs
        same = mine.anchors.shape == theirs.anchors.shape and torch.allclose(
            mine.anchors, theirs.anchors.to(mine.anchors), atol=1e-3)
        if not same:  # where they agree the batch's own are taken, of whatever size it is
            self.teacher_anchors = theirs.anchors.detach().clone()
        if theirs.project is not None:
            self.teacher_project = theirs.bins

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        boxes = self._boxes(lesson)
        count = sum(map(len, boxes))
        by_level = self._by_level(lesson, boxes)
        total = 0.0
        for pair, student, teacher in self.maps(lesson):
            mine = by_level[pair.student.tap]
            total = total + student.sum() * 0
            if sum(map(len, mine)):
                u = crops(teacher, mine, lesson.input_shape, self.crop)
                v = crops(self.adapters[pair.name](student), mine, lesson.input_shape, self.crop)
                total = total + (u - v).square().mean((1, 2, 3)).sum()
        found = total.new_tensor(float(count))
        return dict(loss=total / (2 * mean_count(found)), boxes=found)

    @torch.no_grad()
    def _boxes(self, lesson: Lesson) -> list[Tensor]:
        """Per image (n, 4): the objects, then the teacher's detections, best first."""
        boxes = lesson.boxes
        if self.teacher_boxes:
            boxes = [torch.cat([own, seen.to(own)]) for own, seen in
                     zip(boxes, self._detections(lesson), strict=True)]
        kept = []
        for image in boxes:
            size = image[:, 2:] - image[:, :2]
            kept.append(image[(size >= 1).all(1)][:self.max_boxes])  # thinner ones hold no cell
        return kept

    def _detections(self, lesson: Lesson) -> list[Tensor]:
        head = lesson.teacher.head
        logits = head.cls.to(precise(head.cls))
        deltas = point_deltas(head.reg.to(precise(head.reg)), self.teacher_project)
        sigmoid = self.teacher_head.use_sigmoid
        scores = logits.sigmoid() if sigmoid else logits.softmax(-1)[..., :-1]      # (B, M, C)
        anchors = lesson.anchors if self.teacher_anchors is None else self.teacher_anchors
        shape = lesson.input_shape if self.teacher_anchors is None else self.teacher_input
        to_student = anchors.new_tensor([lesson.input_shape[1] / shape[1],
                                         lesson.input_shape[0] / shape[0]] * 2)
        coder = self.teacher_head.coder
        found = []
        for image_scores, image_deltas in zip(scores, deltas, strict=True):
            anchor, label = (image_scores >= self.score).nonzero(as_tuple=True)
            score, best = image_scores[anchor, label].sort(descending=True, stable=True)
            anchor, label = anchor[best][:CANDIDATES], label[best][:CANDIDATES]
            boxes = delta2bbox(anchors[anchor].to(deltas), image_deltas[anchor], coder['means'],
                               coder['stds'], max_shape=shape)
            if len(boxes):  # mmcv's NMS refuses none
                _, keep = batched_nms(boxes, score[:CANDIDATES], label,
                                      dict(type='nms', iou_threshold=self.iou))
                boxes = boxes[keep]
            found.append(boxes * to_student)
        return found

    def _by_level(self, lesson: Lesson, boxes: list[Tensor]) -> dict[str, list[Tensor]]:
        """By student tap, per image: the boxes whose size is nearest to that level's anchors'."""
        with torch.no_grad():
            sizes = {tuple(a.shape[:2]): _log_size(a.reshape(-1, 4)).mean()
                     for a in lesson.level_anchors}
            taps = {p.student.tap: sizes[tuple(lesson.student.maps[p.student.tap].shape[-2:])]
                    for p in self.pairs}
            wanted = torch.stack(list(taps.values()))
            level = [(_log_size(b)[:, None] - wanted.to(b)).abs().argmin(1) for b in boxes]
        return {tap: [b[at == i] for b, at in zip(boxes, level, strict=True)]
                for i, tap in enumerate(taps)}


def _log_size(boxes: Tensor) -> Tensor:
    """log of the side of the square of equal area."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3).log().mean(1)
