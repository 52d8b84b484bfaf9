"""An OpenTelemetry collector that keeps what it receives, decoded from the bytes on the wire."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
from collections.abc import Callable
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """An OTLP/HTTP receiver. ``answer``: status and body for each path; a test may replace it."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.logs: list[ExportLogsServiceRequest] = []
        self.traces: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[str], tuple[int, bytes]] = accept
        self.posts: list[str] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.posts.append(self.path)
                receiver.headers.append(dict(self.headers))
                status, reply = receiver.answer(self.path)
                if status == 200 and self.path == "/v1/logs":
                    receiver.logs.append(ExportLogsServiceRequest.FromString(body))
                elif status == 200 and self.path == "/v1/traces":
                    receiver.traces.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(status)
                if status in (301, 307):
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(reply)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                """Nothing on the screen."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self.server.socket = tls.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://localhost:{self.server.server_port}"

    def events(self) -> list[dict[str, Any]]:
        records = [
            r for m in self.logs for rl in m.resource_logs for sl in rl.scope_logs for r in sl.log_records
        ]
        return [
            {"event": r.event_name, "trace": r.trace_id.hex(), "span": r.span_id.hex(), **plain(r)}
            for r in records
        ]

    def spans(self) -> list[Any]:
        return [s for m in self.traces for rs in m.resource_spans for ss in rs.scope_spans for s in ss.spans]


def accept(path: str) -> tuple[int, bytes]:
    return 200, b""


def plain(message: Any) -> dict[str, Any]:
    """Attributes by name."""
    found = {}
    for pair in message.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found
