"""A small HTTP client for a running server. Every failure is a ``ServerError`` of one line with its remedy."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from requests import ConnectionError as NoConnection
from requests import JSONDecodeError, RequestException, Response, Session, Timeout

from monitor.errors import ConfigurationError, ServerError

ADMIN_HEADER = "X-Probewatch-Admin-Key"
API_KEY_VARIABLE = "VLLM_API_KEY"
ADMIN_KEY_VARIABLE = "PROBEWATCH_ADMIN_KEY"
TIMEOUT_SECONDS = 10.0
LONG_SECONDS = 150.0
"""A change waits for all workers and API servers, words wait for a replay."""


class ServerAway(ServerError):
    """Nobody answers, or the server answers that it is not able to; it may come back."""


class UnknownRequest(ServerError):
    """The server remembers no finished request of that id."""


class ServerBusy(ServerError):
    """The server is at another such question; it says when to ask again."""


class Server:
    """The routes of one server. Keys default to the environment: VLLM_API_KEY, PROBEWATCH_ADMIN_KEY.

    Safe to share between threads: nothing of it changes after it was made.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        admin_key: str | None = None,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self.url = base_url(url)
        self._timeout = timeout
        self.api_key = api_key or os.environ.get(API_KEY_VARIABLE)
        self._admin_key = admin_key or os.environ.get(ADMIN_KEY_VARIABLE)

    def status(self) -> dict[str, Any]:
        """``GET /v1/probewatch/status``."""
        reply = self._get("/v1/probewatch/status")
        if reply.status_code == 404:
            raise ServerError(self._without_plugin())
        return _object(self._checked(reply))

    def requests(self, limit: int = 50) -> list[dict[str, Any]]:
        """Headlines of the newest finished requests, newest first."""
        reply = self._get(f"/v1/probewatch/requests?limit={limit}")
        if reply.status_code == 404:
            raise ServerError(self._without_plugin())
        body = _json(self._checked(reply))
        if not isinstance(body, list):
            raise ServerError(f"{reply.url} answered no JSON list: is this a probewatch server?")
        return body

    def request(self, response_id: str) -> dict[str, Any]:
        """Verdict and token scores of one request. Raises ``UnknownRequest`` if it is not remembered."""
        reply = self._get(f"/v1/probewatch/requests/{quote(response_id, safe='')}")
        if reply.status_code == 404:
            raise UnknownRequest(_reason(reply))
        return _object(self._checked(reply))

    def words(self, response_id: str, choice: int, probe: str) -> dict[str, Any]:
        """``GET /v1/probewatch/words``: logit-lens words at the peak of a probe; the server takes seconds.

        Raises ``ServerBusy`` while it replays for somebody else.
        """
        asked = urlencode({"id": response_id, "choice": choice, "probe": probe})
        reply = self._ask("GET", f"/v1/probewatch/words?{asked}", timeout=LONG_SECONDS)
        if reply.status_code == 429:
            raise ServerBusy(_reason(reply))
        if reply.status_code in (404, 409):
            raise ServerError(_reason(reply))
        return _object(self._checked(reply))

    def scores(self, probe: str, since: str, until: str) -> dict[str, Any]:
        """``GET /v1/probewatch/scores``: what a probe's statistic was on recorded traffic."""
        asked = urlencode({"probe": probe, "since": since, "until": until})
        reply = self._ask("GET", f"/v1/probewatch/scores?{asked}", timeout=LONG_SECONDS)
        if reply.status_code in (404, 409, 422):
            raise ServerError(_reason(reply))
        return _object(self._checked(reply))

    def attach(self, path: str) -> list[dict[str, Any]]:
        """``POST /v1/probewatch/probes``: attaches the artifact at ``path`` in the server's PROBE_DIR."""
        return self._changed("POST", "/v1/probewatch/probes", {"path": path})

    def detach(self, name: str) -> list[dict[str, Any]]:
        """``DELETE /v1/probewatch/probes/{name}``."""
        return self._changed("DELETE", f"/v1/probewatch/probes/{quote(name, safe='')}")

    def change(self, name: str, changes: dict[str, Any]) -> list[dict[str, Any]]:
        """``PATCH /v1/probewatch/probes/{name}`` with threshold or action."""
        return self._changed("PATCH", f"/v1/probewatch/probes/{quote(name, safe='')}", changes)

    def _changed(self, method: str, path: str, body: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        self.status()  # a server without the plugin says how to start one with it
        reply = self._ask(method, path, body, LONG_SECONDS)
        if reply.status_code in (404, 409, 422):
            raise ServerError(_reason(reply))
        found = _json(self._checked(reply))
        return found if isinstance(found, list) else []

    def metrics(self) -> str:
        """The text of ``GET /metrics``, vLLM's own families included."""
        return str(self._checked(self._get("/metrics")).text)

    def models(self) -> list[dict[str, Any]]:
        """What ``GET /v1/models`` lists."""
        found = _object(self._checked(self._get("/v1/models"))).get("data")
        return found if isinstance(found, list) else []

    def answers(self, path: str) -> bool:
        """Whether a GET of ``path`` answers 200."""
        try:
            return bool(self._get(path).status_code == 200)
        except ServerError:
            return False

    def _get(self, path: str) -> Response:
        return self._ask("GET", path)

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, timeout: float | None = None
    ) -> Response:
        timeout = timeout or self._timeout
        headers = {}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        if self._admin_key:
            headers[ADMIN_HEADER] = self._admin_key
        with Session() as session:
            session.trust_env = not is_loopback(self.url)  # a proxy does not lead back to this machine
            try:
                return session.request(method, self.url + path, headers=headers, json=body, timeout=timeout)
            except Timeout as error:
                raise ServerAway(
                    f"{self.url} did not answer {path} within {timeout:g} s; is the server overloaded?"
                ) from error
            except NoConnection as error:
                raise ServerAway(
                    f"{self.url} cannot be reached ({_root(error)}); is the server up, and are host and port right?"
                ) from error
            except RequestException as error:
                raise ServerError(f"{self.url} cannot be asked: {_one_line(error)}; check the URL") from error

    def _checked(self, reply: Response) -> Response:
        code = reply.status_code
        if code == 200:
            return reply
        if code == 401:
            raise ServerError(f"{self.url} asks for vLLM's API key; give --api-key or set {API_KEY_VARIABLE}")
        if code == 403:
            here = f"--admin-key or {ADMIN_KEY_VARIABLE} sends it from here"
            raise ServerError(f"{self.url} refuses: {_reason(reply)} ({here})")
        kind = ServerAway if code >= 500 else ServerError
        raise kind(f"{reply.url} answered {code}: {_reason(reply)}; see the server's log")

    def _without_plugin(self) -> str:
        version = self._version()
        if version is None:
            return f"{self.url} answers, but it is no vLLM server (it has no /version); check the URL"
        command = (
            f"probewatch serve {self._served_model()} --probe FILE --port {urlsplit(self.url).port or 80}"
        )
        return f"{self.url} is vLLM {version} without probewatch; start it with: {command}"

    def _version(self) -> str | None:
        reply = self._get("/version")
        try:
            return str(_object(reply)["version"]) if reply.status_code == 200 else None
        except (ServerError, KeyError):
            return None

    def _served_model(self) -> str:
        try:
            first = self.models()[0]
            return str(first.get("root") or first["id"])
        except (ServerError, IndexError, KeyError):
            return "MODEL"


