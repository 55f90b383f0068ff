"""Hands-on Guidance Distillation (Qin et al., ICME 2021): imitate the teacher stage by stage."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from hgd_det.device import launches, sent
from hgd_det.distill.adapters import resize_map
from hgd_det.distill.cells import Cells, box_masks, cells_of
from hgd_det.distill.functional import (
    DEAD,
    channel_norm,
    channel_statistic,
    choose,
    focal_factors,
    normalized_weights,
    padded_boxes,
    precise,
    shared_box_mask,
)
from hgd_det.distill.imitation import imitation
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.map_term import MapTerm
from hgd_det.distill.registry import TERMS
from hgd_det.distill.stages import Pair
from hgd_det.distill.whole_maps import imitations
from hgd_det.errors import UserError

OPTIONS = dict(
    distance=('cosine', 'l2'), l2_reduce=('sum', 'mean'),
    macro=('none', 'attention', 'focal', 'mean', 'variance'),
    micro=('none', 'mean', 'variance', 'gt_mask'),
    focal=('paper', 'intent'), mask=('overlap', 'center', 'area'), empty=('zero', 'uniform'),
    zero=('drop', 'keep'), stat_norm=('none', 'rms'))
STATISTICS = ('mean', 'variance')


@TERMS.register_module()
class HGD(MapTerm):
    """Imitate the maps of every stage, weighing the stages and the cells of each.

    ::

        L = sum_s mean_b u_b^s D_b^s,   D_b^s = sum_ij v_ij l_ij / sum_ij v_ij

    ``l_ij`` is the distance between the vectors along channels of the adapted student map and the
    teacher map in one cell; ``v`` (micro) weighs cells of a stage, ``u`` (macro) weighs stages.

    With ``mean`` or ``variance``: ``v_ij = sigmoid(statistic of the student's own vector)`` and
    ``u = mean_ij v_ij`` over all cells of the student's map, whatever ``micro`` is. With ``focal``:
    ``L = sum_s (1-p_s)^gamma l_s``, ``l_s = mean_b D_b^s``, ``p_s = l_s / sum l``. With
    ``attention``: ``u = n_stages softmax_s(Linear(mean_ij S))``, learnt with the student, starting
    at 1. A student map of another size is resized to the teacher's, and ``v`` with it.

    Defaults are the paper's best. Why each of them is so: docs/methods/hgd.md.

    Args:
        distance: ``cosine``: ``1 - <V,Z>/(|V||Z|)``. ``l2``: ``sum_c (V-Z)^2``.
        l2_reduce: ``mean`` divides that sum by the number of channels.
        macro: ``none``, ``attention``, ``focal``, ``mean`` or ``variance``.
        micro: ``none``, ``mean``, ``variance`` or ``gt_mask`` (1 inside any object's box, else 0).
        focal: ``paper``: ``(1-p)^gamma``, as printed. ``intent``: ``p^gamma``, as its prose means.
        gamma: Exponent of ``focal``.
        detach_weights: Treat u and v as constants. Otherwise the student can lower its loss by
            flattening its features. (``attention`` always learns.)
        mask: Which cells a box marks: ``overlap``, ``center`` or ``area``.
        empty: A stage of an image without any marked cell counts ``zero``, or ``uniform``ly.
        zero: ``drop`` cells where the teacher's vector is 0 from a cosine's mean, or ``keep`` them
            at distance 1 without gradient. For ``l2`` such a cell is a target like any other.
        stat_norm: ``rms`` takes statistics of ``S / rms(S)``, against saturated sigmoids.
    """
    schedule = dict(weight='auto', warmup=0.05)
    defaults = dict(select='source')

    def __init__(self, *, distance: str = 'cosine', l2_reduce: str = 'sum', macro: str = 'variance',
                 micro: str = 'gt_mask', focal: str = 'paper', gamma: float = 2.0,
                 detach_weights: bool = True, mask: str = 'overlap', empty: str = 'zero',
                 zero: str = 'drop', stat_norm: str = 'none', **stages):
        super().__init__(**stages)
        given = dict(distance=distance, l2_reduce=l2_reduce, macro=macro, micro=micro, focal=focal,
                     mask=mask, empty=empty, zero=zero, stat_norm=stat_norm)
        for name, value in given.items():
            choose('HGD', name, value, OPTIONS[name])
        if not gamma >= 0:
            raise UserError(f'HGD: gamma={gamma}; give a number from 0 up')
        self.measure, self.l2_reduce = distance, l2_reduce
        self.macro, self.micro = macro, micro
        self.focal, self.gamma, self.detach_weights = focal, gamma, detach_weights
        self.mask, self.empty, self.zero, self.stat_norm = mask, empty, zero, stat_norm
        self.needs = frozenset({'maps', 'boxes'} if micro == 'gt_mask' else {'maps'})
        self.attention = nn.ModuleDict()

    def adapter_for(self, pair: Pair) -> nn.Module:
        adapter = super().adapter_for(pair)
        if self.macro == 'attention':
            gate = nn.Linear(pair.student.channels, 1)
            nn.init.zeros_(gate.weight)  # all stages alike until learnt otherwise
            nn.init.zeros_(gate.bias)
            self.attention[pair.name] = gate
        return adapter

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        if launches(next(iter(lesson.student.maps.values()))):
            return self._all_stages(lesson)
        students = [lesson.student.maps[p.student.tap] for p in self.pairs]
        teachers = [lesson.teacher.maps[p.teacher.tap] for p in self.pairs]
        u = self._attention(students) if self.macro == 'attention' else None

        values, factors, log = [], [], {}
        for i, (pair, S, Z) in enumerate(zip(self.pairs, students, teachers, strict=True)):
            statistic = self._statistics(S)
            u_B = u[:, i] if u is not None else self._macro(statistic, S, Z)
            v_BHW, norm_BHW = self._micro(statistic, Z, lesson)
            adapter = self.adapters[pair.name]
            value, D_B = imitation(
                resize_map(S.to(precise(S)), Z.shape[-2:]) if S.shape[-2:] != Z.shape[-2:] else S,
                Z, getattr(adapter, 'weight', None), getattr(adapter, 'bias', None),
                normalized_weights(v_BHW), u_B / len(S), distance=self.measure,
                l2_reduce=self.l2_reduce, z_norm=norm_BHW)
            values.append(value)
            factors.append(u_B.detach().mean())
            log[f'd_{pair.name}'] = D_B.mean()

        return self._summed(torch.stack(values), factors, log)

    def _summed(self, values: Tensor, factors, log: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of the stages' values (S,), and the log with the factor of each."""
        if self.macro == 'focal':
            f_S = focal_factors(self._focal_losses(values), self.gamma, self.focal)
            values, factors = f_S * values, f_S.detach()
        for pair, factor in zip(self.pairs, factors, strict=True):
            log[f'u_{pair.name}'] = factor
        return dict(loss=values.sum(), **log)

    def _all_stages(self, lesson: Lesson) -> dict[str, Tensor]:
        """The same of all stages at once, in few operations: what is small lies side by side in (B, T)."""
        students = [lesson.student.maps[p.student.tap] for p in self.pairs]
        teachers = [lesson.teacher.maps[p.teacher.tap].detach() for p in self.pairs]
        dtype = precise(*students, *teachers)
        like = students[0].new_empty(0, dtype=dtype)
        own = cells_of([S.shape[-2:] for S in students], like)
        cells = cells_of([Z.shape[-2:] for Z in teachers], like)
        statistic = self._all_statistics(students)
        if self.macro in STATISTICS:
            u_BS = own.sums(statistic[self.macro]) / sent(own.counts, like, dtype)
        else:
            u_BS = self._attention(students) if self.macro == 'attention' else \
                like.new_ones(len(students[0]), len(self.pairs))
        norm = None
        if self.measure == 'cosine':
            norm = torch.cat([channel_norm(Z).flatten(1) for Z in teachers], 1).to(dtype)
        v = self._all_micro(statistic, own, cells, lesson, like)
        if norm is not None and self.zero == 'drop':
            v = v * (norm >= DEAD)
        total = cells.sums(v)
        w = v * cells.spread(1 / total.masked_fill(total <= 0, 1))
        maps = [resize_map(S.to(dtype), Z.shape[-2:]) if S.shape[-2:] != Z.shape[-2:] else S
                for S, Z in zip(students, teachers, strict=True)]
        adapters = [self.adapters[pair.name] for pair in self.pairs]
        values, D = imitations(
            maps, teachers, *([getattr(a, part, None) for a in adapters] for part in ('weight', 'bias')), w,
            u_BS / len(v), cells, distance=self.measure, l2_reduce=self.l2_reduce, z_norm=norm,
            alike=self.macro != 'focal')
        log = {f'd_{pair.name}': d for pair, d in zip(self.pairs, D.mean(0).unbind(), strict=True)}
        return self._summed(values, u_BS.detach().mean(0).unbind(), log)

    def _all_statistics(self, students: list[Tensor]) -> dict[str, Tensor]:
        """``{kind: v (B,T)}``, as :meth:`_statistics`."""
        sources = [S.detach() if self.detach_weights else S for S in students]
        return {kind: torch.cat([channel_statistic(S, kind, self.stat_norm).flatten(1)
                                 for S in sources], 1).sigmoid()
                for kind in STATISTICS if kind in (self.macro, self.micro)}

    def _all_micro(self, statistic: dict[str, Tensor], own: Cells, cells: Cells, lesson: Lesson,
                   like: Tensor) -> Tensor:
        """(B,T): each cell's weight, as :meth:`_micro` has it, but for dead cells."""
        if self.micro in STATISTICS:
            parts = own.parts(statistic[self.micro])
            return torch.cat([resize_map(v.view(len(v), 1, *mine), size).flatten(1) for v, mine, size in zip(
                parts, own.sizes, cells.sizes, strict=True)], 1)
        if self.micro != 'gt_mask':
            return like.new_ones(lesson.batch_size, len(cells.stage))
        boxes, real = padded_boxes(lesson)
        v = lesson.constant(('box_masks', cells.sizes, self.mask), lambda: box_masks(
            boxes, real, cells.sizes, lesson.input_shape, self.mask)).to(like.dtype)
        return v + cells.spread((cells.sums(v) <= 0).to(v.dtype)) if self.empty == 'uniform' else v

    def _statistics(self, S: Tensor) -> dict[str, Tensor]:
        """``{kind: v (B,h,w)}`` at the student's own resolution, for the kinds u or v ask for."""
        source = S.detach() if self.detach_weights else S
        return {kind: channel_statistic(source, kind, self.stat_norm).sigmoid()
                for kind in STATISTICS if kind in (self.macro, self.micro)}

    def _macro(self, statistic: dict[str, Tensor], S: Tensor, Z: Tensor) -> Tensor:
        """(B,): a stage's weight in each image; 1 where macro weights are none or come later."""
        if self.macro in STATISTICS:
            return statistic[self.macro].mean((1, 2))
        return torch.ones(len(S), dtype=precise(S, Z), device=S.device)

    def _attention(self, students: list[Tensor]) -> Tensor:
        """(B,S)"""
        a_BS = torch.cat([self.attention[pair.name](S.mean((2, 3), dtype=precise(S)))
                          for pair, S in zip(self.pairs, students, strict=True)], dim=1)
        return len(self.pairs) * a_BS.softmax(1)

    def _micro(self, statistic: dict[str, Tensor], Z: Tensor,
               lesson: Lesson) -> tuple[Tensor, Tensor | None]:
        """(B,H,W): each cell's weight at the teacher's resolution; and the teacher's norms."""
        shape, dtype = (len(Z), *Z.shape[-2:]), precise(Z)
        if self.micro in STATISTICS:
            v = resize_map(statistic[self.micro][:, None], shape[1:])[:, 0]
        elif self.micro == 'gt_mask':
            v = shared_box_mask(lesson, shape[1:], self.mask).to(Z.device, dtype)
            if self.empty == 'uniform':
                v = torch.where(v.any(2).any(1)[:, None, None], v, torch.ones_like(v))
        else:
            v = torch.ones(shape, dtype=dtype, device=Z.device)
        if self.measure != 'cosine':
            return v, None
        norm = channel_norm(Z, v > 0 if self.micro == 'gt_mask' else None)
        return (v * (norm >= DEAD) if self.zero == 'drop' else v), norm

    def _focal_losses(self, values: Tensor) -> Tensor:
        """The losses that p is made of: the whole batch's, over all data-parallel processes."""
        if not self.detach_weights:
            return values
        losses = values.detach().clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(losses)
            losses /= torch.distributed.get_world_size()
        return losses
