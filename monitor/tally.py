"""Increments that wait until somebody looks: with many probes, a step would otherwise touch thousands of counters."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
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
        self._single: Counter[tuple[str, Labels]] = Counter()
        self._flushed = 0.0

    def add(self, name: str, children: Sequence[Labels], by: float) -> None:
        """The same increment to several children. ``children`` has to be the same object every time."""
        if not by or not children:
            return
        with self._lock:
            held = self._pending.setdefault((name, id(children)), [children, 0])
            held[1] += by
        self._flush_if_due()

    def add_each(self, name: str, children: Iterable[Labels]) -> None:
        """One to each of these children, as often as it comes."""
        with self._lock:
            self._single.update([(name, labels) for labels in children])
        self._flush_if_due()

    def _flush_if_due(self) -> None:
        if time.monotonic() - self._flushed >= self._wait:
            self.flush()

    def flush(self) -> None:
        """Everything that waits reaches its counters, as it was at one moment."""
        with self._lock:
            pending, self._pending = self._pending, {}
            self._flushed = time.monotonic()
            single, self._single = self._single, Counter()
            for (name, labels), by in single.items():
                self._apply(name, *labels, by=by)
            for (name, _), (children, by) in pending.items():
                for labels in children:
                    self._apply(name, *labels, by=by)
