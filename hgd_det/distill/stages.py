"""From two detectors to pairs of stages, without a list of layers or channels.

A dry run (:mod:`hgd_det.distill.survey`) finds the maps of the backbone and the extras that come out
of a block, in execution order. Maps of one spatial size form a group, each group gives its
representative, the stage, and stages of equal size in student and teacher are a pair.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from hgd_det.distill.survey import MapSpec, Survey, evaluating, survey
from hgd_det.distill.taps import Tap, TapError, Taps, find_module
from hgd_det.errors import UserError

__all__ = ['NAME', 'SELECTIONS', 'MapSpec', 'Pair', 'Survey', 'evaluating', 'explicit_pairs', 'pair_stages',
           'select_stages', 'survey']
SELECTIONS = ('source', 'literal', 'heads', 'all')
NAME = r's\d+(?:x\d+)?(?:_\d+)?'     # of a pair, as its values are logged: s75, s19x25, s19_0


@dataclass(frozen=True)
class Pair:
    """A student stage and the teacher stage it imitates."""
    student: MapSpec
    teacher: MapSpec
    name: str = field(default='')

    def describe(self) -> dict:
        return dict(size=list(self.teacher.size), student=self.student.tap,
                    teacher=self.teacher.tap, channels=[self.student.channels,
                                                        self.teacher.channels])


def select_stages(view: Survey, *, select: str = 'source', act: str = 'post',
                  l2norm: str = 'post') -> dict[tuple[int, int], list[MapSpec]]:
    """Choose the maps that stand for each spatial size, largest size first.

    Args:
        select: ``source`` takes the map a head reads where the size has one, else the last block's
            of that size; ``literal`` always the last map in execution order (for SSD that is the
            1x1 bottleneck of the next extra layer); ``heads`` only the maps heads read; ``all``
            the output of every block with an activation, each a stage of its own, beside those
            that ``source`` takes.
        act: ``post`` or ``pre`` the activation.
        l2norm: ``post`` or ``pre`` SSD's L2Norm on the first source.
    """
    if select not in SELECTIONS:
        raise UserError(f'select={select!r}; choose one of {", ".join(SELECTIONS)}')
    for key, value in (('act', act), ('l2norm', l2norm)):
        if value not in ('pre', 'post'):
            raise UserError(f"{key}={value!r}; choose 'pre' or 'post'")
    groups: dict[tuple[int, int], list[MapSpec]] = {}
    for spec in view.maps:
        groups.setdefault(spec.size, []).append(spec)
    stages = {}
    for size, group in groups.items():
        heads = [m for m in group if m.source]
        chosen = heads[-1:]
        if select == 'literal' or (select != 'heads' and not heads):
            chosen = group[-1:]
        if select == 'all':
            chosen = [m for m in group if m.activated or m in chosen]
        chosen = [_variant(m, view, act, l2norm) for m in chosen]
        if chosen:
            stages[size] = chosen
    return {size: stages[size] for size in sorted(stages, key=_largest_first)}


def _uncrossed(pairs: Sequence[tuple]) -> Iterator[tuple]:
    """Of two pairs of sizes the larger with the larger: taking the nearest first can cross them."""
    return zip(*(sorted((pair[side] for pair in pairs), key=_largest_first) for side in (0, 1)), strict=True)


def _largest_first(size: tuple[int, int]) -> tuple:
    return -size[0] * size[1], size


def _variant(spec: MapSpec, view: Survey, act: str, l2norm: str) -> MapSpec:
    if l2norm == 'pre' and spec.unnormed:
        spec = next((m for m in view.maps if m.tap == spec.unnormed),
                    MapSpec(spec.unnormed, spec.channels, spec.size, activated=True))
    if act == 'pre' and spec.before:
        spec = MapSpec(spec.before, spec.channels, spec.size, spec.source)
    return spec


def pair_stages(student: Survey, teacher: Survey, *, select: str = 'source', act: str = 'post',
                l2norm: str = 'post', sizes: Sequence[int] | None = None,
                max_size: int | None = None, unmatched: str = 'ignore') -> list[Pair]:
    """Pair the stages of two detectors.

    Equal sizes pair (equal downsampling when the two see inputs of different size). Where a size
    holds several stages (``select='all'``) they pair from the end. ``unmatched='resize'`` pairs a
    left-over student stage with the left-over teacher stage of the nearest size, to be resized;
    ``'ignore'`` drops it.

    Args:
        sizes: Keep only pairs whose teacher map has one of these heights (the paper's Table 1).
        max_size: Skip maps larger than this; the first ones hold most of the memory.
    """
    if unmatched not in ('ignore', 'resize'):
        raise UserError(f"unmatched={unmatched!r}; choose 'ignore' or 'resize'")
    options = dict(select=select, act=act, l2norm=l2norm)
    left, right = select_stages(student, **options), select_stages(teacher, **options)
    same_input = student.input_size == teacher.input_size
    matched: list[tuple[tuple[int, int], tuple[int, int]]] = []
    free = list(right)
    for size, specs in left.items():
        if same_input:
            other = size if size in free else None
        else:
            other = min(free, default=None, key=lambda s: abs(
                teacher.rank(right[s][-1]) - student.rank(specs[-1])))
            if other and abs(teacher.rank(right[other][-1]) - student.rank(specs[-1])) > 0.3:
                other = None
        if other:
            matched.append((size, other))
            free.remove(other)
    resized = []
    if unmatched == 'resize':
        for size in [s for s in left if s not in [m[0] for m in matched]]:
            if free:
                other = min(free, key=lambda s: abs(math.log(s[0] / size[0])))
                resized.append((size, other))
                free.remove(other)
    matched = [*_uncrossed(matched), *_uncrossed(resized)]
    heights = Counter(other[0] for _, other in matched)
    pairs = []
    for size, other in sorted(matched, key=lambda m: _largest_first(m[1])):
        both = list(zip(reversed(left[size]), reversed(right[other]), strict=False))[::-1]
        name = f's{other[0]}' if heights[other[0]] == 1 else f's{other[0]}x{other[1]}'
        for i, (s, t) in enumerate(both):
            pairs.append(Pair(s, t, name if len(both) == 1 else f'{name}_{i}'))
    if not pairs:
        raise UserError('student and teacher have no common stage: '
                        f'student sizes {_sizes(left)}, teacher sizes {_sizes(right)}; give both the '
                        "same input_size, or pair different sizes with unmatched='resize'")
    return _filtered(pairs, sizes, max_size)


def _filtered(pairs: list[Pair], sizes: Sequence[int] | None, max_size: int | None) -> list[Pair]:
    kept = [p for p in pairs if max_size is None or max(p.teacher.size) <= max_size]
    if sizes is not None:
        known = {p.teacher.size[0] for p in kept}
        wrong = [s for s in sizes if s not in known]
        if wrong:
            raise UserError(f'stages {wrong} do not exist; there are '
                            f'{sorted(known, reverse=True)}')
        kept = [p for p in kept if p.teacher.size[0] in sizes]
    if not kept:
        raise UserError(f'max_size={max_size} leaves no stage; there are '
                        f'{[p.teacher.size[0] for p in pairs]}')
    return kept


def explicit_pairs(student: Survey, teacher: Survey, models: tuple[nn.Module, nn.Module],
                   taps: Sequence[dict]) -> list[Pair]:
    """Pairs from taps the user names: ``[dict(student='neck[0]', teacher='neck[0]'), ...]``."""
    pairs = []
    for entry in taps:
        if set(entry) != {'student', 'teacher'}:
            raise UserError(f'a pair is dict(student=TAP, teacher=TAP), not {dict(entry)!r}')
        specs = []
        for view, model, tap in ((student, models[0], entry['student']),
                                 (teacher, models[1], entry['teacher'])):
            specs.append(_named(view, model, tap))
        size = specs[1].size[0]
        count = sum(p.name.split('_')[0] == f's{size}' for p in pairs)
        pairs.append(Pair(*specs, name=f's{size}_{count}' if count else f's{size}'))
    return pairs


def _named(view: Survey, model: nn.Module, tap: str) -> MapSpec:
    found = view.find(tap) or view.find(tap.removesuffix('@pre'))
    if found:
        return MapSpec(tap, found.channels, found.size, found.source)
    # not the name the dry run kept (an inner module of a block, say): look again by that name
    find_module(model, Tap.parse(tap).path)
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, *view.input_size, device=parameter.device)
    with evaluating(model), torch.no_grad(), Taps(model, [tap]) as maps:
        model.extract_feat(image)
    captured = maps._captured.get(tap)
    if captured is None:
        raise TapError(f'tap {tap!r} does not run in the backbone or extras of the {view.name}')
    return MapSpec(tap, captured[0].shape[1], tuple(captured[0].shape[-2:]))


def _sizes(stages: dict) -> list[int]:
    return [size[0] for size in stages]
