"""A bounded queue between serving, which must never wait, and a thread that may."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Backlog(Generic[T]):
    """Holds at most ``limit`` items that weigh at most ``limit_bytes``; what does not fit is turned away."""

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self._limit = limit
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._items: deque[tuple[T, int]] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def offer(self, item: T, weight: int) -> bool:
        """Whether there was room. ``weight`` in bytes; a single item always fits. Never waits for the taker."""
        with self._changed:
            too_heavy = bool(self._items) and self._bytes + weight > self._limit_bytes
            if self._closed or too_heavy or len(self._items) >= self._limit:
                return False
            self._items.append((item, weight))
            self._bytes += weight
            self._changed.notify()
            return True

    def take(self, at_most: int, patience: float) -> list[T]:
        """The oldest items; none after ``patience`` seconds without any, or at once when closed and drained."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._closed, patience)
            taken = [self._items.popleft() for _ in range(min(at_most, len(self._items)))]
            self._bytes -= sum(weight for _, weight in taken)
            return [item for item, _ in taken]

    def close(self) -> None:
        """Turns away whatever comes from now on; what is held can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def finished(self) -> bool:
        """Closed, and nothing is left."""
        with self._changed:
            return self._closed and not self._items
