"""vLLM's endpoint plugin: adds the routes, and lets the server become ready only with proven taps."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
from pathlib import Path
from typing import Any

from monitor.attach import local_model_dir
from monitor.config import Settings, load_settings
from monitor.control import Control
from monitor.errors import AttachError, MonitorError
from monitor.expose import Exposure
from monitor.http import HttpState, answer, make_router
from monitor.peers import Peers
from monitor.records import RecentRecords
from monitor.refusal import file_reason
from monitor.seam.engine import accept_report
from monitor.seam.outputs import OutputTap
from monitor.seam.supported import runner_name, vllm_version
from monitor.wire import CARRIER
from probes import ProbeError
from probes.identity import ModelIdentity, model_identity


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
            app.add_middleware(Exposure, known=self._known)

    def _known(self) -> tuple[Settings, RecentRecords]:
        state = self._ready()
        return state.settings, state.engines.recent

    def _ready(self) -> HttpState:
        if self._state is None:
            raise RuntimeError("the monitor is asked before the engine is up")
        return self._state

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Runs before the server listens. An error here keeps it from starting."""
        if not self._configured:
            return
        try:
            await self._prepare(engine_client, args)
        except MonitorError as error:
            file_reason(str(error))
            raise

    async def _prepare(self, engine_client: Any, args: Any) -> None:
        tap = getattr(getattr(engine_client, "output_processor", None), CARRIER, None)
        if tap is None:
            raise AttachError(
                "the monitor is configured and not attached to this engine; name probewatch in VLLM_PLUGINS "
                "or unset PROBEWATCH_PROBES"
            )
        settings = load_settings()
        _refuse_open_doors(settings, args)
        _refuse_other_template(tap, args)
        reports = await _ask_workers(engine_client, "probewatch_report")
        facts = accept_report(tap.engines, reports, tap.plan.refuse)
        found = HttpState(
            engines=tap.engines,
            settings=settings,
            decode=_decoder(engine_client.output_processor.tokenizer),
            facts={**facts, "vllm_version": vllm_version(), "runner": runner_name(engine_client.vllm_config)},
        )
        # Set by vLLM, for its own metrics, exactly where it runs several API servers.
        if shared := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            found.peers = Peers(Path(shared) / "probewatch", functools.partial(answer, found))
            await found.peers.listen()
        found.control = _control(engine_client, tap, settings, found.peers)
        self._state = found


async def _ask_workers(client: Any, method: str, arguments: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
    """The answers of all workers of all engines; vLLM's own ``collective_rpc`` gives those of the first engine."""
    core = client.engine_core
    engines = getattr(core, "core_engines", None)
    one = getattr(core, "_call_utility_async", None)
    if engines is None or one is None or len(engines) < 2:
        return list(await client.collective_rpc(method, args=arguments))
    calls = [one("collective_rpc", method, None, arguments, None, engine=engine) for engine in engines]
    return [answer for answers in await asyncio.gather(*calls) for answer in answers]


def _control(client: Any, tap: OutputTap, settings: Settings, peers: Peers | None) -> Control | None:
    if not tap.engines.attached:
        return None

    async def rpc(method: str, arguments: tuple[Any, ...]) -> list[dict[str, Any]]:
        return await _ask_workers(client, method, arguments)

    identity = None if settings.probe_dir is None else _identity(client.vllm_config.model_config)
    return Control(tap.engines, rpc, identity, settings.probe_dir, peers)


def _identity(config: Any) -> ModelIdentity:
    try:
        return model_identity(local_model_dir(config.model, config.revision))
    except (AttachError, ProbeError) as error:
        raise AttachError(
            f"PROBEWATCH_PROBE_DIR is set and the served model cannot be identified, so nothing could be attached: "
            f"{error}"
        ) from error


def _refuse_open_doors(settings: Settings, args: Any) -> None:
    host = getattr(args, "host", None)
    if settings.open_evidence and host not in ("127.0.0.1", "localhost", "::1"):
        raise AttachError(
            f"PROBEWATCH_OPEN_EVIDENCE=1 with --host {host or '(every interface)'} would show evidence to the network; "
            "add --host 127.0.0.1, or set PROBEWATCH_ADMIN_KEY instead"
        )


def _refuse_other_template(tap: OutputTap, args: Any) -> None:
    given = getattr(args, "chat_template", None)
    if given is None or not tap.plan.probes:
        return
    text = Path(given).read_text() if Path(given).is_file() else str(given)
    digest = hashlib.sha256(text.encode()).hexdigest()
    for probe in tap.plan.probes:
        bound = probe.manifest.binding
        if bound is not None and bound.chat_template_digest not in (None, digest):
            raise AttachError(
                f"probe {probe.manifest.name!r} was calibrated on another template than --chat-template {given[:60]}; "
                "leave the option out, or calibrate again"
            )


def _decoder(tokenizer: Any) -> Any:
    if tokenizer is None:  # --skip-tokenizer-init
        return lambda ids: " ".join(map(str, ids))
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
