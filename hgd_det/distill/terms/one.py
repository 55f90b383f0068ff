"""On-the-fly native ensemble (Lan et al., NeurIPS 2018): heads on one trunk teach each other together."""
from __future__ import annotations

import copy
import math

import torch
from mmengine.model import initialize
from torch import Tensor, nn

from hgd_det.distill.detection import detection_loss
from hgd_det.distill.functional import choose, divergence, only, precise, rows
from hgd_det.distill.head_term import require_ssd
from hgd_det.distill.heads import flatten
from hgd_det.distill.lesson import HeadOutput, Lesson, hard_negatives
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import evaluating
from hgd_det.distill.taps import Tap, Taps
from hgd_det.distill.term import Spec, Term
from hgd_det.errors import UserError

NORMS = ('group', 'none')


class Gate(nn.Module):
    """(B, m) shares of the branches: ``softmax(ReLU(norm(Linear(GAP(map)))))``."""

    def __init__(self, channels: int, branches: int, norm: str = 'group'):
        super().__init__()
        self.linear = nn.Linear(channels, branches)
        nn.init.ones_(self.linear.bias)     # without a norm: not all below ReLU's zero from the start
        self.norm = nn.GroupNorm(1, branches) if norm == 'group' else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.to(precise(x)).mean((2, 3))
        return self.norm(self.linear(pooled)).relu().softmax(1)


@TERMS.register_module()
class ONE(Term):
    """Train further heads beside the student's; their gated ensemble teaches each of them.

    ::

        g    = softmax(ReLU(norm(Linear(GAP(map)))))             m shares per image
        z_e  = sum_i g_i z_i                                     class logits; box deltas likewise
        L    = sum_i L_det(z_i) + L_det(z_e)
             + r(t) (T^2 / N+) sum_i sum_{a in hard} KL(p_e,a || p_i,a)     p = softmax(z / T)
        r(t) = exp(-5 (1 - min(1, t / R))^2)                     R = rampup of the training

    Branch 0 is the student's own head, and ``L_det(z_0)`` its own loss. The other branches are heads of
    the same make with weights of their own; they and the gate exist in training only. ``p_e`` is a
    constant in KL, whose gradient reaches every branch; the gate learns from ``L_det(z_e)``.

    All share the student's targets, and each mines its own negatives; ``hard`` is the ensemble's set.
    The term's weight scales KL alone, and 1 is the paper's loss. ``weight='auto'`` would measure KL while
    r is still near 0: set ``rampup=0`` with it, and a ``ramp`` of the schedule instead.

    The paper has BatchNorm in the gate, which needs several images: GroupNorm over the m numbers of each
    image takes its place, or nothing (a gate whose numbers all turn negative then stays uniform).

    Args:
        branches: m, the student's head included.
        temperature: T.
        rampup: R as a share of the training; 0 is full strength from the start.
        gate: Tap of the map that the gate looks at; default is the backbone's last output (SSD: fc7).
        gate_norm: ``group`` or ``none``.
    """
    needs = frozenset({'maps', 'head', 'targets'})
    needs_teacher, needs_model = False, True
    schedule = dict(weight=1.0)

    def __init__(self, *, branches: int = 3, temperature: float = 3.0, rampup: float = 0.27,
                 gate: str | None = None, gate_norm: str = 'group'):
        super().__init__()
        if branches < 2:
            raise UserError(f'ONE: branches={branches}; an ensemble needs at least 2')
        if not temperature > 0:
            raise UserError(f'ONE: temperature={temperature}; it must be above 0')
        if not 0 <= rampup <= 1:
            raise UserError(f'ONE: rampup={rampup}; it is a share of the training, from 0 to 1')
        choose('ONE', 'gate_norm', gate_norm, NORMS)
        if branches == 2 and gate_norm == 'group':
            raise UserError('ONE: branches=2 with gate_norm="group": of two numbers GroupNorm keeps only '
                            "which is larger, and the gate could not learn; use gate_norm='none'")
        self.count, self.temperature, self.rampup = int(branches), float(temperature), float(rampup)
        self.gate_tap, self.gate_norm = gate, gate_norm
        self.inputs: list[str] = []
        self.branches = nn.ModuleList()
        self.register_buffer('bins', None, persistent=False)

    def setup(self, spec: Spec) -> None:
        require_ssd('ONE', 'student', spec.student_head)
        self.bins = spec.student_head.bins
        self.inputs = sorted((m.tap for m in spec.student.sources), key=lambda tap: Tap.parse(tap).index or 0)
        self.gate_tap, channels = _gate_map(spec, self.gate_tap)
        self.student_taps = list(dict.fromkeys([*self.inputs, self.gate_tap]))
        self.branches.extend(_fresh(spec.student_model.bbox_head) for _ in range(self.count - 1))
        self.gate = Gate(channels, self.count, self.gate_norm)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        targets, ratio = lesson.targets, lesson.neg_pos_ratio
        gate = self.gate(lesson.student.maps[self.gate_tap])                        # (B, m)
        heads = [lesson.student.head, *self._further(lesson)]
        together = ensemble(heads, gate)
        region = targets.positive | hard_negatives(together.cls, targets, ratio)
        joint = detection_loss(together, targets, region=region, bins=self.bins)
        alone = sum(detection_loss(head, targets, ratio=ratio, bins=self.bins) for head in heads[1:])
        soft = rows(together.cls, region).detach() / self.temperature
        apart = sum(only(divergence(soft, rows(head.cls, region).to(soft) / self.temperature), region).sum()
                    for head in heads)
        apart = self.temperature ** 2 * apart / targets.num_positive
        ramp = self.ramp(lesson.progress.fraction)
        shares = {f'gate_{i}': share for i, share in enumerate(gate.mean(0))}
        return dict(loss=ramp * apart, aside_loss=alone + joint, ensemble=joint, ramp=gate.new_full((), ramp),
                    **shares)

    def _further(self, lesson: Lesson) -> list[HeadOutput]:
        """What the branches but the first make of the maps that the student's head reads."""
        maps = [lesson.student.maps[tap] for tap in self.inputs]
        maps = [x.to(precise(x)) for x in maps]
        return [flatten(branch, branch(maps)) for branch in self.branches]

    def ramp(self, fraction: float) -> float:
        """``r(t)`` where that share of the training has passed."""
        risen = min(1.0, fraction / self.rampup) if self.rampup else 1.0
        return math.exp(-5 * (1 - risen) ** 2)


