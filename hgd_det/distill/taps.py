"""Taps: temporary, read-only, checked capture of what modules put out.

A tap is written as a module path, with up to three additions::

    backbone.features.3        the output of that module
    neck[0]                    the first element of the tuple it returns
    bbox_head.cls_convs.0#2    its third call in one forward pass (it is shared by the levels)
    backbone.features.2@pre    a copy taken at once, before an in-place activation overwrites it

Hooks exist only inside the ``with``; nothing of the detector is changed for good.
"""
from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from hgd_det.errors import UserError

_PATTERN = re.compile(r'^(?P<path>[\w.]+?)(?P<call>#\d+)?(?P<index>\[\d+\])?(?P<pre>@pre)?$')


class TapError(UserError):
    """A tap that does not exist, did not fire, or was overwritten."""


class Tap(NamedTuple):
    path: str
    call: int = 0
    index: int | None = None
    pre: bool = False

    @classmethod
    def parse(cls, text: str) -> Tap:
        match = _PATTERN.match(text)
        if match is None:
            raise TapError(f'tap {text!r} is not a module path; write it like '
                           "'backbone.features.3', 'neck[0]', 'head.conv#1' or 'backbone.conv1@pre'")
        path, call, index, pre = match['path'], match['call'], match['index'], match['pre']
        return cls(path, int(call[1:]) if call else 0, int(index[1:-1]) if index else None, bool(pre))

    def __str__(self) -> str:
        call = f'#{self.call}' if self.call else ''
        index = '' if self.index is None else f'[{self.index}]'
        return f'{self.path}{call}{index}{"@pre" if self.pre else ""}'


class Enough(Exception):
    """Raised inside a forward pass once every tap has fired; never leaves this module."""


class Taps(Mapping):
    """Capture the outputs of some modules while a block runs.

    Example::

        with Taps(detector, ['backbone.features.3', 'neck[0]']) as maps:
            detector.loss(inputs, samples)
        maps['neck[0]']

    Reading a map checks that it was seen exactly as captured: PyTorch counts the in-place writes
    to a tensor, and a map written to since (an in-place ReLU behind a hooked convolution) is an
    error instead of a wrong value.

    Args:
        root: The detector.
        names: The taps. Unknown ones raise :class:`TapError` listing near names.
        stop: Leave the forward pass (and the ``with``) as soon as the last tap has fired.
    """

    def __init__(self, root: nn.Module, names: Iterable[str], *, stop: bool = False):
        self.taps = {name: Tap.parse(name) for name in names}
        self._stop = stop and bool(self.taps)
        self._modules = {tap.path: find_module(root, tap.path) for tap in self.taps.values()}
        self._wanted: dict[str, list[tuple[str, Tap]]] = {}
        for name, tap in self.taps.items():
            self._wanted.setdefault(tap.path, []).append((name, tap))
        self._handles: list = []
        self._calls: dict[str, int] = {}
        self._captured: dict[str, tuple[Tensor, int]] = {}

    def __enter__(self) -> Taps:
        self._calls = dict.fromkeys(self._wanted, 0)
        for path, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook_for(path)))
        return self

    def __exit__(self, kind, error, trace) -> bool:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        return kind is Enough

    def _hook_for(self, path: str):
        def hook(module, args, output):
            call = self._calls[path]
            self._calls[path] += 1
            for name, tap in self._wanted[path]:
                if tap.call == call:
                    tensor = self._pick(name, tap, output)
                    tensor = tensor.clone() if tap.pre else tensor
                    self._captured[name] = (tensor, tensor._version)
            if self._stop and len(self._captured) == len(self.taps):
                raise Enough
        return hook

    @staticmethod
    def _pick(name: str, tap: Tap, output) -> Tensor:
        if tap.index is not None:
            if not isinstance(output, (tuple, list)) or tap.index >= len(output):
                what = f'{len(output)} outputs' if isinstance(output, (tuple, list)) else 'one output'
                raise TapError(f'tap {name!r}: {tap.path} has {what}, there is no [{tap.index}]')
            output = output[tap.index]
        if not isinstance(output, Tensor):
            raise TapError(f'tap {name!r}: the output is a {type(output).__name__}, not a tensor; '
                           f"choose one element of it, as in '{tap.path}[0]'")
        return output

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.taps:
            raise KeyError(name)
        if name not in self._captured:
            calls = self._calls.get(self.taps[name].path, 0)
            raise TapError(f'tap {name!r} saw nothing: its module ran {calls} time(s) in this '
                           'forward pass; choose a module that runs in it')
        tensor, version = self._captured[name]
        if tensor._version != version:
            raise TapError(f'tap {name!r} was overwritten in place after it was captured '
                           '(an in-place activation follows it); tap the activation instead, or '
                           f"'{name}@pre' for a copy of the values before it")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.taps)

    def __len__(self) -> int:
        return len(self.taps)


def find_module(root: nn.Module, path: str) -> nn.Module:
    """The submodule at a dotted path, or a :class:`TapError` that names the nearest ones."""
    modules = dict(root.named_modules())
    if path in modules and path:
        return modules[path]
    near = difflib.get_close_matches(path, modules, n=4, cutoff=0.5)
    hint = f'near names: {", ".join(near)}' if near else \
        f'top modules: {", ".join(name for name, _ in root.named_children())}'
    raise TapError(f'tap {path!r} is no module of {type(root).__name__}; {hint}')
