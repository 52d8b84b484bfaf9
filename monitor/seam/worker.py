"""The monitor inside a vLLM worker: taps at load, proof before readiness, scores at every step."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from monitor.adapters import AdapterRules
from monitor.attach import Plan, check_model, local_model_dir
from monitor.bank import ProbeBank
from monitor.errors import AttachError, CompatibilityError, TapError
from monitor.events import StepScores
from monitor.refusal import file_reason
from monitor.residual import check_signature, rule_for
from monitor.seam import supported, view_v1, view_v2
from monitor.seam.layers import decoder_blocks, is_here
from monitor.seam.patching import add_method, wrap
from monitor.seam.pipeline import Relay
from monitor.seam.steps import Step, StepReader
from monitor.seam.tap import SCHEMA, TapBuffers, define_operation, install
from monitor.store import ScoreStore
from monitor.wire import CARRIER
from probes import ProbeError, load
from probes.identity import adapter_digest

logger = logging.getLogger("probewatch")

SELFTEST_TOLERANCE = 1e-3
"""Largest allowed difference from the golden scores, relative to 1 + their largest magnitude."""
CANARY_ROWS = 4
UNATTACHED: dict[str, Any] = {"attached": False, "probes": [], "selftest_error": {}, "tapped_layers": []}


@dataclass(frozen=True)
class Prepared:
    """A change that only has to be committed."""

    bank: ProbeBank
    weights: torch.Tensor
    selftest: dict[str, float]


class WorkerMonitor:
    """Everything the monitor holds in one worker process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.bank: ProbeBank
        self.buffers: TapBuffers
        self.reader: StepReader | None = None
        """Only in the worker whose output vLLM reads, and only once the taps are proven."""
        self.selftest: dict[str, float] = {}
        self.proven = False
        self._weights: torch.Tensor
        """[L, d, C] on the device: what the taps multiply by. Overwritten, never replaced: graphs hold its address."""
        self._background = ThreadPoolExecutor(1, "probewatch")
        self._preparing: Future[Prepared] | None = None
        self._here: list[int] = []
        """Indices of the tapped layers that this pipeline stage computes."""
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
        bank = self.bank
        self.buffers = TapBuffers.allocate(
            len(bank.layers), int(runner.max_num_tokens), bank.capacity, bank.needs_norm, device
        )
        self._weights = weights = bank.weights.to(device, copy=True)
        self._here = [i for i, layer in enumerate(bank.layers) if is_here(blocks[layer])]
        for index in self._here:
            block = blocks[bank.layers[index]]
            rule = rule_for(type(block).__name__)
            check_signature(rule, block)
            install(
                block, rule, weights[index], self.buffers.scores[index], self.buffers.squared_norms[index]
            )
        self.selftest = score_golden_inputs(bank, weights)
        self._relay(runner, first=next(i for i, block in enumerate(blocks) if is_here(block)))
        logger.info(
            "probewatch: %d probes on layers %s of %s, %d columns a tap, %.1f MiB of tap buffers",
            len(bank.seats),
            ",".join(map(str, bank.layers)),
            type(runner.get_model()).__name__,
            bank.capacity,
            self.buffers.scores.nbytes / 2**20,
        )

    def _relay(self, runner: Any, first: int) -> None:
        """With several pipeline stages, scores travel with the hidden states. ``first``: the stage's first block."""
        from vllm.distributed.parallel_state import get_pp_group

        stage = get_pp_group()
        if stage.world_size == 1:
            return
        relay = Relay(self.buffers, sum(layer < first for layer in self.bank.layers), len(self._here))
        original = runner.execute_model

        @functools.wraps(original)
        def execute_model(
            scheduler_output: Any, intermediate_tensors: Any = None, *args: Any, **kwargs: Any
        ) -> Any:
            if not self.proven or kwargs.get("dummy_run"):
                return original(scheduler_output, intermediate_tensors, *args, **kwargs)
            received = relay.take(intermediate_tensors)
            result = original(scheduler_output, intermediate_tensors, *args, **kwargs)
            rows = scheduler_output.total_num_scheduled_tokens
            if rows:
                try:
                    relay.fill(received)
                    if not stage.is_last_rank:
                        result = relay.send(result, rows)
                        self.buffers.silence(rows)
                except Exception as error:
                    self.guard(error)
            return result

        runner.execute_model = execute_model

    def prove(self, worker: Any) -> None:
        """Canary: runs the compiled model on dummy tokens and demands that every tap wrote every row."""
        runner = worker.model_runner
        for rows, dummy_run in _dummy_runs(worker):
            self.buffers.silence(rows)
            dummy_run()
            silent = [i for i in self.buffers.silent_layers(rows) if i in self._here]
            if silent:
                layers = [self.bank.layers[i] for i in silent]
                raise TapError(
                    f"the taps of layers {layers} did not fire in the compiled model; a stale compile cache or an "
                    "unsupported execution mode: remove the vLLM compile cache and start again"
                )
        self.buffers.silence(self.buffers.scores.shape[1])
        if _is_read():
            self.reader = self._make_reader(runner, v2=supported.runner_name(worker.vllm_config) == "v2")
        self.proven = True

    def _make_reader(self, runner: Any, v2: bool) -> StepReader:
        kv_cache_config = runner.kv_cache_config
        group = full_attention_group(kv_cache_config)
        block_tokens = int(kv_cache_config.kv_cache_groups[group].kv_cache_spec.block_size)
        slots = kv_cache_config.num_blocks * block_tokens
        room = max(self.bank.state_columns, self.bank.capacity)  # for probes that come later
        store = ScoreStore(slots, room, self.plan.score_store_mib)
        logger.info(
            "probewatch: taps proven; score store %.1f MiB (%d KV slots x %d)",
            store.mib,
            slots,
            room,
        )
        capture = functools.partial((view_v2 if v2 else view_v1).capture, group=group)
        adapters = AdapterRules(self.bank, _adapter_digest)
        return StepReader(self.bank, self.buffers, store, block_tokens, capture, adapters)

    def prepare(self, keep: list[str], add: list[tuple[str, str]], epoch: int) -> None:
        """First half of a change on a running server, beside the steps: everything that can fail.

        ``keep``: names of probes that stay. ``add``: (file, sha256 of its tensors).
        """
        self.discard()
        self._preparing = self._background.submit(self._prepare, keep, add, epoch)

    def prepared(self) -> bool:
        """Whether the change is ready to be committed. Raises what made it impossible."""
        if self._preparing is None:
            raise AttachError("nothing is being prepared; attach again")
        return self._preparing.done() and self._preparing.result() is not None

    def _prepare(self, keep: list[str], add: list[tuple[str, str]], epoch: int) -> Prepared:
        probes = [seat.probe for seat in self.bank.seats if seat.probe.manifest.name in keep]
        try:
            for path, digest in (tuple(one) for one in add):
                probes.append(load(path))
                if probes[-1].manifest.tensors_sha256 != digest:
                    raise AttachError(f"{path} has changed while it was attached; attach it again")
        except ProbeError as error:
            raise AttachError(str(error)) from error
        bank = self.bank.follow(probes)
        if bank.epoch != epoch:
            raise AttachError(
                f"the worker is at change {self.bank.epoch}, the API server asks for {epoch}; restart the server"
            )
        if self.reader is not None and bank.state_columns > self.reader.store.columns:
            raise AttachError(
                f"the score store has {self.reader.store.columns} columns, {bank.state_columns} are needed; detach a "
                "probe, or start the server with a larger PROBEWATCH_TAP_COLUMNS"
            )
        weights = bank.weights.to(self._weights.device)
        return Prepared(bank, weights, score_golden_inputs(bank, weights))

    def commit(self, epoch: int) -> None:
        """Second half, between two steps. The graphs stay as they are; their inputs change."""
        if not self.prepared() or self._preparing is None or self._preparing.result().bank.epoch != epoch:
            raise AttachError(f"nothing is prepared for change {epoch}; attach again")
        change, self._preparing = self._preparing.result(), None
        self._weights.copy_(change.weights)
        self.bank, self.selftest = change.bank, change.selftest
        if self.reader is not None:
            self.reader.swap(change.bank, AdapterRules(change.bank, _adapter_digest))

    def restate(self, changes: list[tuple[str, float | None, str]]) -> None:
        """Other thresholds and actions, as (name, threshold, action): between two steps."""
        given = {
            name: {"threshold": threshold, "default_action": action} for name, threshold, action in changes
        }
        probes = [seat.probe for seat in self.bank.seats]
        self.bank = self.bank.restated(
            [
                replace(p, manifest=p.manifest.model_copy(update=given.get(p.manifest.name, {})))
                for p in probes
            ]
        )
        if self.reader is not None:
            self.reader.restate(self.bank)

    def discard(self) -> None:
        """After a change that some other rank could not prepare."""
        self._preparing = None

    def after_forward(self, runner: Any, scheduler_output: Any) -> None:
        """Takes the step's scores off the device. An error of ours never fails a user's request."""
        if self.reader is None:
            return
        try:
            self.reader.after_forward(runner, scheduler_output)
        except Exception as error:
            self.reader.lose()
            self.buffers.silence(self.buffers.scores.shape[1])
            self.guard(error)

    def after_sampling(self, output: Any) -> None:
        """Attaches to the runner's output what became due, at once or when vLLM fetches the output."""
        step = self.reader.take() if self.reader is not None else None
        if step is None:
            return
        fetch = getattr(output, "get_output", None)
        if fetch is None:
            self._complete(step, output)
            return

        def get_output() -> Any:
            fetched = fetch()
            self._complete(step, fetched)
            return fetched

        output.get_output = get_output

    def _complete(self, step: Step, output: Any) -> None:
        assert self.reader is not None
        try:
            scores = self.reader.complete(step, output)
            if scores is not None:
                self._attach(scores, output)
        except Exception as error:
            self.reader.forget()
            self.guard(error)

    def _attach(self, scores: StepScores, output: Any) -> None:
        if scores.counts.any():  # a step without output sends no message
            scores, self._new_errors = scores.with_errors(self._new_errors), 0
        setattr(output, CARRIER, scores)

    def guard(self, error: Exception) -> None:
        """Logged once, counted, reported by ``report``."""
        self._errors += 1
        self._new_errors += 1
        self._last_error = f"worker: {type(error).__name__}: {error}"
        if self._errors == 1:
            logger.error(
                "probewatch: a step could not be scored; its tokens count as unscored", exc_info=error
            )

    def after_dummy_batch(self) -> None:
        """An idle data-parallel rank computes dummy tokens; their scores must not pass for a later step's."""
        if self.proven:
            self.buffers.silence(self.buffers.scores.shape[1])

    def report(self) -> dict[str, Any]:
        """Facts for the status page and for the proof before readiness."""
        return {
            "attached": self.proven and self.plan.failure is None,
            "tapped_layers": list(self.bank.layers),
            "probes": self.bank.contents,
            "selftest_error": self.selftest,
            "score_store_mib": self.reader.store.mib if self.reader else 0.0,
            "epoch": self.bank.epoch,
            "errors": self._errors,
            "last_error": self._last_error,
        }


