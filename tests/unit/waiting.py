"""Waiting for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(
    said: Callable[[], Any], seconds: float = 10.0, *, shown: Callable[[], object] = lambda: None
) -> Any:
    """The first true answer. Fails if none comes, telling what is ``shown`` then."""
    deadline = time.monotonic() + seconds
    while not (found := said()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {shown()}"
        time.sleep(0.005)
    return found
