"""Receivers of pushed flags on this machine: one that behaves, and some that do not."""

from __future__ import annotations

import http.server
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.unit.waiting import until

Status = Callable[[int], int]
"""What the ``n``-th request (from 0) is answered with."""


@dataclass
class Post:
    """One request that a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Inbox:
    """What a receiver got, and where it listens."""

    url: str = ""
    posts: list[Post] = field(default_factory=list)

    def wait(self, count: int, seconds: float = 10.0) -> list[Post]:
        """Until so many posts have come."""
        until(lambda: len(self.posts) >= count, seconds, shown=lambda: f"{len(self.posts)} posts of {count}")
        return self.posts


def self_signed(path: Path) -> Path:
    """A certificate for localhost that nobody vouches for: ``path`` holds it and its key, ``path``.crt it alone."""
    openssl = shutil.which("openssl")
    assert openssl is not None
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(path), "-out", f"{path}.crt", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@contextmanager
def receiver(
    status: Status = lambda n: 200,
    headers: dict[str, str] | None = None,
    certificate: Path | None = None,
    port: int = 0,
) -> Iterator[Inbox]:
    """Reads each POST and answers with ``status``; over TLS where there is a certificate (PEM with its key)."""
    inbox = Inbox()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            number = len(inbox.posts)
            inbox.posts.append(Post(self.path, dict(self.headers), body))
            self.send_response(status(number))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that turn away are expected
        scheme = "https"
    inbox.url = f"{scheme}://localhost:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield inbox
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def raw_receiver(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """Accepts connections and lets ``behave`` do with each what it likes; gives the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve(connection: socket.socket) -> None:
            with connection:
                try:
                    behave(connection)
                except OSError:
                    return  # the other side has gone

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/hook"
        listening.shutdown(socket.SHUT_RDWR)
