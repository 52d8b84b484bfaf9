"""Telling an OpenTelemetry collector what was judged: OTLP over HTTP or gRPC, in threads of its own, off by default.

Why not the exporters of OpenTelemetry's SDK: its interface for logs is marked experimental and changed its names within
the versions that vLLM allows, and its batch processors drop what does not fit without a count. The messages are stable.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from monitor.config import Settings, site_of
from monitor.courier import CLOSE_SECONDS, Courier
from monitor.errors import ConfigurationError
from monitor.frontend import Frontend, Listener
from monitor.otlp_grpc import GrpcExport
from monitor.otlp_http import HttpExport
from monitor.otlp_options import GRPC, PREFIX, options_of
from monitor.otlp_sender import Export, Sender, Signal
from monitor.records import Record, weight

if TYPE_CHECKING:
    from monitor.otlp_messages import Told

DELIVERED = "delivered"
PAUSES = (0.5, 1.0, 2.0)
"""Seconds before each further try."""

_METHOD = "/opentelemetry.proto.collector.{}.v1.{}Service/Export"


class Otlp:
    """Both signals of one server process."""

    def __init__(self, endpoint: str, environ: Mapping[str, str], signals: Sequence[Signal]) -> None:
        from monitor.otlp_messages import tell

        self._closing = threading.Event()
        self._couriers = [
            Courier[Record, "Told"](
                signal.sink, DELIVERED, tell, make_sender(endpoint, environ, signal, self._closing)
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


def make_sender(
    endpoint: str, environ: Mapping[str, str], signal: Signal, closing: threading.Event
) -> Sender:
    """What exports batches of one signal, in the protocol that the environment asks for."""
    options = options_of(environ, signal.name)
    export: Export = (
        GrpcExport(endpoint, signal.method, options)
        if options.protocol == GRPC
        else HttpExport(endpoint + signal.path, options)
    )
    return Sender(signal, export, PAUSES, closing)


def open_otlp(settings: Settings, environ: Mapping[str, str] = os.environ) -> Otlp | None:
    """The exporter that the settings ask for, running; None without any. Raises ``ConfigurationError``."""
    if settings.otlp_endpoint is None:
        return None
    endpoint = settings.otlp_endpoint.rstrip("/")
    if not _is_address(endpoint):
        raise ConfigurationError(
            f"PROBEWATCH_OTLP_ENDPOINT={site_of(endpoint)} is no address of a collector; name its OTLP "
            f"port, as in http://collector:4318, without user, password, ? or # ({PREFIX}HEADERS holds keys)"
        )
    found = Otlp(endpoint, environ, _signals(environ))
    found.start()
    return found


def _is_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        plain = not set(endpoint) & set("@?#")  # an address is told in logs, and paths are added to it
        return plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, a port beyond 65535
        return False


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
        Signal("otlp_logs", "LOGS", "/v1/logs", _METHOD.format("logs", "Logs"), logs, refused_logs),
        Signal("otlp_traces", "TRACES", "/v1/traces", _METHOD.format("trace", "Trace"), spans, refused_spans),
    ]
