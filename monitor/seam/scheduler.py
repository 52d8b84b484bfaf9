"""From the worker's output to the API server: the step's scores ride on the scheduler's outputs.

vLLM's messages are typed; the one free-form field is ``EngineCoreOutput.kv_transfer_params``. All scores of
a step for one client travel on the first of its outputs, so nothing is done per request.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from monitor.seam.patching import wrap
from monitor.seam.worker import CARRIER
from monitor.wire import pack

logger = logging.getLogger("probewatch")


def _attach(results: dict[int, Any], model_runner_output: Any) -> None:
    step = getattr(model_runner_output, CARRIER, None)
    if step is None:
        return
    row_of = model_runner_output.req_id_to_index
    for client_outputs in results.values():
        outputs = client_outputs.outputs
        if not outputs:
            continue
        rows = [row_of.get(output.request_id, -1) for output in outputs]
        if -1 in rows:
            # Outputs of requests that did not run in this step (errors): nothing to deliver for them, and
            # without a row the shares cannot be told apart by order. Rare; deliver one by one.
            for output, row in zip(outputs, rows, strict=True):
                if row >= 0:
                    _carry(output, pack(step, np.array([row])))
            continue
        _carry(outputs[0], pack(step, np.array(rows)))


def _carry(output: Any, message: dict[str, Any]) -> None:
    output.kv_transfer_params = {**(output.kv_transfer_params or {}), CARRIER: message}


def patch_scheduler(scheduler_class: type) -> None:
    """Wraps ``Scheduler.update_from_output``."""

    def update_from_output(original: Any, self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        results = original(self, scheduler_output, model_runner_output)
        try:
            _attach(results, model_runner_output)
        except Exception:
            logger.exception(
                "probewatch: the scores of a step were lost on the way; its tokens count as unscored"
            )
        return results

    wrap(scheduler_class, "update_from_output", update_from_output)
