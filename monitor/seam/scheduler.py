"""From the worker's output to the API server: the step's scores ride on the scheduler's outputs.

vLLM's messages are typed; the one free-form field is ``EngineCoreOutput.kv_transfer_params``. All scores of
a step for one client travel on the first of its outputs, so nothing is done per request.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from monitor.seam.patching import wrap
from monitor.wire import CARRIER, pack, without_totals

logger = logging.getLogger("probewatch")

_LOGGED = "probewatch_fault_logged"


def attach(results: dict[int, Any], model_runner_output: Any) -> None:
    step = getattr(model_runner_output, CARRIER, None)
    if step is None:
        return
    row_of = model_runner_output.req_id_to_index
    first = True
    for client_outputs in results.values():
        outputs = client_outputs.outputs
        rows = [row_of.get(output.request_id, -1) for output in outputs]
        if -1 in rows:
            # Outputs of requests that did not run in this step (errors) have no share, so the shares cannot be
            # told apart by order. Rare: deliver one by one.
            loads = [(output, [row]) for output, row in zip(outputs, rows, strict=True) if row >= 0]
        else:
            loads = [(outputs[0], rows)] if outputs else []
        for output, own in loads:
            message = pack(step, np.array(own))
            _carry(output, message if first else without_totals(message))
            first = False


def end_stopped(scheduler: Any, results: dict[int, Any], model_runner_output: Any) -> None:
    """Ends the sequences that a probe stops, the way vLLM's own stop conditions end one.

    The client gets the tokens up to the one after the score that crossed; the blocks are free with the next step.
    """
    step = getattr(model_runner_output, CARRIER, None)
    if step is None or not step.stops:
        return
    from vllm.v1.engine import FinishReason
    from vllm.v1.request import RequestStatus

    by_id = {output.request_id: output for client in results.values() for output in client.outputs}
    for stop in step.stops:
        request_id = model_runner_output.req_ids[stop.row]
        output = by_id.get(request_id)
        if output is None or output.finish_reason is not None:
            continue
        new = output.new_token_ids
        first_new = (
            int(step.starts[stop.row] + step.counts[stop.row]) - len(new) + 1
        )  # position of the first of them
        kept = max(1, stop.position + 2 - first_new)
        scheduler.finish_requests(request_id, RequestStatus.FINISHED_STOPPED)
        if kept < len(new):
            output.new_token_ids = new[:kept]
            if output.new_logprobs is not None:
                output.new_logprobs = output.new_logprobs.slice_request(0, kept)
        output.finish_reason = FinishReason.STOP
        output.stop_reason = f"probe:{stop.probe}"


def _carry(output: Any, message: dict[str, Any]) -> None:
    output.kv_transfer_params = {**(output.kv_transfer_params or {}), CARRIER: message}


def patch_scheduler(scheduler_class: type) -> None:
    """Wraps ``Scheduler.update_from_output``."""

    def update_from_output(original: Any, self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        results = original(self, scheduler_output, model_runner_output)
        try:
            attach(results, model_runner_output)
            end_stopped(self, results, model_runner_output)
        except Exception:
            if not getattr(self, _LOGGED, False):  # once: a fault that stays must not flood the log
                setattr(self, _LOGGED, True)
                logger.exception(
                    "probewatch: the scores of a step were lost on the way; they count as unscored"
                )
        return results

    wrap(scheduler_class, "update_from_output", update_from_output)
