"""mmengine's registries import what they do not know; a block can do without that."""
from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from functools import cache

_refuse: contextvars.ContextVar[Callable[[str], Exception] | None]
_refuse = contextvars.ContextVar('refuse', default=None)


@contextlib.contextmanager
def no_imports(refuse: Callable[[str], Exception] | None) -> Iterator[None]:
    """In the block a name that a registry would import raises ``refuse(name)``; with None it may import."""
    _watch_registries()
    before = _refuse.set(refuse)
    try:
        yield
    finally:
        _refuse.reset(before)


@cache
def _watch_registries() -> None:
    from mmengine.registry import registry

    imported = registry.get_object_from_string

    def get_object_from_string(name: str):
        if (refuse := _refuse.get()) is not None:
            raise refuse(name)
        return imported(name)

    registry.get_object_from_string = get_object_from_string