def score_golden_inputs(bank: ProbeBank, weights: torch.Tensor) -> dict[str, float]:
    """Largest difference from each probe's golden scores, through the tap's own arithmetic with ``weights [L, d, C]``.

    Raises ``TapError`` for one that is off."""
    errors = {}
    for seat in bank.seats:
        probe = seat.probe
        inputs = probe.golden_inputs.to(weights.device)  # [N, l, d]
        n = len(inputs)
        buffers = TapBuffers.allocate(len(bank.layers), n, bank.capacity, True, weights.device)
        buffers.scores.zero_()
        for column, row in enumerate(seat.layer_rows):
            torch.ops.probewatch.tap(
                inputs[:, column].contiguous(), weights[row], buffers.scores[row], buffers.squared_norms[row]
            )
        read = {name: tensor.cpu().numpy() for name, tensor in buffers.tensors(n).items()}
        states = bank.states(read["scores"], read["squared_norms"])[:, seat.states]
        found = probe.token_scores(torch.from_numpy(np.ascontiguousarray(states)))
        error = float((found - probe.golden_scores).abs().max())
        limit = SELFTEST_TOLERANCE * (1 + float(probe.golden_scores.abs().max()))
        if not error <= limit:
            raise TapError(
                f"probe {probe.manifest.name!r}: golden scores through the tap are off by {error:.3g}, limit "
                f"{limit:.3g}; the artifact or this build of torch is broken: run `probewatch verify`"
            )
        errors[probe.manifest.name] = error
    return errors


