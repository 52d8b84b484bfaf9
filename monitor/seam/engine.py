"""Putting the monitor into vLLM's processes, and giving every engine its frontend."""

from __future__ import annotations

import functools
import os
from typing import Any

from monitor import __version__
from monitor.attach import Plan
from monitor.bank import ProbeBank
from monitor.config import Settings
from monitor.engines import Engines
from monitor.errors import AttachError, TapError
from monitor.frontend import Frontend
from monitor.metrics import Metrics
from monitor.records import RecentRecords
from monitor.refusal import REQUIRE_ENDPOINT, file_reason
from monitor.seam import supported
from monitor.seam.hooks import patch_warm_up, patch_worker
from monitor.seam.inputs import patch_input_processor
from monitor.seam.output_hooks import patch_output_processor
from monitor.seam.outputs import OutputTap
from monitor.seam.patching import wrap
from monitor.seam.request_output import patch_request_output
from monitor.seam.scheduler import patch_scheduler
from monitor.wire import CARRIER


def install(settings: Settings, plan: Plan) -> None:
    """Wraps what the monitor needs of vLLM in this process; harmless when called again."""
    supported.check_version()
    from vllm.outputs import RequestOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.worker.gpu_worker import Worker

    if os.environ.get(REQUIRE_ENDPOINT):
        _require_endpoint()
    patch_worker(Worker, plan)
    for worker_class in supported.worker_classes():
        patch_warm_up(worker_class)
    patch_scheduler(Scheduler)
    patch_output_processor(OutputProcessor)
    patch_request_output(RequestOutput)
    patch_input_processor(InputProcessor)

    def after_init(original: Any, self: Any, *args: Any, prove: bool, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        indices = list(getattr(self.engine_core, "engine_ranks_managed", None) or [0])
        engines = make_engines(self.vllm_config, settings, plan, indices)
        tap = OutputTap(engines, plan)
        setattr(self.output_processor, CARRIER, tap)
        setattr(self.input_processor, CARRIER, engines.vectors)
        _note_engine(self.engine_core, tap)
        if prove:
            accept_report(engines, self.collective_rpc("probewatch_report"), plan.refuse)

    # Proven by the endpoint, before readiness.
    wrap(AsyncLLM, "__init__", functools.partial(after_init, prove=False))
    wrap(LLMEngine, "__init__", functools.partial(after_init, prove=True))


def _require_endpoint() -> None:
    """Under ``probewatch serve`` an API server without our routes must not come up: vLLM only logs a plugin
    that it could not load."""
    try:
        from vllm.entrypoints.launchers import app as module

        name = "attach_endpoint_plugins"
    except ImportError:  # until 0.28
        from vllm.entrypoints.openai import api_server as module

        name = "_attach_endpoint_plugins"
    original = getattr(module, name)
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def attach(application: Any, *args: Any, **kwargs: Any) -> None:
        original(application, *args, **kwargs)
        loaded = [plugin.name for plugin in application.state.endpoint_plugins]
        if CARRIER not in loaded:
            reason = f"vLLM loaded the endpoint plugins {loaded} and not probewatch; add it to VLLM_PLUGINS"
            file_reason(reason)
            raise AttachError(reason)

    setattr(module, name, attach)


def _note_engine(client: Any, tap: OutputTap) -> None:
    """Tells the tap which engine a batch of outputs comes from, before they are processed."""
    original = getattr(client, "get_output_async", None)
    if original is None:
        return

    async def get_output_async() -> Any:
        outputs = await original()
        tap.comes_from(int(outputs.engine_index))
        return outputs

    client.get_output_async = get_output_async


def make_engines(vllm_config: Any, settings: Settings, plan: Plan, indices: list[int]) -> Engines:
    """The accounting of every engine, with every metric child created."""
    config = vllm_config.model_config.hf_text_config
    failure = plan.failure
    width, depth = int(config.hidden_size), int(config.num_hidden_layers)
    try:
        bank, vectors = plan.bank(width, depth), plan.vector_bank(width, depth)
    except AttachError as error:
        if plan.refuse:
            raise
        bank, vectors, failure = ProbeBank((), (), width, 1), None, str(error)
    model_name = served_name(vllm_config)
    runner = supported.runner_name(vllm_config)
    recent = RecentRecords(settings.recent_requests, settings.recent_mib)

    def make(index: int) -> Frontend:
        metrics = Metrics(model_name, str(index))
        frontend = Frontend(bank, metrics, model_name, recent)
        frontend.last_error = failure
        metrics.announce(__version__, supported.vllm_version(), runner)
        metrics.set("probewatch_attached", to=0)
        for name in () if vectors is None else vectors.names:
            metrics.child("probewatch_steered_tokens_total", name)
        return frontend

    return Engines(make, indices, recent, vectors)


def accept_report(
    engines: Engines, reports: list[dict[str, Any]], plan_refuses: bool = True
) -> dict[str, Any]:
    """Takes the workers' proof; raises ``AttachError`` unless every worker is attached to the same artifacts."""
    expected = engines.first.bank.contents
    for rank, report in enumerate(reports):
        if not report["attached"]:
            if plan_refuses:
                raise TapError(f"worker {rank} is not attached; read its log")
            return report
        if report["epoch"] != engines.first.bank.epoch:
            raise AttachError(
                f"the probes of this server have changed since it started (change {report['epoch']}), and an API "
                "server that starts now knows only its configuration; restart the whole server"
            )
        # As lists: the RPC may turn pairs into lists.
        if [tuple(pair) for pair in report["probes"]] != expected:
            raise AttachError(
                f"worker {rank} loaded other artifacts than the API server; give both the same files"
            )
    engines.tested(reports[0]["selftest_error"])
    for frontend in engines.all:
        frontend.confirm()
    # With several workers only one holds the store.
    return max(reports, key=lambda report: float(report["score_store_mib"]))


def served_name(vllm_config: Any) -> str:
    """The model name that vLLM puts on its own metrics."""
    name = vllm_config.model_config.served_model_name
    return str(name[0] if isinstance(name, list) else name)
