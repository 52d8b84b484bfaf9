"""OTLP over gRPC: batches of one signal, as raw calls. ``grpcio`` comes with vLLM's own OpenTelemetry exporter."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from monitor.config import site_of
from monitor.errors import ConfigurationError, ServerError
from monitor.otlp_options import ANSWER_BYTES, PREFIX, Options, read

if TYPE_CHECKING:
    from monitor.otlp import Signal
    from monitor.otlp_messages import Told

SECONDS = 5.0
"""For one call."""
RETRIED = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
"""Codes after which OTLP allows another try (OTLP specification, "OTLP/gRPC Response")."""


class GrpcSender:
    """It asks no proxy, and verifies certificates where the endpoint is ``https``."""

    def __init__(
        self,
        endpoint: str,
        signal: Signal,
        options: Options,
        pauses: Sequence[float],
        closing: threading.Event,
    ) -> None:
        try:
            grpc: Any = importlib.import_module("grpc")
        except ImportError as error:
            raise ConfigurationError(
                f"{PREFIX}PROTOCOL=grpc needs grpcio ({error}); install it, or speak http/protobuf"
            ) from error
        self._error: Any = grpc.RpcError
        self._signal = signal
        self._pauses = pauses
        self._closing = closing
        self._site = site_of(endpoint)
        self._metadata = tuple((name.lower(), value) for name, value in options.headers.items())
        limits = (("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", ANSWER_BYTES))
        parts = urlsplit(endpoint)
        if parts.scheme == "https":
            credentials = grpc.ssl_channel_credentials(
                read(options.certificate),
                read(options.client_key or options.client_certificate),
                read(options.client_certificate),
            )
            channel = grpc.secure_channel(parts.netloc, credentials, limits)
        else:
            channel = grpc.insecure_channel(parts.netloc, limits)
        self._export = channel.unary_unary(signal.method)  # without serialisers: bytes in, bytes out

    def __call__(self, told: Sequence[Told]) -> int:
        """How many the collector did not take. Raises ``ServerError``."""
        body = self._signal.encode(told)
        for pause in (*self._pauses, None):
            try:
                answer: bytes = self._export(body, timeout=SECONDS, metadata=self._metadata)
                return min(self._signal.rejected(answer), len(told))
            except self._error as error:
                code = error.code().name
                last = pause is None or self._closing.wait(pause)
                if code not in RETRIED or last:
                    reason = " ".join(str(error.details()).split())[:200]
                    raise ServerError(
                        f"{self._site} answers {code} ({reason}); look at the collector"
                    ) from error
        raise AssertionError("the last try returns or raises")
