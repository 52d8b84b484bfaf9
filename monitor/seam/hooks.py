"""Where the monitor enters vLLM's worker classes: their methods wrapped, and the calls that RPC makes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from monitor.attach import Plan
from monitor.errors import AttachError
from monitor.refusal import file_reason
from monitor.seam.patching import add_method, wrap
from monitor.seam.worker import WorkerMonitor

logger = logging.getLogger("probewatch")

UNATTACHED: dict[str, Any] = {"attached": False, "probes": [], "selftest_error": {}, "tapped_layers": []}


def patch_worker(worker_class: type, plan: Plan) -> None:
    """Wraps the worker methods the monitor lives in, and adds the one that RPC calls."""

    def load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        self.probewatch_plan = plan
        self.probewatch = monitor = WorkerMonitor(plan)
        try:
            monitor.seal(self.vllm_config)
        except AttachError as error:
            _refuse(self, error)
        result = original(self, *args, **kwargs)
        if self.probewatch is not None:
            try:
                monitor.attach(self.model_runner, self.device)
            except AttachError as error:
                _refuse(self, error)
        return result

    def execute_model(original: Any, self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if self.probewatch is not None:
            self.probewatch.before_step(scheduler_output)
        result = original(self, scheduler_output, *args, **kwargs)
        if self.probewatch is not None:
            self.probewatch.after_forward(self.model_runner, scheduler_output)
        return result

    def sample_tokens(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if self.probewatch is not None:
            self.probewatch.after_sampling(result)
        return result

    def execute_dummy_batch(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if self.probewatch is not None:
            self.probewatch.after_dummy_batch()
        return result

    def probewatch_report(self: Any) -> dict[str, Any]:
        monitor: WorkerMonitor | None = self.probewatch
        return UNATTACHED if monitor is None else monitor.report()

    wrap(worker_class, "load_model", load_model)
    wrap(worker_class, "execute_model", execute_model)
    wrap(worker_class, "sample_tokens", sample_tokens)
    wrap(worker_class, "execute_dummy_batch", execute_dummy_batch)
    add_method(worker_class, "probewatch_report", probewatch_report)
    for name in ("prepare", "prepared", "commit", "undo"):
        add_method(worker_class, f"probewatch_{name}", answering(getattr(WorkerMonitor, name)))


def answering(method: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A method of the monitor as one of the worker's that RPC calls.

    It never raises: vLLM reads no further replies after the first failure, and every later call would be answered by
    the one before.
    """

    def answer(worker: Any, *args: Any) -> dict[str, Any]:
        try:
            result = method(worker.probewatch, *args)
        except Exception as error:
            return {"ready": False, "error": f"{type(error).__name__}: {error}"}
        return {"ready": result is not False, "error": None, "result": result}

    return answer


def patch_warm_up(worker_class: type) -> None:
    """Wraps ``compile_or_warm_up_model``, after which the compiled model can be put to the proof."""

    def compile_or_warm_up_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if self.probewatch is not None:
            try:
                self.probewatch.prove(self)
            except AttachError as error:
                _refuse(self, error)
        return result

    wrap(worker_class, "compile_or_warm_up_model", compile_or_warm_up_model)


def _refuse(worker: Any, error: AttachError) -> None:
    """Fails closed: the server does not start, unless the operator chose to serve without the monitor."""
    if worker.probewatch_plan.refuse:
        file_reason(str(error))
        logger.error("probewatch: refused to start: %s", error)
        raise error
    logger.error("probewatch: SERVING UNMONITORED (ON_ATTACH_FAILURE=serve_unmonitored): %s", error)
    worker.probewatch = None
