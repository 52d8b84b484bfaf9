"""OTLP over gRPC: a batch is one raw call. ``grpcio`` comes with vLLM's own OpenTelemetry exporter."""

from __future__ import annotations

import importlib
from typing import Any
from urllib.parse import urlsplit

from monitor.config import site_of
from monitor.errors import ConfigurationError, ServerError
from monitor.otlp_options import ANSWER_BYTES, PREFIX, Options, read
from monitor.otlp_sender import NotNow

SECONDS = 5.0
"""For one call."""
RETRIED = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"})
"""Codes after which OTLP allows another try (OTLP specification, "OTLP/gRPC Response")."""


class GrpcExport:
    """It asks no proxy, and verifies certificates where the endpoint is ``https``."""

    def __init__(self, endpoint: str, method: str, options: Options) -> None:
        try:
            grpc: Any = importlib.import_module("grpc")
        except ImportError as error:
            raise ConfigurationError(
                f"{PREFIX}PROTOCOL=grpc needs grpcio ({error}); install it, or speak http/protobuf"
            ) from error
        self._error: Any = grpc.RpcError
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
        self._export = channel.unary_unary(method)  # without serialisers: bytes in, bytes out

    def __call__(self, body: bytes) -> bytes:
        """See ``Export``. Raises ``ServerError`` where the call fails for good."""
        try:
            return bytes(self._export(body, timeout=SECONDS, metadata=self._metadata))
        except self._error as error:
            code = error.code().name
            reason = " ".join(str(error.details()).split())[:200]
            trouble = NotNow if code in RETRIED else ServerError
            raise trouble(f"{self._site} answers {code} ({reason}); look at the collector") from error
