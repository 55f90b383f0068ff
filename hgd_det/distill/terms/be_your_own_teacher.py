"""Be Your Own Teacher (Zhang et al., ICCV 2019): the student's deep layers teach its shallow ones."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch.nn.functional as F
from torch import Tensor, nn

from hgd_det.distill.adapters import resize_map
from hgd_det.distill.detection import detection_loss
from hgd_det.distill.functional import divergence, l2_distance, only, precise, rows
from hgd_det.distill.head_term import require_ssd
from hgd_det.distill.heads import flatten
from hgd_det.distill.lesson import HeadOutput, Lesson, Targets
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import Pair, select_stages
from hgd_det.distill.term import HeadSpec, Spec, Term
from hgd_det.errors import UserError


@TERMS.register_module()
class BeYourOwnTeacher(Term):
    """Predict a level's objects from the stage before it too, and learn there what the level itself says.

    ::

        L = (1 - alpha) (L_main + sum_l L_l) + alpha T^2 sum_l KL_l + beta sum_l H_l

        V_l  = ReLU(BN(conv 3x3, stride 2 (S_l-1)))                from the stage before the level's map Z_l
        L_l  = 1/N+ (sum over hard_l of CE(z_l, y) + sum over pos_l of smoothL1(delta_l, t))
        KL_l = 1/N+ sum over hard of the main head in level l of KL(p_main || p_l)          p = softmax(z / T)
        H_l  = mean over images of sum over cells and channels of (V_l - Z_l)^2

    ``z_l`` and ``delta_l`` come from an auxiliary head on ``V_l``, one convolution each, with the level's
    own anchors and targets. What teaches, the main head's scores and its maps ``Z_l``, are constants:
    a gradient of KL and H reaches the stages before, never the main head. ``L_main``, the student's own
    losses, is scaled by the distiller. No teacher is read, and the branches end with training.

    In a classifier all branches name the same object. The levels of a detector look for different
    ones, so that here each is taught by its own level and not by the deepest.

    ``hard_l`` holds the negatives that branch l itself finds hardest in its level, three for each positive
    of an image there. ``N+`` counts the positives of all levels, as in ``L_main``: a box weighs as much
    in a branch as in the main head, however few share its level. With alpha = beta = 0 what remains is
    the sum of the detection losses.

    Defaults of alpha, beta and T are those of a public implementation for classifiers (luanyunteng). Its
    H is a sum over a batch of 128 vectors of 512 or 2048 numbers; here one image's map has as many as
    that whole batch, hence the mean over images, which also frees beta from the batch size.

    Args:
        alpha: Share of the soft scores; from 0 to below 1.
        beta: Weight of the maps' squared distance.
        temperature: ``T``.
        levels: The head's levels that get a branch, 0 being the largest map.
    """
    needs = frozenset({'maps', 'head', 'targets'})
    needs_teacher = False
    schedule = dict(weight=1.0)

    def __init__(self, *, alpha: float = 0.1, beta: float = 1e-6, temperature: float = 3.0,
                 levels: Sequence[int] = (0, 1, 2)):
        super().__init__()
        if not 0 <= alpha < 1:
            raise UserError(f'BeYourOwnTeacher: alpha={alpha}; it is a share from 0 to below 1')
        if not beta >= 0:
            raise UserError(f'BeYourOwnTeacher: beta={beta}; it cannot be negative')
        if not temperature > 0:
            raise UserError(f'BeYourOwnTeacher: temperature={temperature}; it must be above 0')
        self.alpha, self.beta, self.temperature, self.levels = alpha, beta, temperature, tuple(levels)
        self.scales_detection = {'loss': 1 - alpha}
        self.pairs: list[Pair] = []     # the stage before, and the level's map that teaches it
        self.branches = nn.ModuleList()
        self.register_buffer('bins', None, persistent=False)

    def setup(self, spec: Spec) -> None:
        head = spec.student_head
        require_ssd('BeYourOwnTeacher', 'student', head)
        stages = [group[-1] for group in select_stages(spec.student).values()]      # largest first
        at = [i for i, stage in enumerate(stages) if stage.source]
        per_cell = head.per_cell
        anchors = [stages[i].size[0] * stages[i].size[1] * a for i, a in zip(at, per_cell, strict=False)]
        if len(at) != len(per_cell) or sum(anchors) != len(head.anchors):
            raise UserError('BeYourOwnTeacher: the head must have one level for each size, largest first, '
                            f'but its {len(per_cell)} levels with {len(head.anchors)} anchors read maps of '
                            f'{[stages[i].size[0] for i in at]}')
        if not self.levels or not set(self.levels) <= set(range(len(at))):
            raise UserError(f'BeYourOwnTeacher: levels={list(self.levels)}; choose some of '
                            f'{list(range(len(at)))}, the levels of the student\'s head')
        if at[0] == 0 and 0 in self.levels:
            raise UserError(f'BeYourOwnTeacher: no stage comes before level 0, {stages[0]}, the largest map '
                            'of the student; leave 0 out of levels')
        for level in self.levels:
            before, main = stages[at[level] - 1], stages[at[level]]
            self.pairs.append(Pair(before, main, f's{main.size[0]}'))
            self.branches.append(Branch(before.channels, main.channels, per_cell[level], head))
        self.bins = head.bins
        self.student_taps = list(dict.fromkeys(
            stage.tap for pair in self.pairs for stage in (pair.student, pair.teacher)))

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        maps, head, targets = lesson.student.maps, lesson.student.head, lesson.targets
        edges = list(accumulate((h * w * a for h, w, a in head.levels), initial=0))
        detection, soft, hint = [], [], []
        for level, pair, branch in zip(self.levels, self.pairs, self.branches, strict=True):
            where = slice(edges[level], edges[level + 1])
            main = maps[pair.teacher.tap].detach()                      # (B, C_l, H, W)
            own, out = branch(maps[pair.student.tap], main.shape[-2:])
            part = restricted(targets, where)
            loss = detection_loss(out, part, ratio=lesson.neg_pos_ratio, bins=self.bins)
            detection.append(loss * part.num_positive / targets.num_positive)
            chosen = lesson.region('hard')[:, where]
            scores = [rows(cls, chosen).to(precise(out.cls)) / self.temperature
                      for cls in (head.cls[:, where].detach(), out.cls)]
            soft.append(only(divergence(*scores), chosen).sum() / targets.num_positive)
            hint.append(l2_distance(own, main).sum((1, 2)).mean())
        values = dict(detection=sum(detection), soft=sum(soft), hint=sum(hint))
        loss = ((1 - self.alpha) * values['detection'] + self.alpha * self.temperature ** 2 * values['soft']
                + self.beta * values['hint'])
        return dict(loss=loss, **{key: value.detach() for key, value in values.items()})

    def describe(self) -> list[dict]:
        return [dict(pair.describe(), teacher=f'own {pair.teacher.tap}', name=pair.name,
                     adapter=f'branch {pair.student.channels}->{pair.teacher.channels}')
                for pair in self.pairs]


class Branch(nn.Module):
    """From the stage before a level to a map like the level's, and a head like the level's own on it.

    The convolution gives half the size, rounded up, as SSD's stages have it; where they do not, the map
    is resized.
    """

    def __init__(self, before: int, channels: int, anchors: int, head: HeadSpec):
        super().__init__()
        self.num_base_priors = anchors      # flatten() reads it, as it does a head's
        self.bottleneck = nn.Sequential(
            nn.Conv2d(before, channels, 3, stride=2, padding=1, bias=False), Norm(channels), nn.ReLU())
        self.cls = nn.Conv2d(channels, anchors * head.cls_channels, 3, padding=1)
        self.reg = nn.Conv2d(channels, anchors * head.reg_channels, 3, padding=1)
        for conv in (self.cls, self.reg):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, before: Tensor, size: tuple[int, int]) -> tuple[Tensor, HeadOutput]:
        own = resize_map(self.bottleneck(before.to(precise(before))), size)
        return own, flatten(self, ([self.cls(own)], [self.reg(own)]))


class Norm(nn.BatchNorm2d):
    """A single value per channel (one image, a 1x1 map) has no variance: the running statistics serve it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def restricted(targets: Targets, where: slice) -> Targets:
    """The targets of some of the anchors."""
    parts = (targets.labels, targets.label_weights, targets.boxes, targets.box_weights)
    return Targets(*(part[:, where] for part in parts), targets.num_classes)
