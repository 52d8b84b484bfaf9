"""OTLP over HTTP: batches of one signal, posted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import requests

from monitor.config import site_of
from monitor.errors import ServerError
from monitor.otlp_options import ANSWER_BYTES, Options

if TYPE_CHECKING:
    from monitor.otlp import Signal
    from monitor.otlp_messages import Told

TIMEOUT = (2.0, 5.0)
"""Seconds for a connection, and for each read of the answer."""
RETRIED = frozenset({429, 502, 503, 504})
"""Status codes after which OTLP allows another try (OTLP specification, "Retryable Response Codes")."""


class HttpSender:
    """It follows no redirect: evidence goes where the operator said, and nowhere else."""

    def __init__(
        self,
        endpoint: str,
        signal: Signal,
        options: Options,
        pauses: Sequence[float],
        closing: threading.Event,
    ) -> None:
        self._url = endpoint + signal.path
        self._site = site_of(endpoint)
        self._signal = signal
        self._pauses = pauses
        self._closing = closing
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no .netrc of whoever started the server
        self._session.verify = options.certificate or True
        if options.client_certificate is not None:
            key = options.client_key
            self._session.cert = (
                options.client_certificate if key is None else (options.client_certificate, key)
            )
        self._session.headers.update({**options.headers, "Content-Type": "application/x-protobuf"})

    def __call__(self, told: Sequence[Told]) -> int:
        """How many the collector did not take. Raises ``ServerError`` or ``requests.RequestException``."""
        body = self._signal.encode(told)
        for pause in (*self._pauses, None):
            try:
                answer = self._post(body)
            except requests.exceptions.SSLError:
                raise  # a certificate does not get better
            except requests.ConnectionError:
                if pause is None or self._closing.wait(pause):
                    raise
                continue
            if answer.status_code == 200:
                return min(self._signal.rejected(_content(answer, self._site)), len(told))
            last = pause is None or self._closing.wait(pause)
            if answer.status_code not in RETRIED or last:
                raise ServerError(
                    f"{self._site} answers with status {answer.status_code}; look at the collector"
                )
        raise AssertionError("the last try returns or raises")

    def _post(self, body: bytes) -> requests.Response:
        return self._session.post(self._url, data=body, timeout=TIMEOUT, allow_redirects=False, stream=True)


def _content(answer: requests.Response, site: str) -> bytes:
    """The body. Raises ``ServerError`` for a long one: a hostile collector shall not fill the memory."""
    with answer:
        content = next(answer.iter_content(ANSWER_BYTES + 1), b"")
    if len(content) > ANSWER_BYTES:
        raise ServerError(f"{site} answers with more than {ANSWER_BYTES} bytes; look at the collector")
    return bytes(content)
