"""A dry run of one detector: the maps it could be tapped at, without a list of layers.

``extract_feat`` runs once (backbone and extras; heads are not part of it) with a hook on every module.
Of all that comes out of modules, a map is what comes out of a block and lies on the trunk, or is what
a head reads:

- *Trunk*: each way from the picture to the heads' smaller maps leads through it. A gate, an attention
  map, a branch and the inside of a residual block have a way around them. Autograd writes the ways
  down; :class:`Trunk` reads its graph.
- *Block*: the topmost module that is no mere frame around others. What a block computes on the way
  (the expansion of an inverted residual is on the trunk where no shortcut goes around it) is its own.
"""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish,
               nn.Mish, nn.Sigmoid)


@dataclass(frozen=True)
class MapSpec:
    """One feature map that the dry run saw: where to tap it and what it looks like."""
    tap: str
    channels: int
    size: tuple[int, int]
    source: bool = False        # a prediction head reads it
    activated: bool = False     # it comes out of a block with an activation in it
    before: str | None = None   # tap of the values before the activation that ends the block
    unnormed: str | None = None  # tap of the values before an L2Norm

    def __str__(self) -> str:
        return f'{self.tap} {self.channels}x{self.size[0]}x{self.size[1]}'


@dataclass(frozen=True)
class Survey:
    """The maps that a dry run of one detector found, in execution order."""
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


@dataclass
class _Record:
    """One map that one call of a module handed out."""
    path: str
    tap: str
    tensor: Tensor
    module: nn.Module
    inputs: tuple[int, ...]
    vertex: tuple       # of the autograd graph at that moment: an activation in place moves the tensor on
    version: int

    @property
    def size(self) -> tuple[int, int]:
        return tuple(self.tensor.shape[-2:])


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


class Trunk:
    """The maps that no way from the picture to what the heads read leads around.

    They are the dominators of the heads' maps in the graph of operations. A vertex is one output of
    one operation, ``(grad_fn, output_nr)``.
    """

    def __init__(self, picture: tuple, outputs: Sequence[Tensor]):
        self._parent = {picture: None}     # of a vertex, the last one that dominates it
        self._depth = {picture: 0}
        for vertex in self._inputs_first([_vertex(out) for out in outputs]):
            inputs = [v for v in vertex[0].next_functions if v in self._depth]
            if inputs and vertex not in self._depth:
                last = inputs[0]
                for other in inputs[1:]:
                    last = self._common(last, other)
                self._parent[vertex], self._depth[vertex] = last, self._depth[last] + 1
        self._ways = [(out.shape[-2] * out.shape[-1], self._dominators(_vertex(out)))
                      for out in outputs if _vertex(out) in self._depth]

    def holds(self, vertex: tuple, size: tuple[int, int]) -> bool:
        """Whether it dominates each of the heads' maps that are smaller: a head may read another map of
        its size before it. Where none is smaller, those of this size count; where none is, all."""
        own = size[0] * size[1]
        ways = next(filter(None, ([way for area, way in self._ways if chosen(area)] for chosen in (
            lambda area: area < own, lambda area: area == own, lambda area: True))), [])
        return bool(ways) and all(vertex in way for way in ways)

    def _inputs_first(self, vertices: Iterable[tuple]) -> list[tuple]:
        order, seen, stack = [], set(self._depth), [(vertex, False) for vertex in vertices]
        while stack:
            vertex, done = stack.pop()
            if done:
                order.append(vertex)
            elif vertex[0] is not None and vertex not in seen:
                seen.add(vertex)
                stack.append((vertex, True))
                stack.extend((v, False) for v in vertex[0].next_functions)
        return order

    def _common(self, one: tuple, other: tuple) -> tuple:
        while one != other:
            if self._depth[one] < self._depth[other]:
                one, other = other, one
            one = self._parent[one]
        return one

    def _dominators(self, vertex: tuple | None) -> set[tuple]:
        found = set()
        while vertex is not None:
            found.add(vertex)
            vertex = self._parent[vertex]
        return found


def _vertex(tensor: Tensor) -> tuple:
    return tensor.grad_fn, tensor.output_nr


def survey(detector: nn.Module, input_size: tuple[int, int], name: str = 'detector') -> Survey:
    """Run ``extract_feat`` once on zeros and note the maps, in order of execution.

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
                    records.append(_Record(path, f'{base}[{i}]' if several else base, tensor, module,
                                           inputs, _vertex(tensor), tensor._version))
        return hook

    handles = [module.register_forward_hook(hook_for(path))
               for path, module in detector.named_modules() if path]
    parameter = next(detector.parameters())
    zeros = torch.zeros(1, 3, *input_size, device=parameter.device, dtype=parameter.dtype)
    try:
        # the graph alone is wanted: what operations would keep for a backward pass is let go at once
        with evaluating(detector), torch.enable_grad(), \
                torch.autograd.graph.saved_tensors_hooks(lambda saved: None, lambda nothing: None):
            picture = zeros.requires_grad_().clone()
            start = _vertex(picture)
            outputs = detector.extract_feat(picture)
    finally:
        for handle in handles:
            handle.remove()
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    outputs = [out for out in outputs if isinstance(out, Tensor) and out.ndim == 4]
    trunk = Trunk(start, outputs)
    frames = _frames(detector, records, set(calls), trunk)
    return Survey(name, tuple(input_size), tuple(_merge(records, {id(t) for t in outputs}, trunk, frames)))


def _frames(detector: nn.Module, records: list[_Record], called: set[str], trunk: Trunk) -> set[str]:
    """The modules that only hold others. What is directly inside one, and is none, is a block.

    Frames are a detector and its parts, sequences, what never runs itself (a list), and what hands out
    several maps or passes through three sizes or more (a block halves once: it has two).
    """
    maps, sizes = {}, {}
    for record in records:
        maps.setdefault(record.path, set()).add(record.tap)
        if trunk.holds(record.vertex, record.size):
            parts = record.path.split('.')
            for end in range(1, len(parts) + 1):
                sizes.setdefault('.'.join(parts[:end]), set()).add(record.size)
    frames = {''}
    for path, module in detector.named_modules():   # parents before children
        parent = path.rpartition('.')[0]
        if parent in frames and (
                path not in called or isinstance(module, nn.Sequential)
                or hasattr(detector.get_submodule(parent), 'extract_feat')
                or len({tap for tap in maps.get(path, ()) if '#' not in tap}) > 1
                or len(sizes.get(path, ())) > 2):
            frames.add(path)
    return frames


def _merge(records: list[_Record], sources: set[int], trunk: Trunk, frames: set[str]) -> list[MapSpec]:
    by_tensor: dict[int, list[_Record]] = {}
    for record in records:
        by_tensor.setdefault(id(record.tensor), []).append(record)
    maps = []
    for key, same in by_tensor.items():
        last = same[-1]
        blocks = [r for r in same if r.path.rpartition('.')[0] in frames]
        offered = blocks and trunk.holds(last.vertex, last.size) and last.tensor._version == last.version
        if not (offered or key in sources):
            continue
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
        activated = any(isinstance(inner, ACTIVATIONS) for r in blocks if r.path not in frames
                        for inner in r.module.modules())
        maps.append(MapSpec(last.tap, last.tensor.shape[1], last.size, source=key in sources,
                            activated=activated, before=f'{before}@pre' if before else None,
                            unnormed=unnormed))
    return maps
