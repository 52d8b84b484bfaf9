"""Flags on their way to a receiver, one after the other, tried again until they arrive or are too old."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from monitor.courier import CLOSE_SECONDS, METRIC, Courier
from monitor.errors import MonitorError
from monitor.flag_event import Event
from monitor.frontend import Frontend, Listener
from monitor.post import Letter, ReceiverError, post
from monitor.records import Record, weight
from monitor.verdict import FLAGGED

logger = logging.getLogger("probewatch")

DELIVERED = "delivered"
QUEUE_FLAGS = 1024
"""What may wait for a slow receiver; beyond it flags are dropped, and counted."""
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


class _Flag(NamedTuple):
    """A flagged sequence and the engine it ran in."""

    record: Record
    engine: str
    since: float


class Postman:
    """Delivers flagged sequences to one receiver.

    ``tell`` makes the event of a record and an engine; ``address`` makes the letter of an event, anew for each
    attempt (a signature carries its time).
    """

    def __init__(
        self,
        sink: str,
        tell: Callable[[Record, str], Event],
        address: Callable[[Event], Letter],
        patience: Patience = USUAL,
        queue_flags: int = QUEUE_FLAGS,
    ) -> None:
        self._sink = sink
        self._tell = tell
        self._address = address
        self._patience = patience
        self._closing = threading.Event()
        self._failures = 0
        """In a row, whichever flag they concerned."""
        self._courier: Courier[_Flag, tuple[Event, float]] = Courier(
            sink, DELIVERED, self._told, self._deliver, queue_flags, batch_items=1
        )

    def start(self) -> None:
        """From now on what is offered is delivered."""
        self._courier.start()

    def listener(self, frontend: Frontend) -> Listener:
        """What an engine tells of every finished sequence. It neither waits nor raises."""
        metrics = frontend.metrics
        self._courier.announce(metrics)

        def add(record: Record) -> None:
            if record.verdict == FLAGGED:
                flag = _Flag(record, metrics.engine, time.monotonic())
                self._courier.offer(flag, metrics, weight(record))

        return add

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Tries once to deliver each that waits, for at most ``patience`` seconds."""
        self._closing.set()
        self._courier.close(patience)

    def _told(self, flag: _Flag) -> tuple[Event, float]:
        return self._tell(flag.record, flag.engine), flag.since

    def _deliver(self, told: Sequence[tuple[Event, float]]) -> int:
        """0, all were taken. Raises ``ReceiverError`` where one never was."""
        for event, since in told:
            while (trouble := self._attempt(event)) is not None:
                pause = self._patience.pause(self._failures, random.random())
                too_old = time.monotonic() - since + pause > self._patience.lifetime
                if too_old or self._closing.wait(pause):
                    raise trouble
        return 0

    def _attempt(self, event: Event) -> MonitorError | None:
        """Why the receiver did not take it now; None if it did. Raises ``ReceiverError`` where it never will."""
        try:
            status = post(self._address(event), self._patience.attempt)
        except ReceiverError as error:
            return self._failed(error)
        if 200 <= status < 300:
            if self._failures:
                logger.warning("probewatch: the %s takes flags again", self._sink)
            self._failures = 0
            return None
        redirect = ": redirects are not followed" if 300 <= status < 400 else ""
        trouble = self._failed(ReceiverError(f"HTTP {status}{redirect}"))
        if status < 500 and status not in RETRIED:
            raise trouble
        return trouble

    def _failed(self, trouble: ReceiverError) -> ReceiverError:
        if not self._failures:
            logger.warning(
                "probewatch: the %s does not take flags (%s); trying again, and %s counts what is lost",
                self._sink,
                trouble,
                METRIC,
            )
        self._failures += 1
        return trouble
