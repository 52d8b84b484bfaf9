"""Telling an OpenTelemetry collector what was judged: OTLP over HTTP, in threads of its own, off by default.

Why not the exporters of OpenTelemetry's SDK: its interface for logs is marked experimental and changed its names within
the versions that vLLM allows, and its batch processors drop what does not fit without a count. The messages are stable.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

import requests

from monitor.config import Settings
from monitor.courier import CLOSE_SECONDS, Courier
from monitor.errors import ConfigurationError, ServerError
from monitor.frontend import Frontend, Listener
from monitor.records import Record, weight

if TYPE_CHECKING:
    from monitor.otlp_messages import Told

DELIVERED = "delivered"
HEADERS_VARIABLE = "OTEL_EXPORTER_OTLP_HEADERS"
TIMEOUT = (2.0, 5.0)
"""Seconds for a connection, and for each read of the answer."""
ANSWER_BYTES = 65536
RETRIED = frozenset({429, 502, 503, 504})
"""Status codes after which OTLP allows another try (OTLP specification, "Retryable Response Codes")."""
PAUSES = (0.5, 1.0, 2.0)
"""Seconds before each further try."""

Encode = Callable[[Sequence["Told"]], bytes]


class Signal(NamedTuple):
    """One of the two roads of OTLP."""

    sink: str
    path: str
    encode: Encode
    rejected: Callable[[bytes], int]
    """How many items the collector's answer says it did not take."""


class Otlp:
    """Both signals of one server process."""

    def __init__(self, endpoint: str, headers: Mapping[str, str], signals: Sequence[Signal]) -> None:
        from monitor.otlp_messages import tell

        self._closing = threading.Event()
        self._couriers = [
            Courier[Record, "Told"](
                signal.sink, DELIVERED, tell, Sender(endpoint + signal.path, headers, signal, self._closing)
            )
            for signal in signals
        ]

    def start(self) -> None:
        """Starts the threads. No collector needs to be there yet."""
        for courier in self._couriers:
            courier.start()

    def listener(self, frontend: Frontend) -> Listener:
        """What an engine tells of every finished sequence. It neither waits nor raises."""
        metrics = frontend.metrics
        for courier in self._couriers:
            courier.announce(metrics)

        def add(record: Record) -> None:
            for courier in self._couriers:
                courier.offer(record, metrics, weight(record))

        return add

    def close(self, patience: float = CLOSE_SECONDS) -> None:
        """Sends what waits, each batch at most once more, for at most ``patience`` seconds together."""
        self._closing.set()
        closers = [threading.Thread(target=courier.close, args=(patience,)) for courier in self._couriers]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()


class Sender:
    """Posts batches of one signal. It follows no redirect: evidence goes where the operator said, and nowhere else."""

    def __init__(
        self, url: str, headers: Mapping[str, str], signal: Signal, closing: threading.Event
    ) -> None:
        self._url = url
        self._signal = signal
        self._closing = closing
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no .netrc of whoever started the server
        self._session.headers.update({**headers, "Content-Type": "application/x-protobuf"})

    def __call__(self, told: Sequence[Told]) -> int:
        """How many the collector did not take. Raises ``ServerError`` or ``requests.RequestException``."""
        body = self._signal.encode(told)
        for pause in (*PAUSES, None):
            try:
                answer = self._post(body)
            except requests.ConnectionError:
                if pause is None or self._closing.wait(pause):
                    raise
                continue
            if answer.status_code == 200:
                return min(self._signal.rejected(_content(answer)), len(told))
            last = pause is None or self._closing.wait(pause)
            if answer.status_code not in RETRIED or last:
                raise ServerError(
                    f"{self._url} answers with status {answer.status_code}; look at the collector"
                )
        raise AssertionError("the last try returns or raises")

    def _post(self, body: bytes) -> requests.Response:
        return self._session.post(self._url, data=body, timeout=TIMEOUT, allow_redirects=False, stream=True)


def open_otlp(settings: Settings, environ: Mapping[str, str] = os.environ) -> Otlp | None:
    """The exporter that the settings ask for, running; None without any. Raises ``ConfigurationError``."""
    if settings.otlp_endpoint is None:
        return None
    endpoint = settings.otlp_endpoint.rstrip("/")
    if not _is_address(endpoint):
        raise ConfigurationError(
            f"PROBEWATCH_OTLP_ENDPOINT={endpoint.rpartition('@')[2]} is no address of a collector; name its OTLP/HTTP "
            f"port, as in http://collector:4318, without user, password, ? or # ({HEADERS_VARIABLE} holds keys)"
        )
    found = Otlp(endpoint, headers_of(environ.get(HEADERS_VARIABLE, "")), _signals(environ))
    found.start()
    return found


def _is_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        plain = not set(endpoint) & set("@?#")  # an address is told in logs, and paths are added to it
        return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, a port beyond 65535
        return False


def headers_of(text: str) -> dict[str, str]:
    """``name=value,...`` with percent-encoded values, as OpenTelemetry's own exporters read it."""
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}


def _signals(environ: Mapping[str, str]) -> list[Signal]:
    try:
        from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
        from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

        from monitor.otlp_messages import logs_message, resource_of, spans_message

        LogRecord(event_name="")  # since OTLP 1.5
    except (ImportError, ValueError) as error:
        raise ConfigurationError(
            f"PROBEWATCH_OTLP_ENDPOINT needs OpenTelemetry's messages ({error}); install 'opentelemetry-proto>=1.31'"
        ) from error
    resource = resource_of(environ)

    def refused_logs(answer: bytes) -> int:
        return int(ExportLogsServiceResponse.FromString(answer).partial_success.rejected_log_records)

    def refused_spans(answer: bytes) -> int:
        return int(ExportTraceServiceResponse.FromString(answer).partial_success.rejected_spans)

    def logs(told: Sequence[Told]) -> bytes:
        return logs_message((event for one in told for event in one.events), resource)

    def spans(told: Sequence[Told]) -> bytes:
        return spans_message((one.span for one in told), resource)

    return [
        Signal("otlp_logs", "/v1/logs", logs, refused_logs),
        Signal("otlp_traces", "/v1/traces", spans, refused_spans),
    ]


def _content(answer: requests.Response) -> bytes:
    """The body. Raises ``ServerError`` for a long one: a hostile collector shall not fill the memory."""
    with answer:
        content = next(answer.iter_content(ANSWER_BYTES + 1), b"")
    if len(content) > ANSWER_BYTES:
        raise ServerError(f"{answer.url} answers with more than {ANSWER_BYTES} bytes; look at the collector")
    return bytes(content)
