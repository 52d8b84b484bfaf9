"""Increments that wait until somebody looks: with many probes, a step would otherwise touch thousands of counters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

Labels = tuple[str, ...]
AT_MOST_SECONDS = 0.25
"""That an increment waits while others arrive."""


class Tally:
    """Sums increments by counter. Whoever reads the counters calls ``flush`` first."""

    def __init__(self, apply: Callable[..., None], at_once: bool) -> None:
        """``apply(name, *labels, by=)`` adds to one counter. ``at_once``: nothing waits, since others may read."""
        self._apply = apply
        self._wait = 0.0 if at_once else AT_MOST_SECONDS
        self._lock = threading.Lock()
        self._pending: dict[tuple[str, int], list[Any]] = {}
        """(counter, identity of the labels) -> [labels of each child, sum]"""
        self._flushed = 0.0

    def add(self, name: str, children: Sequence[Labels], by: float) -> None:
        """The same increment to several children. ``children`` has to be the same object every time."""
        if not by or not children:
            return
        with self._lock:
            held = self._pending.setdefault((name, id(children)), [children, 0])
            held[1] += by
            due = time.monotonic() - self._flushed >= self._wait
        if due:
            self.flush()

    def flush(self) -> None:
        """Everything that waits reaches its counters, as it was at one moment."""
        with self._lock:
            pending, self._pending = self._pending, {}
            self._flushed = time.monotonic()
            for (name, _), (children, by) in pending.items():
                for labels in children:
                    self._apply(name, *labels, by=by)
