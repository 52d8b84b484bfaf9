"""Increments that wait until somebody looks: with many probes, a step would otherwise touch thousands of counters."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

Labels = tuple[str, ...]
MANY = 64
"""Groups of children that wait by themselves. Each change of the probes brings its own; with nobody who reads, they
would be ever more."""


class Tally:
    """Sums increments by counter. Whoever reads the counters calls ``flush`` first, holding ``applying``."""

    def __init__(
        self, apply: Callable[..., None], at_once: bool, applying: threading.RLock | None = None
    ) -> None:
        """``apply(name, *labels, by=)`` adds to one counter. ``at_once``: nothing waits, since others may read.

        ``applying``: held by whoever changes or reads the counters; the thread that serves never waits for it.
        """
        self._apply = apply
        self._at_once = at_once
        self._applying = applying or threading.RLock()
        self._lock = threading.RLock()
        self._pending: dict[tuple[str, int], list[Any]] = {}
        """(counter, identity of the labels) -> [labels of each child, sum]"""
        self._single: defaultdict[tuple[str, Labels], float] = defaultdict(float)
        self._together = 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is added inside reaches the counters at one moment."""
        with self._lock:
            self._together += 1
            try:
                yield
            finally:
                self._together -= 1
        self._flush_where_others_read()

    def add(self, name: str, children: Sequence[Labels], by: float) -> None:
        """The same increment to several children. ``children`` has to be the same object every time."""
        if not by or not children:
            return
        with self._lock:
            held = self._pending.setdefault((name, id(children)), [children, 0])
            held[1] += by
            if len(self._pending) > MANY:
                self._spread()
        self._flush_where_others_read()

    def add_one(self, name: str, labels: Labels, by: int = 1) -> None:
        """To a single child."""
        if not by:
            return
        with self._lock:
            self._single[name, labels] += by
        self._flush_where_others_read()

    def _spread(self) -> None:
        for (name, _), (children, by) in self._pending.items():
            for labels in children:
                self._single[name, labels] += by
        self._pending.clear()

    def _flush_where_others_read(self) -> None:
        if self._at_once and not self._together:
            self.flush()

    def flush(self) -> None:
        """Everything that waits reaches its counters, as it was at one moment."""
        with self._applying:
            with self._lock:
                pending, self._pending = self._pending, {}
                single, self._single = self._single, defaultdict(float)
            for (name, labels), by in single.items():
                self._apply(name, *labels, by=by)
            for (name, _), (children, by) in pending.items():
                for labels in children:
                    self._apply(name, *labels, by=by)
