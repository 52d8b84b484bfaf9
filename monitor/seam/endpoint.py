"""vLLM's endpoint plugin: adds the routes, and lets the server become ready only with proven taps."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from monitor.attach import local_model_dir
from monitor.config import Settings, load_settings
from monitor.control import Control
from monitor.errors import AttachError, MonitorError
from monitor.expose import Exposure
from monitor.http import answer, make_router
from monitor.peers import Peers
from monitor.push import public_url
from monitor.records import RecentRecords
from monitor.refusal import file_reason
from monitor.replay import replay
from monitor.seam.engine import accept_report
from monitor.seam.outputs import OutputTap
from monitor.seam.supported import runner_name, vllm_version
from monitor.server_state import HttpState
from monitor.ui.routes import make_page_router
from monitor.wire import CARRIER
from monitor.words import Words
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
            app.include_router(make_router(self._ready, self._lifespan))
            app.include_router(make_page_router())
            app.add_middleware(Exposure, known=self._known)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        """Around vLLM's own: the server has stopped taking requests when this ends."""
        yield
        if self._state is not None:
            await asyncio.to_thread(self._state.close)

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
            await self._prepare(engine_client, state, args)
        except MonitorError as error:
            file_reason(str(error))
            raise

    async def _prepare(self, engine_client: Any, state: Any, args: Any) -> None:
        tap = getattr(getattr(engine_client, "output_processor", None), CARRIER, None)
        if tap is None:
            raise AttachError(
                "the monitor is configured and not attached to this engine; name probewatch in VLLM_PLUGINS "
                "or unset PROBEWATCH_PROBES"
            )
        settings = load_settings()
        _refuse_open_doors(settings, args)
        _refuse_other_template(tap, args)
        found = HttpState(
            engines=tap.engines,
            settings=settings,
            decode=_decoder(engine_client.output_processor.tokenizer),
            facts={
                "vllm_version": vllm_version(),
                "runner": runner_name(engine_client.vllm_config),
                "revision": engine_client.vllm_config.model_config.revision,
            },
            closing=functools.partial(_is_closing, state),
        )
        # Set by vLLM, for its own metrics, exactly where it runs several API servers.
        if shared := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            count = getattr(engine_client.vllm_config.parallel_config, "_api_process_count", 1)
            found.peers = Peers(Path(shared) / "probewatch", functools.partial(answer, found), count)
        # No other API server changes anything meanwhile, and afterwards none does without telling this one.
        async with contextlib.nullcontext() if found.peers is None else found.peers.alone():
            if found.peers is not None:
                await found.peers.listen()
            reports = await _ask_workers(engine_client, "probewatch_report")
            found.facts.update(accept_report(tap.engines, reports, tap.plan.refuse))
            found.control = _control(engine_client, tap, settings, found.peers)
        config = engine_client.vllm_config.model_config
        model_dir = functools.partial(local_model_dir, config.model, config.revision)
        found.words = Words(model_dir, settings.words_mib, replay(found.closing))
        port = getattr(args, "port", 0)
        await asyncio.to_thread(found.keep_evidence, port)
        secure = bool(getattr(args, "ssl_certfile", None))
        url = public_url(settings, getattr(args, "host", None), port, secure)
        await asyncio.to_thread(found.keep_sinks, url)
        self._state = found


def _is_closing(state: Any) -> bool:
    """Whether vLLM's HTTP server is about to stop. It waits for open connections, an event stream among them.

    ``state``: of the application, where ``serve_http`` puts uvicorn's server.
    """
    server = getattr(state, "server", None)
    if server is None:
        return False
    listening = getattr(server, "servers", ())
    return bool(server.should_exit) or any(not socket.is_serving() for socket in listening)


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
