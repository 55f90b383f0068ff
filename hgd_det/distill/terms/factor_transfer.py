"""Factor transfer (Kim et al., NeurIPS 2018): the teacher's map retold in fewer channels."""
from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn

from hgd_det.distill.adapters import resize_map
from hgd_det.distill.functional import EPS, unit_vectors
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import Pair
from hgd_det.distill.term import Spec
from hgd_det.errors import UserError

SLOPE = 0.1


@TERMS.register_module()
class FactorTransfer(MapTerm):
    """Imitate not the teacher's map but its factor: what an auto-encoder of that map keeps of it.

    ::

        first 10 %   L = 100 sum over pairs of mean |D(E(Z)) - Z|      the paraphraser learns
        then         L = sum over pairs of mean |F_S / |F_S| - F_T / |F_T||
                     F_T = E(Z), frozen;  F_S = T(S)                   each image's factor flattened

    The paraphraser E, D (three 3x3 convolutions to ``rate`` of the channels, three transposed ones back)
    sees the teacher only, the translator T (three 3x3 convolutions) the student only. All have a
    LeakyReLU of slope 0.1 behind them and no BatchNorm. A factor that is 0 everywhere has no direction
    and stays 0; a factor of another size is resized to the teacher's.

    The authors train the paraphraser before the student begins. Here it is the first part of the same
    run, and detection goes on meanwhile: the two share no parameter, so the student trains just as it
    would alone (if gradients are clipped, their norm includes the paraphraser's). To hold it still would
    cost it a tenth of the run and teach the paraphraser nothing.

    The phase follows from the iteration alone. E is copied while it learns, and transfer reads the copy,
    which no optimizer's momentum or weight decay touches; it lacks the phase's last step.

    ``weight`` is the transfer's alone: 500 in the authors' code, whose maps are CIFAR's. With ``'auto'``
    it is measured from the first transfer on.

    Without ``sizes`` the maps are the second and the third largest of those that heads read (19 and 10 of
    SSD300).

    Args:
        rate: ``k``, the factor's channels as a share of the teacher's.
        pretrain: Share of the training in which the paraphraser learns.
        reconstruction: Weight of the paraphraser's loss. Under SGD it scales the learning rate: the authors'
            0.1 is 100 times a detector's 0.001. Adam does not notice.
    """
    schedule = dict(weight=500.0)
    adapts = False      # translators stand in for adapters

    def __init__(self, *, rate: float = 0.5, pretrain: float = 0.1, reconstruction: float = 100.0, **stages):
        super().__init__(**stages)
        if not rate > 0:
            raise UserError(f'FactorTransfer: rate={rate}; it is a share of the channels, above 0')
        if not 0 < pretrain < 1:
            raise UserError(f'FactorTransfer: pretrain={pretrain}; it is a share of the training, above 0 '
                            '(a paraphraser that never learned has nothing to say) and below 1')
        if not reconstruction > 0:
            raise UserError(f'FactorTransfer: reconstruction={reconstruction}; it must be above 0, or the '
                            'paraphraser would never learn')
        self.rate, self.pretrain, self.reconstruction = rate, pretrain, reconstruction
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        self.frozen, self.translators = nn.ModuleList(), nn.ModuleList()
        self.register_buffer('paraphrased', torch.zeros((), dtype=torch.long))
        self._learned = False

    def select(self, pairs: list[Pair], spec: Spec) -> list[Pair]:
        named = self.selection['sizes'] is not None or self.selection['taps'] is not None
        return pairs if named else pairs[1:3] or pairs

    def setup(self, spec: Spec) -> None:
        super().setup(spec)
        for pair in self.pairs:
            mine, theirs = pair.student.channels, pair.teacher.channels
            factor = max(1, round(self.rate * theirs))
            self.encoders.append(convolutions(theirs, theirs, factor, factor))
            self.decoders.append(convolutions(factor, factor, theirs, theirs, kind=nn.ConvTranspose2d))
            self.translators.append(convolutions(mine, mine, factor, factor))
        self.frozen.extend(copy.deepcopy(self.encoders).requires_grad_(False))

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        iteration, total = lesson.progress
        first_part = iteration < max(1, round(self.pretrain * total))
        return self._paraphrase(lesson) if first_part else self._transfer(lesson)

    def _paraphrase(self, lesson: Lesson) -> dict[str, Tensor]:
        self._keep()
        total, log = 0.0, {}
        coders = zip(self.encoders, self.decoders, strict=True)
        for (pair, _, Z), (encoder, decoder) in zip(self.maps(lesson), coders, strict=True):
            error = (decoder(encoder(Z)) - Z).abs().mean()
            total = total + error
            log[f'unexplained_{pair.name}'] = error.detach() / Z.abs().mean().clamp(min=EPS)
        return dict(aside_loss=self.reconstruction * total, **log)

    @torch.no_grad()
    def _keep(self) -> None:
        for copied, learned in zip(self.frozen.parameters(), self.encoders.parameters(), strict=True):
            copied.copy_(learned)
        self.paraphrased += 1

    def _transfer(self, lesson: Lesson) -> dict[str, Tensor]:
        self._learned = self._learned or bool(self.paraphrased)     # asked for once, as it is waited for
        if not self._learned:
            raise UserError(f'FactorTransfer: the paraphraser never learned: its part of the run, '
                            f'pretrain={self.pretrain}, was over before the term began; choose a warmup '
                            'below pretrain, best none')
        values = {}
        coders = zip(self.frozen, self.translators, strict=True)
        for (pair, S, Z), (encoder, translator) in zip(self.maps(lesson), coders, strict=True):
            with torch.no_grad():
                factor = encoder(Z)                                      # (B, k C_T, H, W)
            told = resize_map(translator(S), factor.shape[-2:])
            error = unit_vectors(told.flatten(1)) - unit_vectors(factor.flatten(1))
            values[pair.name] = error.abs().mean()
        return self.summed(values)

    def describe(self) -> list[dict]:
        return [dict(pair.describe(), name=pair.name, adapter=f'3 3x3 convs {pair.student.channels}->'
                     f'{translator[-2].out_channels}, of {pair.teacher.channels}')
                for pair, translator in zip(self.pairs, self.translators, strict=True)]


def convolutions(*channels: int, kind: type[nn.Module] = nn.Conv2d) -> nn.Sequential:
    """3x3 convolutions from each number of channels to the next, each with its LeakyReLU."""
    return nn.Sequential(*itertools.chain.from_iterable(
        (kind(before, after, 3, padding=1), nn.LeakyReLU(SLOPE))
        for before, after in itertools.pairwise(channels)))
