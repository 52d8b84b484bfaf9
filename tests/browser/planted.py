"""The real routes and the real page over sequences that were planted, on a free port of the loopback interface."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import SecretStr

from monitor.config import Settings
from monitor.events import FloatArray
from monitor.frontend import Arrival, Running
from monitor.http import HttpState, make_router
from monitor.ui.routes import make_page_router
from tests.unit.monitor_fakes import BENIGN, alerting, alone, make_frontend

NEUTRAL = "The inspector went to the harbour and looked at the crane."


def probes() -> tuple[Any, ...]:
    """Three of one state column each: one acts, one observes, one has no threshold. The first token never counts."""
    counted: dict[str, Any] = {"token_mask": {"prompt": "all", "skip_positions": (0,)}}
    return (
        alerting("deception", threshold=2.5, benign_quantiles=BENIGN, **counted),
        alerting("being-audited", threshold=1.0, default_action="observe", **counted),
        alerting("believed-valence", threshold=None, default_action="observe", **counted),
    )


def words(text: str) -> list[str]:
    """Tokens as a model has them: words with the space before them, line breaks apart."""
    return re.findall(r"\n| ?[^ \n]+", text)


class Door:
    """Notes every path that is asked for, and guards ``/v1`` as vLLM does where there is an API key."""

    def __init__(self, app: Any, api_key: str | None, asked: list[str]) -> None:
        self._app = app
        self._api_key = api_key
        self._asked = asked

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        app = self._app
        self._asked.append(scope["path"])
        if self._api_key is not None and scope["path"].startswith("/v1"):
            if dict(scope["headers"]).get(b"authorization") != f"Bearer {self._api_key}".encode():
                app = JSONResponse({"error": "Unauthorized"}, 401)
        await app(scope, receive, send)


class Site:
    """A server with the monitor's routes. ``api_key``: as vLLM's own ``--api-key`` guards ``/v1``."""

    def __init__(self, *, admin_key: str | None = None, api_key: str | None = None, **settings: Any) -> None:
        self.frontend, _ = make_frontend(*probes(), recent=1024)
        self.frontend.confirm()
        key = None if admin_key is None else SecretStr(admin_key)
        chosen = Settings(
            **{"evidence_path": "off", "open_evidence": admin_key is None, "admin_key": key, **settings}
        )
        self.vocabulary: list[str] = []
        self._ids: dict[str, int] = {}
        facts = {"vllm_version": "0.32.0", "runner": "v1", "tapped_layers": [1, 2]}
        self.state = HttpState(alone(self.frontend), chosen, self._decode, facts)
        self.state.keep_evidence(0)
        self.state.closing = lambda: self._server.should_exit
        self.asked: list[str] = []
        self._application = FastAPI()
        self._application.include_router(make_router(lambda: self.state))
        self._application.include_router(make_page_router())
        self._application.add_middleware(Door, api_key=api_key, asked=self.asked)
        self.port = 0
        self._start()

    def _start(self) -> None:
        config = uvicorn.Config(self._application, port=self.port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.page = f"{self.url}/probewatch/ui"

    def stop(self) -> None:
        """As a server that ends; ``start`` brings it back on its port."""
        self._server.should_exit = True
        self._thread.join(10)

    def start(self) -> None:
        """Again, with what it remembered."""
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        if self.state.evidence is not None:
            self.state.evidence.close()

    def _decode(self, ids: list[int]) -> str:
        return "".join(self.vocabulary[i] for i in ids)

    def _id(self, token: str) -> int:
        if token not in self._ids:
            self._ids[token] = len(self.vocabulary)
            self.vocabulary.append(token)
        return self._ids[token]

    def plant(
        self,
        response_id: str,
        prompt: str | Sequence[str],
        answer: str | Sequence[str],
        *,
        scores: FloatArray | None = None,
        peak: float = 4.0,
        choice: int = 0,
    ) -> None:
        """One finished sequence. ``scores [T, 3]``: of the fed tokens; by default noise with a peak in the answer."""
        tokens = [words(part) if isinstance(part, str) else list(part) for part in (prompt, answer)]
        ids = [[self._id(token) for token in part] for part in tokens]
        fed = len(ids[0]) + len(ids[1]) - 1
        states = noise(fed, len(ids[0]), peak) if scores is None else scores
        running = Running(response_id, None, choice, len(ids[0]), tuple(ids[0]))
        self.frontend.arrive([Arrival(running, tuple(ids[1]), 0, states)])
        self.frontend.finish(running, "stop")


def noise(fed: int, prompt: int, peak: float) -> FloatArray:
    """``[fed, 3]`` quiet scores with a bump of height ``peak`` in the middle of the answer."""
    random = np.random.default_rng(fed)
    found = random.normal(0, 0.5, (fed, 3)).astype(np.float32)
    place = prompt + (fed - prompt) // 2
    width = max(1.0, (fed - prompt) / 12)
    bump = np.exp(-(((np.arange(fed) - place) / width) ** 2))
    found[:, 0] += (peak * bump).astype(np.float32)
    found[place, 0] = peak
    found[0] = 9.0  # what models do with their first token
    return found
