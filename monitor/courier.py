"""A thread that hands things on in batches, while serving goes on: what the audit log and OpenTelemetry share."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from monitor.backlog import Backlog
from monitor.metrics import Metrics

logger = logging.getLogger("probewatch")

METRIC = "probewatch_evidence_total"
DROPPED, FAILED = "dropped", "failed"
QUEUE_ITEMS, QUEUE_MIB = 4096, 64
BATCH_ITEMS = 256
IDLE_SECONDS = 30.0
CLOSE_SECONDS = 4.0
"""vLLM kills API servers that take longer than five seconds to end."""

Raw = TypeVar("Raw")
Ready = TypeVar("Ready")


class Courier(Generic[Raw, Ready]):
    """One sink. Each item is prepared by itself, so that a strange one costs no other, then delivered with its batch.

    ``deliver`` returns how many were not taken. It and ``prepare`` run on the thread and may raise anything: that is
    counted, and logged once until a batch arrives again. ``done``: the outcome that ``probewatch_evidence_total`` shows
    for what arrived.
    """

    def __init__(
        self,
        sink: str,
        done: str,
        prepare: Callable[[Raw], Ready],
        deliver: Callable[[Sequence[Ready]], int],
        queue_items: int = QUEUE_ITEMS,
    ) -> None:
        self._sink = sink
        self._done = done
        self._prepare = prepare
        self._deliver = deliver
        self._backlog: Backlog[tuple[Raw, Metrics]] = Backlog(queue_items, QUEUE_MIB * 2**20)
        self._thread = threading.Thread(target=self._run, name=f"probewatch-{sink}", daemon=True)
        self._counting = threading.Lock()
        self._failing = False
        self.lost = 0
        """Items that never arrived, since the start."""

    def start(self) -> None:
        """Starts the thread; what waits at the end of the process is still delivered."""
        self._thread.start()
        atexit.register(self.close)

    def announce(self, metrics: Metrics) -> None:
        """Creates the counters: one born at 1 hides its first loss from ``increase()``."""
        for outcome in (self._done, DROPPED, FAILED):
            metrics.child(METRIC, self._sink, outcome)

    def offer(self, item: Raw, metrics: Metrics, weight: int) -> None:
        """Takes an item of about ``weight`` bytes, or counts it as dropped. Neither waits nor raises."""
        if not self._backlog.offer((item, metrics), weight):
            self._lose(metrics, DROPPED)

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Delivers what waits, for at most ``patience`` seconds; what is left then counts as dropped."""
        atexit.unregister(self.close)
        self._backlog.close()
        if self._thread.ident is not None:
            self._thread.join(patience)
        while left := self._backlog.take(BATCH_ITEMS, 0):
            for _, metrics in left:
                self._lose(metrics, DROPPED)

    def _run(self) -> None:
        while not self._backlog.finished:
            batch = self._backlog.take(BATCH_ITEMS, IDLE_SECONDS)
            if batch:
                self._handle(batch)

    def _handle(self, batch: Sequence[tuple[Raw, Metrics]]) -> None:
        ready: list[Ready] = []
        owners: list[Metrics] = []
        for item, metrics in batch:
            try:
                ready.append(self._prepare(item))
                owners.append(metrics)
            except Exception as error:
                self._complain(error)
                self._lose(metrics, FAILED)
        if not ready:
            return
        try:
            refused = self._deliver(ready)
            self._failing = False
        except Exception as error:  # whatever it is, the next batch gets its chance
            self._complain(error)
            refused = len(ready)
        arrived = len(ready) - refused
        for metrics in owners[:arrived]:
            metrics.inc(METRIC, self._sink, self._done)
        for metrics in owners[arrived:]:
            self._lose(metrics, FAILED)

    def _lose(self, metrics: Metrics, outcome: str) -> None:
        with self._counting:
            self.lost += 1
        metrics.inc(METRIC, self._sink, outcome)

    def _complain(self, error: Exception) -> None:
        if not self._failing:
            logger.error(
                "probewatch: %s loses records (%s: %s); probewatch_evidence_total counts them",
                self._sink,
                type(error).__name__,
                error,
            )
        self._failing = True
