"""vLLM's endpoint plugin: adds the routes, and lets the server become ready only with proven taps."""

from __future__ import annotations

from typing import Any

from monitor.config import load_settings
from monitor.errors import AttachError
from monitor.http import HttpState, make_router
from monitor.seam.engine import accept_report, vllm_version
from monitor.seam.worker import CARRIER


class ProbewatchEndpoint:
    """See ``vllm/plugins/endpoint_plugins/interface.py`` for the protocol."""

    name = "probewatch"
    required_tasks = ("generate",)

    def __init__(self, configured: bool) -> None:
        self._configured = configured
        self._state: HttpState | None = None

    def attach_router(self, app: Any) -> None:
        """Adds the routes; nothing at all unless the monitor is configured."""
        if self._configured:
            app.include_router(make_router(self._ready))

    def _ready(self) -> HttpState:
        if self._state is None:
            raise RuntimeError("the monitor is asked before the engine is up")
        return self._state

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Runs before the server listens. An error here keeps it from starting."""
        if not self._configured:
            return
        tap = getattr(getattr(engine_client, "output_processor", None), CARRIER, None)
        if tap is None:
            raise AttachError(
                "the monitor is configured and not attached to this engine; name probewatch in VLLM_PLUGINS "
                "or unset PROBEWATCH_PROBES"
            )
        reports = await engine_client.collective_rpc("probewatch_report")
        facts = accept_report(tap.frontend, reports, tap.plan.refuse)
        self._state = HttpState(
            frontend=tap.frontend,
            settings=load_settings(),
            decode=_decoder(engine_client.output_processor.tokenizer),
            facts={**facts, "vllm_version": vllm_version(), "runner": "v1"},
        )


def _decoder(tokenizer: Any) -> Any:
    if tokenizer is None:  # --skip-tokenizer-init
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
