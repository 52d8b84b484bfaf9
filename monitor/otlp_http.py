"""OTLP over HTTP: a batch is one POST."""

from __future__ import annotations

import requests

from monitor.config import site_of
from monitor.errors import ServerError
from monitor.otlp_options import ANSWER_BYTES, Options
from monitor.otlp_sender import NotNow

TIMEOUT = (2.0, 5.0)
"""Seconds for a connection, and for each read of the answer."""
RETRIED = frozenset({429, 502, 503, 504})
"""Status codes after which OTLP allows another try (OTLP specification, "Retryable Response Codes")."""


class HttpExport:
    """It follows no redirect: evidence goes where the operator said, and nowhere else."""

    def __init__(self, url: str, options: Options) -> None:
        self._url = url
        self._site = site_of(url)
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no .netrc of whoever started the server
        self._session.verify = options.certificate or True
        if options.client_certificate is not None:
            key = options.client_key
            self._session.cert = (
                options.client_certificate if key is None else (options.client_certificate, key)
            )
        self._session.headers.update({**options.headers, "Content-Type": "application/x-protobuf"})

    def __call__(self, body: bytes) -> bytes:
        """See ``Export``. Raises ``ServerError`` where the batch is refused, and for an answer too long to be held."""
        with self._post(body) as answer:
            if answer.status_code != 200:
                trouble = NotNow if answer.status_code in RETRIED else ServerError
                raise trouble(f"{self._site} answers with status {answer.status_code}; look at the collector")
            content = next(answer.iter_content(ANSWER_BYTES + 1), b"")
        if len(content) > ANSWER_BYTES:
            raise ServerError(
                f"{self._site} answers with more than {ANSWER_BYTES} bytes; look at the collector"
            )
        return bytes(content)

    def _post(self, body: bytes) -> requests.Response:
        try:
            return self._session.post(
                self._url, data=body, timeout=TIMEOUT, allow_redirects=False, stream=True
            )
        except requests.exceptions.SSLError:
            raise  # a certificate does not get better
        except requests.ConnectionError as error:
            raise NotNow(
                f"{self._site} cannot be reached ({_first(error)}); look at the collector"
            ) from error


def _first(error: BaseException) -> BaseException:
    """What set a chain of errors off: the text of the later ones quotes the path, which may be a secret."""
    while error.__context__ is not None:
        error = error.__context__
    return error
