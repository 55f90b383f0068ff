"""From two detectors to pairs of stages, without a list of layers or channels.

A dry run records every feature map of the backbone and the extras (all that ``extract_feat`` runs;
heads are not part of it) in execution order. Maps of one spatial size form a group, each group
gives its representative, the stage, and stages of equal size in student and teacher are a pair.
"""
from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hgd_det.distill.taps import find_module
from hgd_det.errors import UserError

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish,
               nn.Mish, nn.Sigmoid)
SELECTIONS = ('source', 'literal', 'heads', 'all')
NAME = r's\d+(?:x\d+)?(?:_\d+)?'     # of a pair, as its values are logged: s75, s19x25, s19_0


@dataclass(frozen=True)
class MapSpec:
    """One feature map that the dry run saw: where to tap it and what it looks like."""
    tap: str
    channels: int
    size: tuple[int, int]
    source: bool = False        # a prediction head reads it
    activated: bool = False     # an activation module produced it
    before: str | None = None   # tap of the values before that activation
    unnormed: str | None = None  # tap of the values before an L2Norm

    def __str__(self) -> str:
        return f'{self.tap} {self.channels}x{self.size[0]}x{self.size[1]}'


@dataclass(frozen=True)
class Survey:
    """What a dry run of one detector saw, in execution order."""
    name: str
    input_size: tuple[int, int]
    maps: tuple[MapSpec, ...]

    @property
    def sources(self) -> list[MapSpec]:
        return [m for m in self.maps if m.source]

    def rank(self, spec: MapSpec) -> float:
        """How often the input was halved to get to this map."""
        return math.log2(self.input_size[0] / spec.size[0])

    def find(self, tap: str) -> MapSpec | None:
        return next((m for m in self.maps if tap in (m.tap, m.before, m.unnormed)), None)


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


@dataclass
class _Record:
    tap: str
    tensor: Tensor
    module: nn.Module
    inputs: tuple[int, ...]


@contextlib.contextmanager
def evaluating(model: nn.Module):
    """Eval mode for a moment; the mode of every single module comes back afterwards."""
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def survey(detector: nn.Module, input_size: tuple[int, int], name: str = 'detector') -> Survey:
    """Run ``extract_feat`` once on zeros and note every 4-d map, in order of execution.

    A tensor that several modules hand on (a convolution block and the block around it, an
    in-place activation and its convolution) is one map, under the name of the outermost.
    """
    records: list[_Record] = []
    calls: dict[str, int] = {}

    def hook_for(path: str):
        def hook(module, args, output):
            call = calls.get(path, 0)
            calls[path] = call + 1
            base = f'{path}#{call}' if call else path
            inputs = tuple(id(a) for a in args if isinstance(a, Tensor))
            several = isinstance(output, (tuple, list))
            for i, tensor in enumerate(output if several else (output,)):
                if isinstance(tensor, Tensor) and tensor.ndim == 4:
                    records.append(_Record(f'{base}[{i}]' if several else base, tensor, module,
                                           inputs))
        return hook

    handles = [module.register_forward_hook(hook_for(path))
               for path, module in detector.named_modules() if path]
    parameter = next(detector.parameters())
    image = torch.zeros(1, 3, *input_size, device=parameter.device, dtype=parameter.dtype)
    try:
        with evaluating(detector), torch.no_grad():
            outputs = detector.extract_feat(image)
    finally:
        for handle in handles:
            handle.remove()
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return Survey(name, tuple(input_size), tuple(_merge(records, {id(t) for t in outputs})))


def _merge(records: list[_Record], sources: set[int]) -> list[MapSpec]:
    by_tensor: dict[int, list[_Record]] = {}
    for record in records:
        by_tensor.setdefault(id(record.tensor), []).append(record)
    maps = []
    for key, same in by_tensor.items():
        position = next((i for i, r in enumerate(same) if isinstance(r.module, ACTIVATIONS)), None)
        before = unnormed = None
        if position is not None:
            if same[position].inputs and same[position].inputs[0] != key:
                earlier = by_tensor.get(same[position].inputs[0], [])
                before = earlier[-1].tap if earlier else None
            elif position:  # in place: the convolution before it put out the same tensor
                before = same[position - 1].tap
        norm = next((r for r in same if type(r.module).__name__ == 'L2Norm'), None)
        if norm is not None and norm.inputs:
            earlier = by_tensor.get(norm.inputs[0], [])
            unnormed = earlier[-1].tap if earlier else None
        tensor = same[-1].tensor
        maps.append(MapSpec(same[-1].tap, tensor.shape[1], tuple(tensor.shape[-2:]),
                            source=key in sources, activated=position is not None,
                            before=f'{before}@pre' if before else None, unnormed=unnormed))
    return maps


def select_stages(view: Survey, *, select: str = 'source', act: str = 'post',
                  l2norm: str = 'post') -> dict[tuple[int, int], list[MapSpec]]:
    """Choose the maps that stand for each spatial size, largest size first.

    Args:
        select: ``source`` takes the map a head reads where the size has one, else the last map of
            that size; ``literal`` always the last map in execution order (for SSD that is the
            1x1 bottleneck of the next extra layer); ``heads`` only the maps heads read; ``all``
            the output of every activation, each a stage of its own.
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
        if select == 'all':
            chosen = [m for m in group if m.activated]
        elif select == 'heads':
            chosen = heads[-1:]
        elif select == 'source' and heads:
            chosen = heads[-1:]
        else:
            chosen = group[-1:]
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
    from hgd_det.distill.taps import Tap, TapError, Taps
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
