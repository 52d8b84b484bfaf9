"""How vLLM's methods are wrapped: once, by name, with the original reachable, and never twice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from monitor.errors import CompatibilityError

_MARK = "__probewatch_original__"


def wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Replaces ``owner.name`` by ``around(original, self, *args, **kwargs)``.

    Wrapping the same method again does nothing: vLLM may load plugins several times in a process.
    Raises ``CompatibilityError`` if this vLLM has no such method.
    """
    original = owner.__dict__.get(name)
    if original is None:
        raise CompatibilityError(
            f"vLLM has no {owner.__module__}.{owner.__qualname__}.{name}; install a supported vLLM (0.26 to 0.33)"
        )
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(wrapper, _MARK, original)
    setattr(owner, name, wrapper)


def add_method(owner: type, name: str, method: Callable[..., Any]) -> None:
    """Adds a method to a class of vLLM's that has none of that name."""
    setattr(owner, name, method)
