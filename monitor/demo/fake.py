"""A server with the routes that the demo and ``watch`` use, and planted answers instead of a model. For tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from monitor.client import ADMIN_HEADER

Message = dict[str, str]

THRESHOLD = 0.5


class _Listener(ThreadingHTTPServer):
    request_queue_size = 64
    """With the usual 5 a connection of several clients at once may wait a second for its turn."""


@dataclass(frozen=True, slots=True)
class Planted:
    """What the model says and what the probe makes of it."""

    text: str
    score: float | None = 0.0
    lost_tokens: int = 0
    """Tokens inside the mask without a score."""

    @property
    def flagged(self) -> bool:
        return self.score is not None and self.score > THRESHOLD


@dataclass
class FakeServer:
    """Listens on a free port of the loopback interface while its context lasts. Bodies as in ``monitor.http``."""

    respond: Callable[[Sequence[Message]], Planted] = lambda messages: Planted("Hello.")
    plugin: bool = True
    admin_key: str | None = None
    api_key: str | None = None
    miscount: int = 0
    """Added to the counter of flagged requests."""
    broken: int = 0
    """Status code of every route, if not 0."""
    page: bool = False
    concept: str = "deception"
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[Sequence[Message]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(*fake.get(self.path, dict(self.headers)))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._send(*fake.post(json.loads(body)))

            def _send(self, code: int, body: Any) -> None:
                text = body if isinstance(body, str) else json.dumps(body)
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if body is text else "application/json")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                return None

        self._http = _Listener(("127.0.0.1", 0), Handler)
        self.port = int(self._http.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def get(self, path: str, headers: dict[str, str]) -> tuple[int, Any]:
        """Status code and body of a GET."""
        path, _, query = path.partition("?")
        if self.broken:
            return self.broken, {"detail": "broken on purpose"}
        if (
            path.startswith("/v1")
            and self.api_key
            and headers.get("Authorization") != f"Bearer {self.api_key}"
        ):
            return 401, {"error": "Unauthorized"}
        found = {
            "/health": (200, ""),
            "/version": (200, {"version": "0.32.0"}),
            "/v1/models": (200, {"data": [{"id": "concealed-ledger", "root": "/models/ledger"}]}),
        }.get(path)
        return found or (
            self._monitored(path, query, headers) if self.plugin else (404, {"detail": "Not Found"})
        )

    def _monitored(self, path: str, query: str, headers: dict[str, str]) -> tuple[int, Any]:
        prefix = "/v1/probewatch/"
        if path == "/metrics":
            return 200, self.metrics()
        if path == "/probewatch/ui":
            return (200, "<html>") if self.page else (404, {"detail": "Not Found"})
        if path == prefix + "status":
            return 200, self.status()
        if path.startswith(prefix + "requests"):
            if self.admin_key is not None and headers.get(ADMIN_HEADER) != self.admin_key:
                # vLLM's own error handler wraps what FastAPI would send as `detail`.
                return 403, {"error": {"message": f"header {ADMIN_HEADER} is missing or wrong", "code": 403}}
            if path == prefix + "requests":
                newest = list(reversed(self.records.values()))[: int(query.removeprefix("limit="))]
                return 200, [_headline(record) for record in newest]
            record = self.records.get(path.rpartition("/")[2])
            return (
                (200, record)
                if record
                else (404, {"error": {"message": "no finished request is remembered"}})
            )
        return 404, {"detail": "Not Found"}

    def post(self, body: dict[str, Any]) -> tuple[int, Any]:
        """A chat completion."""
        if self.broken:
            return self.broken, {"error": {"message": "broken on purpose"}}
        planted = self.respond(body["messages"])
        with self._lock:
            number = len(self.records)
            response_id = f"chatcmpl-{number}"
            self.asked.append(body["messages"])
            self.records[response_id] = _record(response_id, number, planted)
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": planted.text},
        }
        head = {"id": response_id, "object": "chat.completion", "created": 0, "model": body["model"]}
        return 200, {**head, "choices": [choice]}

    def status(self) -> dict[str, Any]:
        """The body of ``GET /status``."""
        probe = {
            "name": "deception",
            "version": "1",
            "kind": "logistic",
            "concept": self.concept,
            "layers": [3],
            "threshold": THRESHOLD,
            "nominal_fpr": 0.01,
            "action": "alert",
            "sha256": "0" * 64,
        }
        observer = {**probe, "name": "honesty", "concept": "honesty", "threshold": None, "action": "observe"}
        return {
            "version": "0.1.0",
            "attached": True,
            "model": "concealed-ledger",
            "vllm_version": "0.32.0",
            "runner": "v1",
            "tapped_layers": [3],
            "score_store_mib": 1.0,
            "probes": [probe, {**observer, "nominal_fpr": None}],
            "coverage": {"deception": 1.0 if self.records else None, "honesty": None},
            "last_error": None,
        }

    def metrics(self) -> str:
        """The text of ``GET /metrics``."""
        flags = [record["probes"]["deception"]["flagged"] for record in self.records.values()]
        labels = 'engine="0",model_name="concealed-ledger",probe="deception"'
        return (
            "# TYPE probewatch_requests counter\n"
            f'probewatch_requests_total{{{labels},verdict="flagged"}} {7 + sum(flags) + self.miscount}\n'
            f'probewatch_requests_total{{{labels},verdict="ok"}} {len(flags) - sum(flags)}\n'
            "# TYPE probewatch_tokens_scored counter\n"
            f'probewatch_tokens_scored_total{{{labels},phase="prompt"}} {20 * len(flags)}\n'
            f'probewatch_tokens_scored_total{{{labels},phase="generation"}} {10 * len(flags)}\n'
        )


def _record(response_id: str, number: int, planted: Planted) -> dict[str, Any]:
    tokens = [
        {
            "position": position,
            "token_id": position,
            "token": "a",
            "phase": "generation",
            "score": None if position < planted.lost_tokens else planted.score,
            "reason": "not_delivered" if position < planted.lost_tokens else None,
            "masked": position >= 3,
        }
        for position in range(4)
    ]
    deception = {
        "score": planted.score,
        "threshold": THRESHOLD,
        "flagged": planted.flagged,
        "peak_token": 0,
        "tokens_scored": 3 - planted.lost_tokens,
        "tokens": tokens,
    }
    honesty = {"score": 1.5, "threshold": None, "flagged": False, "peak_token": 0, "tokens_scored": 3}
    unscored = planted.score is None or planted.lost_tokens > 0
    return {
        "id": response_id,
        "model": "concealed-ledger",
        "choice": 0,
        "verdict": "flagged" if planted.flagged else "unscored" if unscored else "ok",
        "probes": {"deception": deception, "honesty": {**honesty, "tokens": []}},
        "coverage": {"prompt": 1.0, "generated": 0.5 if unscored else 1.0},
        "finished_at": 1_700_000_000.0 + number,
    }


def _headline(record: dict[str, Any]) -> dict[str, Any]:
    probes = {
        name: {k: v for k, v in said.items() if k != "tokens"} for name, said in record["probes"].items()
    }
    flagged = [name for name, said in probes.items() if said["flagged"]]
    lengths = {"finish_reason": "stop", "prompt_tokens": 20, "fed_tokens": 30}
    return {**record, **lengths, "flagged_by": flagged, "probes": probes}
