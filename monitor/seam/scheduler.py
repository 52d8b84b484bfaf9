"""From the worker's output to the API server: the step's scores ride on the scheduler's outputs.

vLLM's messages are typed; the one free-form field is ``EngineCoreOutput.kv_transfer_params``. All scores of
a step for one client travel on the first of its outputs, so nothing is done per request.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from monitor.events import StepScores
from monitor.seam.patching import wrap
from monitor.wire import CARRIER, pack, without_totals

logger = logging.getLogger("probewatch")

_LOGGED = "probewatch_fault_logged"


def attach(results: dict[int, Any], step: StepScores, row_of: Mapping[str, int]) -> None:
    """Puts the step's scores on the first output of every client. ``row_of``: request id to row of the step."""
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
            message = pack(step, own)
            _carry(output, message if first else without_totals(message))
            first = False


def end_stopped(
    scheduler: Any, results: dict[int, Any], step: StepScores, request_ids: Sequence[str]
) -> None:
    """Ends the sequences that a probe stops, the way vLLM's own stop conditions end one. ``request_ids``: by row.

    The client gets the tokens up to the one after the score that crossed; the blocks are free with the next step.
    """
    from vllm.v1.engine import FinishReason
    from vllm.v1.request import RequestStatus

    by_id = {output.request_id: output for client in results.values() for output in client.outputs}
    for stop in step.stops:
        request_id = request_ids[stop.row]
        output = by_id.get(request_id)
        if output is None or output.finish_reason is not None:
            continue
        new = output.new_token_ids
        fed = int(step.starts[stop.row] + step.counts[stop.row])
        first_new = fed - len(new) + 1  # position
        kept = max(1, stop.position + 2 - first_new)
        scheduler.finish_requests(request_id, RequestStatus.FINISHED_STOPPED)
        if kept < len(new):
            output.new_token_ids = new[:kept]
            for name in ("new_logprobs", "new_sampling_mask"):  # the latter not in every vLLM
                if getattr(output, name, None) is not None:
                    setattr(output, name, getattr(output, name).slice_request(0, kept))
        output.finish_reason = FinishReason.STOP
        output.stop_reason = f"probe:{stop.probe}"


def unshare(scheduler: Any, request_id: str, position: int, block: int) -> None:
    """Keeps the KV blocks of a request from ``position`` on out of the prefix cache: a gate has opened there, and what
    is steered must never be taken for what the model says unsteered.

    Blocks that are cached already are evicted, and the chain of hashes is broken, so that later ones have names which
    no other request can ask for. ``block``: that of ``position`` where it has been computed already, else -1.
    """
    manager = scheduler.kv_cache_manager
    pool = manager.block_pool
    pool.evict_blocks({block} - {-1})  # in any case: it may have been freed meanwhile and still have its name
    request = scheduler.requests.get(request_id)
    if request is None or request.is_finished():
        return
    steered: set[int] = set()
    for group, own in zip(
        manager.kv_cache_config.kv_cache_groups, manager.get_block_ids(request_id), strict=True
    ):
        steered.update(filter(None, own[position // int(group.kv_cache_spec.block_size) :]))
    pool.evict_blocks(steered)
    _break_chain(request, position // int(scheduler.hash_block_size), request_id)
    if any(pool.blocks[one].ref_cnt > 1 for one in steered):
        _break_readers(scheduler, request_id, steered)


def _break_chain(request: Any, first: int, secret: str) -> None:
    """Gives the hashes of a request from block ``first`` on, and all that follow from them, names of their own."""
    first = min(first, len(request.block_hashes))
    if first == 0:
        request.cache_salt = f"{request.cache_salt or ''}probewatch {secret}"
    for index in range(max(0, first - 1), len(request.block_hashes)):
        request.block_hashes[index] = hashlib.sha256(secret.encode() + request.block_hashes[index]).digest()


def _break_readers(scheduler: Any, request_id: str, steered: set[int]) -> None:
    """vLLM names a block before it is computed: whoever took it in that very step must not pass it on."""
    manager = scheduler.kv_cache_manager
    for other in scheduler.running:
        if other.request_id == request_id:
            continue
        held = manager.get_block_ids(other.request_id)
        taken = [own.index(one) for own in held for one in steered if one in own]
        if taken:
            _break_chain(other, 0, request_id)


def _carry(output: Any, message: dict[str, Any]) -> None:
    output.kv_transfer_params = {**(output.kv_transfer_params or {}), CARRIER: message}


def deliver(scheduler: Any, results: dict[int, Any], model_runner_output: Any) -> None:
    """Stops what is to be stopped and sends the step's scores on. Never raises: a fault of ours costs no request."""
    step: StepScores | None = getattr(model_runner_output, CARRIER, None)
    if step is None:
        return
    for row, position, block in step.gated:
        try:
            unshare(scheduler, model_runner_output.req_ids[row], position, block)
        except Exception as error:
            step = step.with_errors(step.errors + 1)
            _log_once(scheduler, "what a gate steered could not be kept out of the prefix cache", error)
    try:
        if step.stops:
            end_stopped(scheduler, results, step, model_runner_output.req_ids)
    except Exception as error:
        step = step.with_errors(step.errors + 1)
        _log_once(scheduler, "a probe could not stop its sequence, which goes on", error)
    try:
        attach(results, step, model_runner_output.req_id_to_index)
    except Exception as error:
        _log_once(scheduler, "the scores of a step were lost on the way; they count as unscored", error)


def _log_once(scheduler: Any, what: str, error: Exception) -> None:
    if not getattr(scheduler, _LOGGED, False):  # a fault that stays must not flood the log
        setattr(scheduler, _LOGGED, True)
        logger.error("probewatch: %s", what, exc_info=error)


def patch_scheduler(scheduler_class: type) -> None:
    """Wraps ``Scheduler.update_from_output``."""

    def update_from_output(original: Any, self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        results = original(self, scheduler_output, model_runner_output)
        deliver(self, results, model_runner_output)
        return results

    wrap(scheduler_class, "update_from_output", update_from_output)
