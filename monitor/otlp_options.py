"""How a collector is spoken to, by OpenTelemetry's own variables; a signal's own goes before the general one."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from monitor.errors import ConfigurationError

PREFIX = "OTEL_EXPORTER_OTLP_"
HTTP, GRPC = "http/protobuf", "grpc"
ANSWER_BYTES = 65536
"""A longer answer is not read: a hostile collector shall not fill the memory."""


class Options(NamedTuple):
    """Of one signal (OpenTelemetry specification, "OpenTelemetry Protocol Exporter")."""

    protocol: str = HTTP
    headers: Mapping[str, str] = {}
    certificate: str | None = None
    """PEM of the authorities that may vouch for the collector; None: the usual ones."""
    client_certificate: str | None = None
    """PEM that this server shows."""
    client_key: str | None = None
    """PEM of its key, where that lies apart."""


def options_of(environ: Mapping[str, str], signal: str) -> Options:
    """``signal``: ``LOGS`` or ``TRACES``. Raises ``ConfigurationError`` for what would fail at every attempt."""

    def name(what: str) -> str:
        own = f"{PREFIX}{signal}_{what}"
        return own if environ.get(own) else PREFIX + what

    protocol = environ.get(name("PROTOCOL")) or HTTP
    if protocol not in (HTTP, GRPC):
        raise ConfigurationError(f"{name('PROTOCOL')}={protocol[:40]!r} is not spoken; set {HTTP} or {GRPC}")
    files = {
        what: environ.get(name(what)) or None for what in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY")
    }
    if files["CLIENT_KEY"] and not files["CLIENT_CERTIFICATE"]:
        raise ConfigurationError(f"{name('CLIENT_KEY')} is set without {PREFIX}CLIENT_CERTIFICATE; set both")
    found = Options(protocol, headers_of(environ.get(name("HEADERS"), "")), *files.values())
    _check(found, {what: name(what) for what in files})
    return found


def headers_of(text: str) -> dict[str, str]:
    """``name=value,...`` with percent-encoded values, as OpenTelemetry's own exporters read it."""
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {name.strip(): unquote(value.strip()) for name, _, value in pairs}


def _check(options: Options, names: Mapping[str, str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    what, file = names["CERTIFICATE"], options.certificate
    try:
        if options.certificate is not None:
            context.load_verify_locations(options.certificate)
        if options.client_certificate is not None:
            what, file = names["CLIENT_CERTIFICATE"], options.client_certificate
            context.load_cert_chain(options.client_certificate, options.client_key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl's errors are OSErrors
        reason = " ".join(str(error).split())[:120]
        where = f" with {names['CLIENT_KEY']}={options.client_key}" if options.client_key else ""
        raise ConfigurationError(
            f"{what}={file}{where} cannot be used ({reason}); name a PEM file that this user can read, its key "
            "without a password"
        ) from error


def read(path: str | None) -> bytes | None:
    """The bytes of a file that ``options_of`` has looked at."""
    return None if path is None else Path(path).read_bytes()
