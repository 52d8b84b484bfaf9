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


def _attach(results: dict[int, Any], model_runner_output: Any) -> None:
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


def _carry(output: Any, message: dict[str, Any]) -> None:
    output.kv_transfer_params = {**(output.kv_transfer_params or {}), CARRIER: message}


def patch_scheduler(scheduler_class: type) -> None:
    """Wraps ``Scheduler.update_from_output``."""

    def update_from_output(original: Any, self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        results = original(self, scheduler_output, model_runner_output)
        try:
            _attach(results, model_runner_output)
        except Exception:
            if not getattr(self, _LOGGED, False):  # once: a fault that stays must not flood the log
                setattr(self, _LOGGED, True)
                logger.exception(
                    "probewatch: the scores of a step were lost on the way; they count as unscored"
                )
        return results

    wrap(scheduler_class, "update_from_output", update_from_output)
