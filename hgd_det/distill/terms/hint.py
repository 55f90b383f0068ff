"""Hints: plain L2 imitation of the maps that the prediction heads read."""
from __future__ import annotations

from torch import Tensor

from hgd_det.distill.functional import choose, l2_distance
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS

NORMALIZATIONS = ('none', 'channels')


@TERMS.register_module()
class Hint(MapTerm):
    """FitNets' hint (Romero et al., ICLR 2015) on a detector, trained end to end.

    ::

        L = sum over pairs of mean_ij sum_c (V - Z)^2 [/ C_T]         V = resize(adapter(S))

    averaged over the images. ``normalize='none'`` is the rival in HGD's Table 3 (Eq. 1 and 3 of
    that paper); ``'channels'`` divides by the teacher's channels, as the hint of Chen et al. does
    here, whose weight is 0.5.

    Args:
        normalize: ``'none'`` or ``'channels'``.
    """

    def __init__(self, *, normalize: str = 'none', **stages):
        super().__init__(**stages)
        choose('Hint', 'normalize', normalize, NORMALIZATIONS)
        self.normalize = normalize

    def distance(self, V: Tensor, Z: Tensor, lesson: Lesson) -> Tensor:
        return l2_distance(V, Z, 'mean' if self.normalize == 'channels' else 'sum')     # (B, H, W)
