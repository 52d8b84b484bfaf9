"""The API server's side: every output of the engine passes here once, before vLLM turns it into replies."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from monitor.attach import Plan
from monitor.events import FloatArray
from monitor.frontend import Arrival, Frontend, Running
from monitor.records import reply
from monitor.seam.patching import wrap
from monitor.seam.worker import CARRIER
from monitor.wire import shares, unpack

logger = logging.getLogger("probewatch")


class OutputTap:
    """Follows the sequences of one ``OutputProcessor``."""

    def __init__(self, frontend: Frontend, plan: Plan) -> None:
        self.frontend = frontend
        self.plan = plan
        self.running: dict[str, Running] = {}
        self._shares: Iterator[tuple[int, FloatArray]] = iter(())

    def take(self, outputs: Iterable[Any], request_states: dict[str, Any]) -> None:
        """Accounts for a chunk of outputs. vLLM may split a step's outputs into chunks; the order stays."""
        arrivals = []
        for output in outputs:
            message = _pop_message(output)
            if message is not None:
                step = unpack(message)
                self.frontend.metrics.observe("probewatch_step_overhead_seconds", value=step.host_seconds)
                if step.errors:
                    self.frontend.metrics.inc("probewatch_errors_total", "worker", by=step.errors)
                self._shares = shares(step)
            start, states = next(self._shares, (0, None))
            request = request_states.get(output.request_id)
            if request is None:
                continue  # aborted meanwhile: vLLM ignores it, and so do its counters
            running = self.running.get(output.request_id)
            if running is None:
                running = self.running[output.request_id] = _begin(request)
            arrivals.append(Arrival(running, tuple(output.new_token_ids), start, states))
        self.frontend.arrive(arrivals)

    def settle(self, reasons: Mapping[str, str], request_states: dict[str, Any]) -> None:
        """Judges those of the given sequences (with why they would have ended) that vLLM has let go of."""
        for request_id, reason in reasons.items():
            if request_id in self.running and request_id not in request_states:
                self.frontend.finish(self.running.pop(request_id), reason)

    def lose_step(self) -> None:
        """Forgets what is left of a step after an error: it must not be taken for the next one's."""
        self._shares = iter(())


def _pop_message(output: Any) -> dict[str, Any] | None:
    params = output.kv_transfer_params
    if not params or CARRIER not in params:
        return None
    message: dict[str, Any] = params.pop(CARRIER)
    output.kv_transfer_params = params or None
    return message


def _begin(request: Any) -> Running:
    parent = request.parent_req
    external = parent.external_req_id if parent is not None else request.external_req_id
    response_id, prompt_index = split_external_id(str(external))
    n = request.n or 1
    ids = request.prompt_token_ids
    return Running(
        response_id=response_id,
        choice=prompt_index * n + request.request_index,
        prompt_tokens=request.prompt_len,
        prompt_ids=None if ids is None else tuple(ids),
    )


def split_external_id(external: str) -> tuple[str, int]:
    """The OpenAI response id and the index of the prompt: vLLM numbers the prompts of ``cmpl-X`` as ``cmpl-X-0`` ..."""
    if external.startswith("cmpl-"):
        head, _, tail = external.rpartition("-")
        if head != "cmpl" and tail.isdigit() and len(tail) < 6:
            return head, int(tail)
    return external, 0


def patch_output_processor(processor_class: type) -> None:
    """Wraps ``OutputProcessor.process_outputs`` and ``abort_requests``."""

    def process_outputs(original: Any, self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        tap: OutputTap | None = getattr(self, CARRIER, None)
        if tap is None:
            return original(self, engine_core_outputs, *args, **kwargs)
        reasons: dict[str, str] = {}
        try:
            # vLLM's front end finds stop strings by itself: then the engine's output names no reason.
            reasons = {o.request_id: str(o.finish_reason or "stop") for o in engine_core_outputs}
            tap.take(engine_core_outputs, self.request_states)
        except Exception as error:
            _guard(tap, error, engine_core_outputs)
        result = original(self, engine_core_outputs, *args, **kwargs)
        try:
            tap.settle(reasons, self.request_states)
            for request_output in result.request_outputs:
                _attach_offline(request_output, tap.frontend)
        except Exception as error:
            _guard(tap, error, ())
        return result

    def abort_requests(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        aborted = original(self, *args, **kwargs)
        tap: OutputTap | None = getattr(self, CARRIER, None)
        if tap is not None:
            try:
                tap.settle(dict.fromkeys(aborted, "abort"), self.request_states)
            except Exception as error:
                _guard(tap, error, ())
        return aborted

    wrap(processor_class, "process_outputs", process_outputs)
    wrap(processor_class, "abort_requests", abort_requests)


def _guard(tap: OutputTap, error: Exception, outputs: Iterable[Any]) -> None:
    if tap.frontend.last_error is None:
        logger.exception("probewatch: accounting failed for a step; see probewatch_errors_total")
    tap.frontend.error("frontend", error)
    tap.lose_step()
    for output in outputs:  # our cargo must not reach a client, whatever went wrong
        _pop_message(output)


def _attach_offline(request_output: Any, frontend: Frontend) -> None:
    """``LLM.generate`` and ``LLM.chat``: the verdict rides on the ``RequestOutput``."""
    if request_output.finished:
        records = frontend.recent.of(split_external_id(str(request_output.request_id))[0])
        if records:
            request_output.probewatch = reply(records)