def full_attention_group(kv_cache_config: Any) -> int:
    """Index of a KV-cache group that keeps every token of a sequence: its slots can hold scores."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        spec = group.kv_cache_spec
        # A sliding window frees the slots of old tokens while the request still runs.
        if isinstance(spec, FullAttentionSpec) and not getattr(spec, "sliding_window", None):
            return index
    raise CompatibilityError(
        "no KV-cache group of this model keeps every token (sliding-window or state-space layers only); "
        "the score store needs one full-attention group"
    )


def _is_read() -> bool:
    """Whether vLLM reads this worker's output: the first tensor-parallel rank of the last pipeline stage."""
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    return bool(get_pp_group().is_last_rank and get_tp_group().rank_in_group == 0)


def _dummy_runs(worker: Any) -> list[tuple[int, Callable[[], Any]]]:
    """Every way in which this engine executes the model, with the rows it computes: on CUDA, decodes are replayed from
    a graph of their own, so one request decodes as vLLM's own idle ranks do."""
    runner = worker.model_runner
    rows = min(CANARY_ROWS, int(runner.max_num_reqs))
    runs: list[tuple[int, Callable[[], Any]]] = [(rows, functools.partial(runner._dummy_run, rows))]
    if worker.device.type == "cuda":
        decode = int(getattr(runner, "uniform_decode_query_len", 0) or getattr(runner, "decode_query_len", 1))
        runs.append((decode, functools.partial(runner._dummy_run, decode, uniform_decode=True)))
    return runs


def _adapter_digest(adapter: str) -> str | None:
    try:
        return adapter_digest(local_model_dir(adapter.partition(":")[2]))
    except (ProbeError, AttachError) as error:
        logger.warning("probewatch: %s; its requests count as unscored", error)
        return None


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
    for name in ("prepare", "prepared", "commit", "restate", "discard"):
        add_method(worker_class, f"probewatch_{name}", _answering(getattr(WorkerMonitor, name)))


def _answering(method: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A method of the monitor as one of the worker's that RPC calls.

    It never raises: vLLM reads no further replies after the first failure, and every later call would be answered by
    the one before.
    """

    def answer(worker: Any, *args: Any) -> dict[str, Any]:
        try:
            result = method(worker.probewatch, *args)
        except Exception as error:
            return {"ready": False, "error": f"{type(error).__name__}: {error}"}
        return {"ready": result is not False, "error": None}

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
