"""PKD (Cao et al., NeurIPS 2022): imitate how a channel varies, not how strong it is."""
from __future__ import annotations

from torch import Tensor

from hgd_det.distill.lesson import Lesson
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS

LEAST = 1e-6    # added to a deviation, so that a channel that never changes is 0


@TERMS.register_module()
class PKD(MapTerm):
    """The correlation of every channel of student and teacher over the cells of the batch.

    ::

        N(F) = (F - mean) / (std + 1e-6)        channel by channel, over the images and cells of the batch
        L    = sum over pairs of mean over channels, cells, images of 1/2 (N(V) - N(Z))^2
             = sum over pairs of (n - 1) / n times the mean over channels of 1 - r(V, Z)

    ``r`` is Pearson's correlation over the n cells of the batch. Scale and offset of a channel, which differ
    between detectors of different kinds, play no part; few strong channels do not outweigh the rest.

    The authors' weights are 6 for two-stage detectors and 10 for RetinaNet, summed over FPN's levels. Maps
    of a single cell are left out: between the images of a small batch a correlation is little more than a
    sign, and its gradient is divided by a deviation that can be all rounding. In data-parallel training each
    process standardises its own images, as BatchNorm does.
    """
    schedule = dict(weight=10.0)
    defaults = dict(adapter='mismatch')
    min_cells = 2

    def distance(self, V: Tensor, Z: Tensor, lesson: Lesson) -> Tensor:
        return (standardized(V) - standardized(Z)).square() / 2         # (B, C, H, W)


def standardized(x: Tensor) -> Tensor:
    """(B, C, H, W), every channel at mean 0 and deviation 1 over the batch."""
    deviation, mean = (x.std((0, 2, 3), keepdim=True), x.mean((0, 2, 3), keepdim=True))
    return (x - mean) / (deviation + LEAST)
