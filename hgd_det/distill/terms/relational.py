"""Relational knowledge distillation (Park et al., CVPR 2019): how samples lie to one another."""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hgd_det.device import launches, sent
from hgd_det.distill.boxes import all_crops, crops
from hgd_det.distill.functional import choose, padded_boxes, unit_vectors
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import Pair
from hgd_det.distill.term import Spec
from hgd_det.errors import UserError

# Without `sizes`: the three largest maps hold objects; the second largest stands for an image.
MAPS = dict(instance=slice(0, 3), image=slice(1, 2))
FEWEST = 3         # two samples are always at the mean distance, and make no angle
ROUNDING = 1e-6    # vectors nearer than this share of their length differ by rounding only


@TERMS.register_module()
class Relational(MapTerm):
    """Imitate distances and angles between the embeddings of objects, or of images.

    ::

        d_ij  = |e_i - e_j| / mean of the positive |e_i - e_j|              each detector by itself
        c_ijk = cos(e_j - e_i, e_k - e_i)
        L     = 25 mean_ij  smoothL1(d_ij of student, of teacher)
              + 50 mean_ijk smoothL1(c_ijk of student, of teacher)          averaged over the maps

    ``unit='instance'``: e is the mean of an object's RoIAlign on a map, the samples are all objects of
    the batch, and the relations on each of the three largest maps that heads read are compared.
    ``'image'``: e is the mean of the second largest map, the samples are the images.

    Neither rotating, scaling nor moving all embeddings changes a relation, so channels may differ and
    there is no adapter. Means run over all N^2 and N^3 entries, those of a sample with itself
    included. Fewer than three samples have nothing to compare: the loss is 0. Where embeddings
    coincide, distance and cosines are 0 and have no gradient.

    With ``squared`` d is made of the lecture's ``psi = (|e_1 - e_2|^2, |e_1 - e_3|^2, ...)`` instead.

    Args:
        unit: ``instance`` or ``image``.
        distance_weight, angle_weight: Weights of the two parts; 0 leaves one out.
        squared: Compare squared distances.
        normalize: Scale embeddings to length 1 first.
        max_samples: Most samples per step; of more, a draw that depends on the iteration alone.
        crop: Cells per side of an object's crop.
    """
    needs = frozenset({'maps', 'boxes'})
    schedule = dict(weight=1.0)
    adapts = False

    def __init__(self, *, unit: str = 'instance', distance_weight: float = 25.0,
                 angle_weight: float = 50.0, squared: bool = False, normalize: bool = False,
                 max_samples: int = 64, crop: int = 7, **stages):
        super().__init__(**stages)
        choose('Relational', 'unit', unit, tuple(MAPS))
        if not (min(distance_weight, angle_weight) >= 0 < distance_weight + angle_weight):
            raise UserError(f'Relational: distance_weight={distance_weight}, angle_weight={angle_weight}; '
                            'neither may be negative, and one must be above 0')
        if max_samples < FEWEST:
            raise UserError(f'Relational: max_samples={max_samples}; relations need at least {FEWEST}')
        if crop < 1:
            raise UserError(f'Relational: crop={crop}; a crop has at least one cell')
        self.unit, self.squared, self.normalize = unit, squared, normalize
        self.distance_weight, self.angle_weight = distance_weight, angle_weight
        self.max_samples, self.crop = max_samples, crop
        if unit == 'image':
            self.needs = self.needs - {'boxes'}

    def select(self, pairs: list[Pair], spec: Spec) -> list[Pair]:
        named = self.selection['sizes'] is not None or self.selection['taps'] is not None
        return pairs if named else pairs[MAPS[self.unit]] or pairs

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        if launches(next(iter(lesson.student.maps.values()))):
            return self._masked(lesson)
        count, embed = self._samples(lesson)
        parts = [self._compare(embed(S), embed(Z)) if count >= FEWEST else S.sum() * S.new_zeros(2)
                 for _, S, Z in self.maps(lesson)]
        distance, angle = torch.stack(parts).mean(0)
        return dict(loss=self.distance_weight * distance + self.angle_weight * angle,
                    distance=distance.detach(), angle=angle.detach(),
                    samples=distance.new_tensor(float(count)))

    def _masked(self, lesson: Lesson) -> dict[str, Tensor]:
        """The same without a wait: which boxes are too thin is a mask, drawn are thin ones too."""
        if self.unit == 'image':
            boxes, total = None, lesson.batch_size
            places = list(range(total))
        else:
            boxes, real = padded_boxes(lesson)
            places = [i * real.shape[1] + j for i, own in enumerate(lesson.boxes) for j in range(len(own))]
            total = len(places)
        drawn = self._order(total, lesson).argsort()[:self.max_samples].sort()[0]
        drawn = torch.tensor(places, dtype=torch.long)[drawn]
        maps = list(self.maps(lesson))
        if len(drawn) < FEWEST:
            zero = sum(S.sum() for _, S, _ in maps) * 0
            return dict(loss=zero, distance=zero.detach(), angle=zero.detach(),
                        samples=zero.new_full((), float(len(drawn))))
        places = sent(drawn, maps[0][1])
        there = maps[0][1].new_ones(len(drawn))
        if boxes is not None:
            thick = (boxes[..., 2:] - boxes[..., :2] >= 1).all(2)
            there = thick.flatten().index_select(0, places).to(there)

        def embed(x: Tensor) -> Tensor:
            pooled = x.mean((2, 3)) if boxes is None else \
                all_crops(x, boxes, lesson.input_shape, self.crop).mean((3, 4)).flatten(0, 1)
            return self._scaled(pooled.index_select(0, places))
        parts = [self._compare(embed(S), embed(Z), there) for _, S, Z in maps]
        distance, angle = torch.stack(parts).mean(0)
        return dict(loss=self.distance_weight * distance + self.angle_weight * angle,
                    distance=distance.detach(), angle=angle.detach(), samples=there.sum())

    def _samples(self, lesson: Lesson) -> tuple[int, Callable[[Tensor], Tensor]]:
        """How many samples there are, and what pools a map (B, C, H, W) to their embeddings (N, C)."""
        if self.unit == 'image':
            drawn = self._draw(lesson.batch_size, lesson)
            return int(drawn.sum()), lambda x: self._scaled(x[drawn.to(x.device)].mean((2, 3)))
        # boxes thinner than a pixel hold no cell
        boxes = [b[(b[:, 2:] - b[:, :2] >= 1).all(1)] for b in lesson.boxes]
        drawn = self._draw(sum(map(len, boxes)), lesson)
        boxes = [b[own.to(b.device)]
                 for b, own in zip(boxes, drawn.split([len(b) for b in boxes]), strict=True)]
        return int(drawn.sum()), lambda x: self._scaled(
            crops(x, boxes, lesson.input_shape, self.crop).mean((2, 3)))

    def _draw(self, count: int, lesson: Lesson) -> Tensor:
        """(count,) bool, at most ``max_samples`` true; not from the global generator: a term leaves the
        student's random numbers as they are, and a resumed run draws the same."""
        return self._order(count, lesson) < self.max_samples

    @staticmethod
    def _order(count: int, lesson: Lesson) -> Tensor:
        return torch.randperm(count, generator=torch.Generator().manual_seed(lesson.progress.iteration))

    def _scaled(self, e: Tensor) -> Tensor:
        return unit_vectors(e) if self.normalize else e

    def _compare(self, student: Tensor, teacher: Tensor, there: Tensor | None = None) -> Tensor:
        """Distance and angle part, (2,), of embeddings (N, C_S) and (N, C_T); of those that are ``there``."""
        mine, theirs = differences(student), differences(teacher)
        if there is not None:
            both = (there[:, None] * there)[..., None]
            count = there.sum().clamp(min=1)
            mine, theirs = mine * both, theirs * both
            apart = F.smooth_l1_loss(relative_distances(psi(mine), self.squared),
                                     relative_distances(psi(theirs), self.squared), reduction='sum')
            angles = F.smooth_l1_loss(cosines(mine), cosines(theirs), reduction='sum')
            return torch.stack([2 * apart / count ** 2, angles / count ** 3]) * (count >= FEWEST)
        apart = F.smooth_l1_loss(relative_distances(psi(mine), self.squared),
                                 relative_distances(psi(theirs), self.squared), reduction='sum')
        # every pair stands twice in the mean over N^2, and the N zeros add nothing
        return torch.stack([2 * apart / len(student) ** 2,
                            F.smooth_l1_loss(cosines(mine), cosines(theirs))])


def differences(e: Tensor) -> Tensor:
    """(N, N, C): ``e_j - e_i`` at [i, j]; 0 where the two differ by no more than rounding."""
    difference, length = e[None] - e[:, None], e.square().sum(-1)
    noise = ROUNDING ** 2 * torch.maximum(length[None], length[:, None])
    return torch.where((difference.square().sum(-1) > noise)[..., None], difference, 0)


def psi(difference: Tensor) -> Tensor:
    """(N(N-1)/2,): the squared distance of every pair, (1,2) first, then (1,3)."""
    i, j = torch.triu_indices(len(difference), len(difference), 1, device=difference.device)
    return difference[i, j].square().sum(-1)


def relative_distances(square: Tensor, squared: bool = False) -> Tensor:
    """Distances, or their squares, divided by the mean of those above 0."""
    positive = square > 0
    d = square if squared else torch.where(positive, square, 1).sqrt() * positive
    total = d.sum()
    return d * positive.sum() / torch.where(total > 0, total, 1)


def cosines(difference: Tensor) -> Tensor:
    """(N, N, N): the cosine of the angle at i between j and k; 0 where j or k coincides with i."""
    unit = unit_vectors(difference)
    return unit @ unit.transpose(1, 2)
