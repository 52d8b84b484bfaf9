"""A thread that hands things on in batches, while serving goes on: what all who hear of verdicts share."""

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


def _nothing() -> None:
    """The upkeep of a sink that needs none."""


class Waiting(Generic[Raw]):
    """An item and whose it is. Its fate is counted once, by whoever knows it first."""

    def __init__(self, item: Raw, metrics: Metrics) -> None:
        self.item = item
        self.metrics = metrics
        self._undecided = threading.Lock()

    def decide(self) -> bool:
        """Whether the caller is the first."""
        return self._undecided.acquire(blocking=False)


class Courier(Generic[Raw, Ready]):
    """One sink. Each item is prepared by itself, so that a strange one costs no other, then delivered with its batch.

    ``deliver`` returns how many were not taken. ``upkeep`` is called after each batch, and after ``IDLE_SECONDS``
    without one; ``end`` when the last is done. All run on the thread, and all but ``end`` may raise anything: what it
    costs is counted. A strange item is logged once, a sink that fails once until a batch arrives again, and upkeep that
    fails, which costs no item, once until it succeeds. ``done``: the outcome that ``probewatch_evidence_total`` shows
    for what arrived.
    """

    def __init__(
        self,
        sink: str,
        done: str,
        prepare: Callable[[Raw], Ready],
        deliver: Callable[[Sequence[Ready]], int],
        queue_items: int = QUEUE_ITEMS,
        batch_items: int = BATCH_ITEMS,
        queue_mib: int = QUEUE_MIB,
        upkeep: Callable[[], None] = _nothing,
        end: Callable[[], None] = _nothing,
    ) -> None:
        self._sink = sink
        self._done = done
        self._prepare = prepare
        self._deliver = deliver
        self._upkeep = upkeep
        self._end = end
        self._batch_items = batch_items
        self._backlog: Backlog[Waiting[Raw]] = Backlog(queue_items, queue_mib * 2**20)
        self._under_way: Sequence[Waiting[Raw]] = ()
        self._thread = threading.Thread(target=self._run, name=f"probewatch-{sink}", daemon=True)
        self._counting = threading.Lock()
        self._failing = False
        self._met_a_strange_one = False
        self._neglected = False
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
        waiting = Waiting(item, metrics)
        if not self._backlog.offer(waiting, weight):
            self._lose(waiting, DROPPED)

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Delivers what waits, for at most ``patience`` seconds; what has not arrived then counts as dropped."""
        atexit.unregister(self.close)
        self._backlog.close()
        if self._thread.ident is not None:
            self._thread.join(patience)
        while left := self._backlog.take(BATCH_ITEMS, 0):
            for waiting in left:
                self._lose(waiting, DROPPED)
        for waiting in self._under_way:
            self._lose(waiting, DROPPED)

    def _run(self) -> None:
        while not self._backlog.finished:
            self._under_way = self._backlog.take(self._batch_items, IDLE_SECONDS)
            if self._under_way:
                self._handle(self._under_way)
            self._keep_up()
        self._end()

    def _keep_up(self) -> None:
        try:
            self._upkeep()
            self._neglected = False
        except Exception as error:
            if self._neglected or self._failing:
                return  # told already
            self._neglected = True
            logger.error(
                "probewatch: upkeep of %s fails (%s: %s); it loses no record by that",
                self._sink,
                type(error).__name__,
                error,
            )

    def _handle(self, batch: Sequence[Waiting[Raw]]) -> None:
        ready: list[Ready] = []
        told: list[Waiting[Raw]] = []
        for waiting in batch:
            try:
                ready.append(self._prepare(waiting.item))
                told.append(waiting)
            except BaseException:  # a panic in the Rust of a tokenizer is no Exception
                if not self._met_a_strange_one:
                    logger.exception(
                        "probewatch: %s cannot take a record; probewatch_evidence_total counts them",
                        self._sink,
                    )
                self._met_a_strange_one = True
                self._lose(waiting, FAILED)
        if not ready:
            return
        try:
            refused = self._deliver(ready)
            if self._failing:
                logger.warning("probewatch: %s takes records again", self._sink)
            self._failing = False
        except Exception as error:  # whatever it is, the next batch gets its chance
            self._complain(error)
            refused = len(ready)
        arrived = len(ready) - refused
        for waiting in told[:arrived]:
            if waiting.decide():
                waiting.metrics.inc(METRIC, self._sink, self._done)
        for waiting in told[arrived:]:
            self._lose(waiting, FAILED)

    def _lose(self, waiting: Waiting[Raw], outcome: str) -> None:
        if not waiting.decide():
            return
        with self._counting:
            self.lost += 1
        waiting.metrics.inc(METRIC, self._sink, outcome)

    def _complain(self, error: Exception) -> None:
        if not self._failing:
            logger.error(
                "probewatch: %s loses records (%s: %s); probewatch_evidence_total counts them",
                self._sink,
                type(error).__name__,
                error,
            )
        self._failing = True
