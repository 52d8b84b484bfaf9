"""One POST to a receiver that nobody can trust to behave: bounded in time and in what is read, and never led elsewhere.

Python's own ``http.client``: it follows no redirect, asks no proxy, reads no netrc and decompresses nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from dataclasses import dataclass
from urllib.parse import urlsplit

from monitor.errors import MonitorError


class ReceiverError(MonitorError):
    """A receiver cannot be reached, or does not answer as HTTP asks."""


@dataclass(frozen=True)
class Letter:
    """What is sent, and where to."""

    url: str
    body: bytes
    headers: dict[str, str]


def post(letter: Letter, seconds: float) -> int:
    """Sends once and returns the HTTP status; the reply's body stays unread. Raises ``ReceiverError``.

    All of it, the TLS handshake included, ends within ``seconds`` of the connection; connecting has as long again.
    """
    parts = urlsplit(letter.url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    try:
        with contextlib.closing(_socket(host, port, secure, seconds)) as connected:
            # Timeouts of sockets count from byte to byte: a receiver that drips could hold on for ever.
            late = threading.Event()
            guard = threading.Timer(seconds, _cut, (connected, late))
            guard.daemon = True
            guard.start()
            try:
                if isinstance(connected, ssl.SSLSocket):
                    connected.do_handshake()
                status = _exchange(connected, host, port, secure, letter)
            finally:
                guard.cancel()
            if late.is_set():  # http.client takes a head that was cut off for a whole one
                raise TimeoutError(f"no whole answer within {seconds:g} s")
            return status
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ReceiverError(
            f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        ) from error


def _socket(host: str, port: int, secure: bool, seconds: float) -> socket.socket:
    raw = socket.create_connection((host, port), seconds)
    if not secure:
        return raw
    try:
        return ssl.create_default_context().wrap_socket(
            raw, server_hostname=host, do_handshake_on_connect=False
        )
    except BaseException:
        raw.close()
        raise


def _exchange(connected: socket.socket, host: str, port: int, secure: bool, letter: Letter) -> int:
    parts = urlsplit(letter.url)
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection  # for the Host header
    connection = kind(host, port)
    connection.sock = connected
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("POST", target, letter.body, {**letter.headers, "Connection": "close"})
    return connection.getresponse().status


def _cut(connected: socket.socket, late: threading.Event) -> None:
    """Wakes whoever reads from or writes to the socket."""
    late.set()
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
