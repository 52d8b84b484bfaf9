"""Batches of one signal on their way to a collector: tried again where OTLP allows it, whichever protocol is spoken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from monitor.errors import ServerError

if TYPE_CHECKING:
    from monitor.otlp_messages import Told

Export = Callable[[bytes], bytes]
"""One try: a request's body to its answer's. Raises ``NotNow``, or what makes another try pointless."""


class NotNow(ServerError):
    """The collector did not take a batch, and may take it later."""


class Signal(NamedTuple):
    """One of the two roads of OTLP."""

    sink: str
    name: str
    """As OpenTelemetry's variables spell it."""
    path: str
    """Of the HTTP endpoint."""
    method: str
    """Of the gRPC service."""
    encode: Callable[[Sequence[Told]], bytes]
    rejected: Callable[[bytes], int]
    """How many items the collector's answer says it did not take."""


class Sender:
    """Exports batches. ``pauses``: seconds before each further try, cut short and the last one while ``closing``."""

    def __init__(
        self, signal: Signal, export: Export, pauses: Sequence[float], closing: threading.Event
    ) -> None:
        self._signal = signal
        self._export = export
        self._pauses = pauses
        self._closing = closing

    def __call__(self, told: Sequence[Told]) -> int:
        """How many the collector did not take. Raises what ended the last try."""
        answer = self._delivered(self._signal.encode(told))
        return min(self._signal.rejected(answer), len(told))

    def _delivered(self, body: bytes) -> bytes:
        for pause in self._pauses:
            try:
                return self._export(body)
            except NotNow:
                if self._closing.wait(pause):
                    raise
        return self._export(body)
