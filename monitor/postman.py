"""Flags on their way to a receiver: a bounded queue and a thread that tries again, while serving goes on."""

from __future__ import annotations

import atexit
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from monitor.backlog import Backlog
from monitor.flag_event import Event
from monitor.frontend import Frontend, Listener
from monitor.metrics import Metrics
from monitor.post import Letter, ReceiverError, post
from monitor.records import Record, weight
from monitor.verdict import FLAGGED

logger = logging.getLogger("probewatch")

METRIC = "probewatch_evidence_total"
DELIVERED, DROPPED, FAILED = "delivered", "dropped", "failed"
QUEUE_RECORDS, QUEUE_MIB = 1024, 64
"""What may wait for a slow receiver; beyond it flags are dropped, and counted."""
CLOSE_SECONDS = 4.0
"""vLLM kills API servers that take longer than five seconds to end."""
WAKE_SECONDS = 30.0
RETRIED = frozenset({408, 425, 429})
"""Statuses below 500 after which the same letter may be taken later."""


@dataclass(frozen=True)
class Patience:
    """How long a receiver is given. Seconds."""

    attempt: float = 5.0
    """To answer."""
    first_pause: float = 0.5
    """After the first failure; each further one doubles it."""
    longest_pause: float = 30.0
    lifetime: float = 300.0
    """After which a flag that could not be delivered is given up."""

    def pause(self, failures: int, chance: float) -> float:
        """Before the next attempt, after ``failures`` in a row; ``chance`` in 0 .. 1 spreads servers that failed
        together ("equal jitter": half of it is fixed)."""
        longest = min(self.longest_pause, self.first_pause * 2.0 ** min(failures - 1, 32))
        return longest * (0.5 + 0.5 * chance)


USUAL = Patience()


class _Parcel:
    """A flagged record on its way; whoever settles it first counts it."""

    def __init__(self, record: Record, metrics: Metrics, sink: str) -> None:
        self.record = record
        self.metrics = metrics
        self.since = time.monotonic()
        self._sink = sink
        self._open = threading.Lock()

    def settle(self, outcome: str) -> None:
        """Counts the outcome, unless one was counted before."""
        if self._open.acquire(blocking=False):
            self.metrics.inc(METRIC, self._sink, outcome)


class Postman:
    """Delivers flagged sequences to one receiver, one after the other.

    ``tell`` makes the event of a record and an engine; ``address`` makes the letter of an event, anew for each
    attempt (a signature carries its time).
    """

    def __init__(
        self,
        sink: str,
        tell: Callable[[Record, str], Event],
        address: Callable[[Event], Letter],
        patience: Patience = USUAL,
        queue_records: int = QUEUE_RECORDS,
    ) -> None:
        self.sink = sink
        self._tell = tell
        self._address = address
        self._patience = patience
        self._backlog: Backlog[_Parcel] = Backlog(queue_records, QUEUE_MIB * 2**20)
        self._thread = threading.Thread(target=self._run, name=f"probewatch-{sink}", daemon=True)
        self._closing = threading.Event()
        self._under_way: _Parcel | None = None
        self._failures = 0
        """In a row, whichever flag they concerned."""
        self._met_a_strange_one = False

    def start(self) -> None:
        """From now on what is offered is delivered."""
        self._thread.start()
        atexit.register(self.close)

    def listener(self, frontend: Frontend) -> Listener:
        """What an engine tells of every finished sequence. It neither waits nor raises."""
        metrics = frontend.metrics
        for outcome in (DELIVERED, DROPPED, FAILED):
            metrics.child(METRIC, self.sink, outcome)

        def add(record: Record) -> None:
            if record.verdict != FLAGGED:
                return
            parcel = _Parcel(record, metrics, self.sink)
            if not self._backlog.offer(parcel, weight(record)):
                parcel.settle(DROPPED)

        return add

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Tries once to deliver each that waits, for at most ``seconds``; what is left then counts as dropped."""
        atexit.unregister(self.close)
        self._backlog.close()
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        left = self._backlog.take(QUEUE_RECORDS, 0)
        for parcel in [*left, *([self._under_way] if self._under_way else [])]:
            parcel.settle(DROPPED)

    def _run(self) -> None:
        while not self._backlog.finished:
            for parcel in self._backlog.take(1, WAKE_SECONDS):
                self._under_way = parcel
                parcel.settle(self._deliver(parcel))
                self._under_way = None

    def _deliver(self, parcel: _Parcel) -> str:
        """What became of it."""
        try:
            event = self._tell(parcel.record, parcel.metrics.engine)
            while not self._attempt(event):
                pause = self._patience.pause(self._failures, random.random())
                age = time.monotonic() - parcel.since
                if self._closing.is_set() or age + pause > self._patience.lifetime:
                    return FAILED
                self._closing.wait(pause)
            return DELIVERED
        except _Refused:
            return FAILED
        except Exception:  # one strange record shall not end the deliveries
            if not self._met_a_strange_one:
                logger.exception(
                    "probewatch: a flag cannot be told to the %s; %s counts them", self.sink, METRIC
                )
            self._met_a_strange_one = True
            return FAILED

    def _attempt(self, event: Event) -> bool:
        """Whether the receiver took it. Raises ``_Refused`` where it never will."""
        letter = self._address(event)
        try:
            status = post(letter, self._patience.attempt)
        except ReceiverError as error:
            self._failed(f"{error}")
            return False
        if 200 <= status < 300:
            self._succeeded()
            return True
        self._failed(f"HTTP {status}" + (": redirects are not followed" if 300 <= status < 400 else ""))
        if status < 500 and status not in RETRIED:
            raise _Refused
        return False

    def _failed(self, reason: str) -> None:
        if not self._failures:
            logger.error(
                "probewatch: the %s does not take flags (%s); trying again, and %s counts what is lost",
                self.sink,
                reason,
                METRIC,
            )
        self._failures += 1

    def _succeeded(self) -> None:
        if self._failures:
            logger.warning("probewatch: the %s takes flags again", self.sink)
        self._failures = 0


class _Refused(Exception):
    """The receiver will not take this letter, ever."""