def ensemble(heads: list[HeadOutput], gate: Tensor) -> HeadOutput:
    """The sum of the outputs, each image's weighted with its row of the gate (B, m)."""
    def together(parts: list[Tensor]) -> Tensor:
        shares = gate.to(precise(gate, *parts)).unbind(1)
        return sum(share[:, None, None] * part for share, part in zip(shares, parts, strict=True))
    return HeadOutput(together([h.cls for h in heads]), together([h.reg for h in heads]), heads[0].levels)


def _fresh(head: nn.Module) -> nn.Module:
    """A head of the same make whose weights are drawn anew."""
    branch = copy.deepcopy(head)
    for module in branch.modules():
        if hasattr(module, 'reset_parameters'):     # what the head's own initialisation leaves out
            module.reset_parameters()
    if branch.init_cfg:
        initialize(branch, branch.init_cfg)
    return branch


@torch.no_grad()
def _gate_map(spec: Spec, tap: str | None) -> tuple[str, int]:
    """The gate's tap, by default the backbone's last output, and its channels."""
    model = spec.student_model
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *spec.student.input_size, device=parameter.device, dtype=parameter.dtype)
    with evaluating(model):
        if tap is None:
            outputs = model.backbone(image)
            tap = 'backbone' if isinstance(outputs, Tensor) else f'backbone[{len(outputs) - 1}]'
        with Taps(model, [tap]) as maps:
            model.extract_feat(image)
    seen = maps[tap]
    if seen.ndim != 4:
        raise UserError(f'ONE: gate={tap!r} is no map but of shape {tuple(seen.shape)}; name a module whose '
                        'output is (B, C, H, W)')
    return tap, seen.shape[1]
