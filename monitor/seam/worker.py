"""The monitor inside a vLLM worker: taps at load, proof before readiness, scores at every step."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from monitor.attach import Plan, check_model, local_model_dir
from monitor.bank import ProbeBank
from monitor.errors import AttachError, TapError
from monitor.events import FloatArray, StepScores, StepView
from monitor.refusal import file_reason
from monitor.residual import rule_for
from monitor.seam import supported
from monitor.seam.layers import decoder_blocks
from monitor.seam.patching import add_method, wrap
from monitor.seam.tap import SCHEMA, TapBuffers, define_operation, install
from monitor.seam.view_v1 import full_attention_group, step_view
from monitor.slices import assemble, due
from monitor.store import ScoreStore
from monitor.unscored import explain
from monitor.wire import CARRIER

logger = logging.getLogger("probewatch")

SELFTEST_TOLERANCE = 1e-3
"""Largest allowed difference from the golden scores, relative to 1 + their largest magnitude."""
CANARY_ROWS = 4
UNATTACHED: dict[str, Any] = {"attached": False, "probes": [], "selftest_error": {}, "tapped_layers": []}


@dataclass
class Forwarded:
    """A forward pass whose sampling is still to come."""

    view: StepView
    states: FloatArray
    history: dict[int, FloatArray]
    host_seconds: float


class WorkerMonitor:
    """Everything the monitor holds in one worker process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.bank: ProbeBank
        self.buffers: TapBuffers
        self.store: ScoreStore | None = None
        self.selftest: dict[str, float] = {}
        self.proven = False
        self._group = 0
        self._forwarded: Forwarded | None = None
        self._errors = 0
        self._new_errors = 0
        self._last_error: str | None = None

    def seal(self, vllm_config: Any) -> None:
        """Makes the taps part of vLLM's compile key, before anything is compiled.

        Values (weights, thresholds) stay out: they change without recompilation.
        """
        supported.check(vllm_config)
        config = vllm_config.model_config.hf_text_config
        self.bank = self.plan.bank(int(config.hidden_size), int(config.num_hidden_layers))
        digest = {
            "tap": SCHEMA,
            "layers": list(self.bank.layers),
            "columns": self.bank.capacity,
            "norms": self.bank.needs_norm,
        }
        if not isinstance(vllm_config.additional_config, dict):
            raise AttachError(
                f"additional_config is a {type(vllm_config.additional_config).__name__}; the monitor needs a dict "
                "there, to keep the compile cache from serving a graph without taps"
            )
        vllm_config.additional_config[CARRIER] = digest

    def attach(self, runner: Any, device: torch.device) -> None:
        """Installs the taps on the loaded model and scores the golden inputs through the tap's arithmetic."""
        model_config = runner.vllm_config.model_config
        config = model_config.hf_text_config
        if self.plan.probes:
            check_model(self.plan, local_model_dir(model_config.model, model_config.revision))
        blocks = decoder_blocks(runner.get_model(), int(config.num_hidden_layers))
        define_operation("CPU" if device.type == "cpu" else "CUDA")
        rows = int(runner.max_num_tokens)
        bank = self.bank
        self.buffers = TapBuffers.allocate(len(bank.layers), rows, bank.capacity, bank.needs_norm, device)
        weights = bank.weights.to(device)
        for index, layer in enumerate(bank.layers):
            block = blocks[layer]
            rule = rule_for(type(block).__name__)
            install(
                block, rule, weights[index], self.buffers.scores[index], self.buffers.squared_norms[index]
            )
        self._score_golden_inputs(weights)
        logger.info(
            "probewatch: %d probes on layers %s of %s, %d columns a tap, %.1f MiB of tap buffers",
            len(bank.seats),
            ",".join(map(str, bank.layers)),
            type(runner.get_model()).__name__,
            bank.capacity,
            self.buffers.scores.nbytes / 2**20,
        )

    def _score_golden_inputs(self, weights: torch.Tensor) -> None:
        for seat in self.bank.seats:
            probe = seat.probe
            inputs = probe.golden_inputs.to(weights.device)  # [N, l, d]
            n = len(inputs)
            buffers = TapBuffers.allocate(len(self.bank.layers), n, self.bank.capacity, True, weights.device)
            buffers.scores.zero_()
            for column, row in enumerate(seat.layer_rows):
                torch.ops.probewatch.tap(
                    inputs[:, column].contiguous(),
                    weights[row],
                    buffers.scores[row],
                    buffers.squared_norms[row],
                )
            states = self.bank.states(*buffers.read(n))[:, seat.states]
            found = probe.token_scores(torch.from_numpy(np.ascontiguousarray(states)))
            error = float((found - probe.golden_scores).abs().max())
            limit = SELFTEST_TOLERANCE * (1 + float(probe.golden_scores.abs().max()))
            if not error <= limit:
                raise TapError(
                    f"probe {probe.manifest.name!r}: golden scores through the tap are off by {error:.3g}, limit "
                    f"{limit:.3g}; the artifact or this build of torch is broken: run `probewatch verify`"
                )
            self.selftest[probe.manifest.name] = error

    def prove(self, worker: Any) -> None:
        """Canary: runs the compiled model on dummy tokens and demands that every tap wrote every row."""
        self.buffers.silence(CANARY_ROWS)
        runner = worker.model_runner
        runner._dummy_run(CANARY_ROWS)
        silent = [self.bank.layers[i] for i in self.buffers.silent_layers(CANARY_ROWS)]
        if silent:
            raise TapError(
                f"the taps of layers {silent} did not fire in the compiled model; a stale compile cache or an "
                "unsupported execution mode: remove the vLLM compile cache and start again"
            )
        kv_cache_config = runner.kv_cache_config
        self._group = full_attention_group(kv_cache_config)
        block_size = kv_cache_config.kv_cache_groups[self._group].kv_cache_spec.block_size
        self._block_tokens = int(block_size)
        slots = kv_cache_config.num_blocks * self._block_tokens
        self.store = ScoreStore(slots, self.bank.state_columns, self.plan.score_store_mib)
        self.buffers.silence(self.buffers.scores.shape[1])
        self.proven = True
        logger.info(
            "probewatch: taps proven; score store %.1f MiB (%d KV slots x %d)",
            self.store.mib,
            slots,
            self.bank.state_columns,
        )

    def after_forward(self, runner: Any, scheduler_output: Any) -> None:
        """Reads the step's scores and files them under their KV slots."""
        self._forwarded = None
        rows = scheduler_output.total_num_scheduled_tokens
        if not rows or self.store is None:
            return
        started = time.perf_counter()
        if scheduler_output.kv_cache_block_copies:
            self.store.copy_blocks(
                [(copy[0], copy[1]) for copy in scheduler_output.kv_cache_block_copies], self._block_tokens
            )
        view = step_view(runner, self._group)
        if view.rows != rows:
            raise TapError(
                f"the batch holds {view.rows} rows, the scheduler sent {rows}; this vLLM is not understood"
            )
        projections, squared_norms = self.buffers.read(rows)
        states = self.bank.states(projections, squared_norms)
        explain(states, projections)
        self.buffers.silence(rows)
        self.store.write(view.slots, states)
        history = {r: self.store.read(slots) for r, slots in view.history.items()}
        self._forwarded = Forwarded(view, states, history, time.perf_counter() - started)

    def after_sampling(self, output: Any) -> None:
        """Attaches to the runner's output the states that became due."""
        step, self._forwarded = self._forwarded, None
        sampled_ids: Sequence[Sequence[int]] = getattr(output, "sampled_token_ids", ())
        if step is None or not sampled_ids:
            return
        started = time.perf_counter()
        if tuple(output.req_ids) != step.view.request_ids:
            raise TapError(
                "the order of requests changed between forward pass and sampling; this vLLM is not understood"
            )
        sampled = np.fromiter(map(len, sampled_ids), np.int64, len(sampled_ids))
        starts, counts = due(step.view, sampled)
        states = assemble(step.view, step.states, step.history, starts, counts)
        seconds = step.host_seconds + time.perf_counter() - started
        setattr(output, CARRIER, StepScores(counts, starts, states, seconds, self._new_errors))
        if counts.any():  # a step without output sends no message
            self._new_errors = 0

    def lose_step(self) -> None:
        """After a forward pass that could not be read: nothing of an earlier one may be taken for it."""
        if self.store is not None:
            self.store.forget()
        self.buffers.silence(self.buffers.scores.shape[1])

    def guard(self, error: Exception) -> None:
        """An error of ours never fails a user's request: logged once, counted, reported by ``report``."""
        self._forwarded = None
        self._errors += 1
        self._new_errors += 1
        self._last_error = f"worker: {type(error).__name__}: {error}"
        if self._errors == 1:
            logger.exception("probewatch: a step could not be scored; its tokens count as unscored")

    def report(self) -> dict[str, Any]:
        """Facts for the status page and for the proof before readiness."""
        return {
            "attached": self.proven,
            "tapped_layers": list(self.bank.layers),
            "probes": self.bank.contents,
            "selftest_error": self.selftest,
            "score_store_mib": self.store.mib if self.store else 0.0,
            "errors": self._errors,
            "last_error": self._last_error,
        }


def patch_worker(worker_class: type, plan: Plan) -> None:
    """Wraps the three worker methods the monitor lives in, and adds the one that RPC calls."""

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
        result = original(self, scheduler_output, *args, **kwargs)
        monitor: WorkerMonitor | None = self.probewatch
        if monitor is not None:
            try:
                monitor.after_forward(self.model_runner, scheduler_output)
            except Exception as error:
                monitor.lose_step()
                monitor.guard(error)
        return result

    def sample_tokens(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        monitor: WorkerMonitor | None = self.probewatch
        if monitor is not None:
            try:
                monitor.after_sampling(result)
            except Exception as error:
                monitor.guard(error)
        return result

    def probewatch_report(self: Any) -> dict[str, Any]:
        monitor: WorkerMonitor | None = self.probewatch
        return UNATTACHED if monitor is None else monitor.report()

    wrap(worker_class, "load_model", load_model)
    wrap(worker_class, "execute_model", execute_model)
    wrap(worker_class, "sample_tokens", sample_tokens)
    add_method(worker_class, "probewatch_report", probewatch_report)


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