def base_url(url: str) -> str:
    """``http://HOST:PORT`` without a trailing slash or ``/v1``. Raises ``ConfigurationError`` if it is none."""
    parts = urlsplit(url.strip())
    try:
        valid = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:  # a port that is no number
        valid = False
    if not valid:
        raise ConfigurationError(f"--url {url!r} is no server's address; give it like http://127.0.0.1:8000")
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/v1")


def is_loopback(url: str) -> bool:
    """Whether the URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _json(reply: Response) -> Any:
    try:
        return reply.json()
    except JSONDecodeError as error:
        raise ServerError(f"{reply.url} did not answer in JSON; is this a probewatch server?") from error


def _object(reply: Response) -> dict[str, Any]:
    body = _json(reply)
    if not isinstance(body, dict):
        raise ServerError(f"{reply.url} answered no JSON object: is this a probewatch server?")
    return body


def _reason(reply: Response) -> str:
    """What the server says went wrong: FastAPI's ``detail`` or vLLM's ``error.message``."""
    try:
        body = reply.json()
        said = body["error"]["message"] if "error" in body else body["detail"]
    except (JSONDecodeError, KeyError, TypeError):
        said = reply.text or reply.reason
    return _one_line(said)


def _root(error: BaseException) -> str:
    """The innermost cause in a few words: "Connection refused" instead of three nested exceptions."""
    text = _one_line(error)
    for known in ("Connection refused", "Name or service not known", "No route to host", "Connection reset"):
        if known in text:
            return known.lower()
    return text[-100:]


def _one_line(what: object) -> str:
    return " ".join(str(what).split())[:300]
