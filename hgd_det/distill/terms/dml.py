"""Deep Mutual Learning (Zhang et al., CVPR 2018): two detectors that train together and teach each other."""
from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hgd_det.distill.boxes import point_deltas
from hgd_det.distill.detection import total_loss
from hgd_det.distill.functional import agreement, only, precise, rows
from hgd_det.distill.head_term import HeadTerm
from hgd_det.distill.heads import Watching, head_spec
from hgd_det.distill.lesson import HeadOutput, Lesson, hard_negatives
from hgd_det.distill.peer import make_peer
from hgd_det.distill.registry import TERMS
from hgd_det.distill.term import Spec, same_anchors
from hgd_det.errors import UserError


@TERMS.register_module()
class DML(HeadTerm):
    """Train a second detector, the peer, on the same batches; each imitates the other's class scores.

    ::

        L_S = L_det,S + w D(P, S)        L_P = L_det,P + w D(S, P)        the first of D is a constant

        D(a, b) = T^2 / N+ sum_{region} KL(p_a || p_b) + boxes / (2 N+) sum_{pos} |delta_a - delta_b|^2

    with p = softmax(z / T), or sigmoid(z / T) class by class. Nobody teaches from above: no teacher is
    needed, and the peer may begin untrained. ``w`` is the term's weight; L_det,P has none.

    The two have no parameter in common and each gradient stays on its own side, so one optimizer that
    works parameter by parameter (SGD, Adam) does what two would. Clipping the gradient by its norm does
    not: it scales both by the norm of both. The peer trains while the term counts: leave out ``warmup``
    and ``stop``, or it stands still while the student goes on.

    The source distils whole images. Here the anchors are those that either loss mines, under the
    student's assignment, and both directions are computed in one step from the same forward passes.

    Args:
        peer: None: a detector like the student at other initial weights; or a config, or its path,
            whose ``model`` is the peer. It needs the student's classes and anchors.
        checkpoint: Where a peer with a config begins: a file or a work directory; None: untrained.
        temperature: ``T``.
        region: ``hard`` (both detectors' hard sets together), ``pos`` or ``all``. ``N+``, the number of
            anchors of objects, divides in each.
        boxes: Weight of the encoded boxes' part.
    """
    needs = frozenset({'head', 'targets', 'images'})
    needs_teacher, needs_model = False, True
    schedule = dict(weight=1.0)

    def __init__(self, *, peer: str | Mapping | None = None, checkpoint: str | None = None,
                 temperature: float = 1.0, region: str = 'hard', boxes: float = 0.0):
        super().__init__(region=region)
        if not temperature > 0:
            raise UserError(f'DML: temperature={temperature}; it must be above 0')
        if not boxes >= 0:
            raise UserError(f'DML: boxes={boxes}; it cannot be negative')
        self.peer_config, self.checkpoint = peer, checkpoint
        self.temperature, self.boxes = temperature, boxes

    def setup(self, spec: Spec) -> None:
        self.peer, self.as_peer_sees = make_peer('DML', spec.student_model, self.peer_config, self.checkpoint)
        mine, theirs = spec.student_head, head_spec(self.peer, spec.student.input_size)
        same_anchors('DML', mine, theirs, other='peer')
        self.learn(mine, theirs, other='peer')

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        with Watching(self.peer) as spy:
            losses = self.peer.loss(self.as_peer_sees(lesson.images.detach()), lesson.samples)
        return dict(aside_loss=total_loss(losses), **self.compare(lesson, spy.output()))

    def compare(self, lesson: Lesson, peer: HeadOutput) -> dict[str, Tensor]:
        """What each is to learn of the other, from the outputs of both."""
        student, targets = lesson.student.head, lesson.targets
        chosen = lesson.region(self.region)
        if self.region == 'hard':
            chosen = chosen | hard_negatives(peer.cls, targets, lesson.neg_pos_ratio)
        dtype = precise(student.cls, peer.cls)
        mine, theirs = (
            (rows(head.cls, chosen).to(dtype), point_deltas(rows(head.reg, targets.positive).to(dtype), bins))
            for head, bins in ((student, self.student_bins), (peer, self.teacher_bins)))

        def distance(constant: tuple, learner: tuple) -> Tensor:
            scores, boxes = (a.detach() for a in constant)
            value = self.temperature ** 2 * only(self.divergence(
                scores / self.temperature, learner[0] / self.temperature), chosen).sum()
            if self.boxes:
                value = value + self.boxes / 2 * only(boxes - learner[1], targets.positive).square().sum()
            return value / targets.num_positive  # an empty choice sums to 0 and still hangs on the learner
        return dict(loss_student=distance(theirs, mine), loss_peer=distance(mine, theirs),
                    agreement=agreement(mine[0], theirs[0], chosen))
