"""FitNets (Romero et al., ICLR 2015): the lower half first, from a hint in the middle."""
from __future__ import annotations

from torch import Tensor

from hgd_det.distill.functional import l2_distance
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import Pair
from hgd_det.distill.term import Spec


@TERMS.register_module()
class FitNets(MapTerm):
    """First train the layers up to one map to give the teacher's, then the whole detector from there.

    ::

        first 30 %   L = 1/2 mean (r(S) - Z)^2          over cells, channels, images; no detection loss
        then         training with detection; the authors add the teacher's soft scores

    ``r`` is a 1x1 convolution, the map the largest one that a head reads (38x38 of SSD300). Stage two is
    a term of its own that begins where this one ends: ``LogitKD`` with ``warmup=0.3``.

    In stage one the layers behind the map get gradients of exactly 0, so they stay as they are, bit for
    bit, but for what an optimizer does without a gradient: weight decay shrinks them, and BatchNorm's
    running statistics follow the batches. Both stages follow from the iteration alone; a run resumes
    in the right one. The 30 % are ours. :class:`Hint` is the same loss on every map, beside detection.

    Args:
        size: Height of the teacher's map; default is the largest among ``select``.
    """
    schedule = dict(weight='auto', stop=0.3, detection=0.0)

    def __init__(self, *, size: int | None = None, **stages):
        super().__init__(sizes=None if size is None else [size], **stages)

    def select(self, pairs: list[Pair], spec: Spec) -> list[Pair]:
        return pairs[:1]

    def distance(self, V: Tensor, Z: Tensor, lesson: Lesson) -> Tensor:
        return l2_distance(V, Z, 'mean') / 2                # (B, H, W)
