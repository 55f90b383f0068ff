"""What terms that compare feature maps have in common: pairs of stages, adapters, precision, the log."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from hgd_det.distill.adapters import POLICIES, build_adapter, resize_map
from hgd_det.distill.functional import choose, precise
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.stages import Pair
from hgd_det.distill.term import Spec, Term
from hgd_det.errors import UserError

#: Of every such term, where the method does not want them otherwise.
OPTIONS = dict(select='heads', act='post', l2norm='post', unmatched='ignore', sizes=None, max_size=None,
               taps=None, adapter='always')


class MapTerm(Term):
    """``L = sum over pairs of the mean of distance(V, Z)``: V the adapted student map, Z the teacher's.

    A method is its :meth:`distance`, and in ``defaults`` the options below where the method wants them
    otherwise. One that is more than that overrides a step: :meth:`adapter_for` (another adapter),
    :meth:`select` (which pairs remain), :meth:`forward`, which then goes through :meth:`maps`.

    The log has the value of every pair as ``d_<pair>``, under the same name for every method.

    Args:
        select: Which maps stand for a size: ``heads`` are those that a prediction head reads; see
            :func:`~hgd_det.distill.stages.select_stages`.
        act, l2norm: ``post`` or ``pre`` the activation, and SSD's L2Norm on the first map.
        unmatched: ``ignore`` stages without a counterpart of their size, or ``resize`` them.
        sizes: Keep only the pairs whose teacher map has one of these heights.
        max_size: Leave out maps larger than this.
        taps: Instead of that choice, pairs by name: ``[dict(student=TAP, teacher=TAP), ...]``.
        adapter: ``always`` a 1x1 convolution to the teacher's channels, on channel ``mismatch`` only, or
            ``none``.
    """
    needs = frozenset({'maps'})
    schedule = dict(weight='auto')
    defaults: ClassVar[Mapping] = {}    # the method's own, of OPTIONS
    adapts: ClassVar[bool] = True       # False: the method compares maps of any channels
    policies: ClassVar[Sequence[str]] = POLICIES    # of the adapter
    min_cells: ClassVar[int] = 1        # smaller maps have nothing to compare

    def __init__(self, *, select: str | None = None, act: str | None = None, l2norm: str | None = None,
                 unmatched: str | None = None, sizes: Sequence[int] | None = None,
                 max_size: int | None = None, taps: Sequence[dict] | None = None,
                 adapter: str | None = None):
        super().__init__()
        name = self.title
        if adapter is not None and not self.adapts:
            raise UserError(f'{name}: adapter={adapter!r}, but it has none: it compares maps of any channels')
        given = dict(select=select, act=act, l2norm=l2norm, unmatched=unmatched, sizes=sizes,
                     max_size=max_size, taps=taps, adapter=adapter)
        self.selection = {**OPTIONS, **self.defaults, **{k: v for k, v in given.items() if v is not None}}
        self.adapter = self.selection.pop('adapter')
        choose(name, 'adapter', self.adapter, self.policies)
        if taps is not None and (not taps or sizes is not None or max_size is not None):
            raise UserError(f'{name}: taps names the pairs itself; give at least one, and leave sizes and '
                            'max_size out')
        self.pairs: list[Pair] = []
        self.adapters = nn.ModuleDict()

    def setup(self, spec: Spec) -> None:
        found = spec.pairs(**self.selection)
        cells = [min(math.prod(p.student.size), math.prod(p.teacher.size)) for p in found]
        self.pairs = self.select([p for p, n in zip(found, cells, strict=True) if n >= self.min_cells], spec)
        if not self.pairs:
            raise UserError(f'{self.title} compares cells, and no pair has {self.min_cells} of '
                            f'them (sizes {[p.teacher.size[0] for p in found]}); choose larger '
                            'sizes or input_size')
        self.use_pairs(self.pairs)
        for pair in self.pairs if self.adapts else ():
            self.adapters[pair.name] = self.adapter_for(pair)

    def select(self, pairs: list[Pair], spec: Spec) -> list[Pair]:
        """Which of the pairs the method compares."""
        return pairs

    def adapter_for(self, pair: Pair) -> nn.Module:
        """Called as ``adapter(S, size)``."""
        return build_adapter(pair.student.channels, pair.teacher.channels, self.adapter)

    def maps(self, lesson: Lesson) -> Iterator[tuple[Pair, Tensor, Tensor]]:
        """Each pair, the student's map as it is, and the teacher's, a constant; both in float32."""
        for pair in self.pairs:
            student = lesson.student.maps[pair.student.tap]                 # (B, C_S, h, w)
            teacher = lesson.teacher.maps[pair.teacher.tap].detach()        # (B, C_T, H, W)
            dtype = precise(student, teacher)
            yield pair, student.to(dtype), teacher.to(dtype)

    def adapted(self, pair: Pair, student: Tensor, size: tuple[int, int]) -> Tensor:
        """V: the student's map at the teacher's channels and size."""
        return self.adapters[pair.name](student, size) if self.adapts else resize_map(student, size)

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        values = {pair.name: self.distance(self.adapted(pair, S, Z.shape[-2:]), Z, lesson).mean()
                  for pair, S, Z in self.maps(lesson)}
        return self.summed(values)

    @staticmethod
    def summed(values: Mapping[str, Tensor], **log: Tensor) -> dict[str, Tensor]:
        """The sum of the pairs' values as loss, each of them for the log, and what else is logged."""
        return dict(loss=sum(values.values()), **{f'd_{k}': v.detach() for k, v in values.items()}, **log)

    def distance(self, V: Tensor, Z: Tensor, lesson: Lesson) -> Tensor:
        """Of each image (B,), cell (B,H,W) or value: its mean is the pair's."""
        raise NotImplementedError

    def describe(self) -> list[dict]:
        rows = []
        for pair in self.pairs:
            parts = [str(self.adapters[pair.name])] if self.adapts else []
            if pair.student.size != pair.teacher.size:
                parts.append(f'resize {"x".join(map(str, pair.student.size))}->'
                             f'{"x".join(map(str, pair.teacher.size))}')
            rows.append(dict(pair.describe(), name=pair.name,
                             adapter=' + '.join(p for p in parts if p != 'none') or 'none'))
        return rows
