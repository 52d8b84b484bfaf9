"""The monitor inside a vLLM worker: taps at load, proof before readiness, scores at every step."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch

from monitor.adapters import AdapterRules
from monitor.attach import Plan, check_model, local_model_dir
from monitor.bank import ProbeBank
from monitor.desired import Wanted
from monitor.errors import AttachError
from monitor.events import StepScores
from monitor.seam import steer, supported, view_v1, view_v2
from monitor.seam.canary import is_read, require_taps
from monitor.seam.change import Change, Prepared, prepare
from monitor.seam.fetched import when_fetched
from monitor.seam.kv_slots import KvSlots
from monitor.seam.layers import decoder_blocks, tapped_here, upstream
from monitor.seam.pipeline import Relay, relay_through, stages
from monitor.seam.selftest import score_golden_inputs
from monitor.seam.steerer import Steerer, check_gates
from monitor.seam.steps import Capturer, Step, StepReader
from monitor.seam.tap import SCHEMA, TapBuffers, install, laid_out, make_scratch, used_layers
from monitor.steering import VectorBank
from monitor.store import ScoreStore
from monitor.triggers import Triggers
from monitor.wire import CARRIER
from probes import ProbeError
from probes.identity import adapter_digest

logger = logging.getLogger("probewatch")


class WorkerMonitor:
    """Everything the monitor holds in one worker process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.bank: ProbeBank
        self.buffers: TapBuffers
        self.vectors: VectorBank | None
        self.steerer: Steerer | None = None
        self.reader: StepReader | None = None
        """Only in the worker whose output vLLM reads, and only once the taps are proven."""
        self.selftest: dict[str, float] = {}
        self.proven = False
        self._weights: torch.Tensor
        """[L, d, C] on the device: what the taps multiply by. Overwritten, never replaced: graphs hold its address."""
        self._used: torch.Tensor
        """[L] int64: which taps a probe reads."""
        self._change = Change()
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
        width, depth = int(config.hidden_size), int(config.num_hidden_layers)
        self.bank = self.plan.bank(width, depth)
        self.vectors = self.plan.vector_bank(width, depth)
        self._gates_need = supported.gates_need(vllm_config)
        self.check_actions(self.bank)
        digest: dict[str, Any] = {
            "tap": SCHEMA,
            "layers": list(self.bank.layers),
            "columns": self.bank.capacity,
            "norms": self.bank.needs_norm,
        }
        if self.vectors is not None:
            supported.check_steering(vllm_config)
            digest["steer"] = [steer.SCHEMA, list(self.vectors.layers), len(self.vectors.names)]
        if not isinstance(vllm_config.additional_config, dict):
            raise AttachError(
                f"additional_config is a {type(vllm_config.additional_config).__name__}; the monitor needs a dict "
                "there, to keep the compile cache from serving a graph without taps"
            )
        vllm_config.additional_config[CARRIER] = digest

    def check_actions(self, bank: ProbeBank) -> None:
        """Raises ``AttachError`` for an action that a probe of the bank cannot carry out here."""
        Triggers(bank)
        check_gates(bank, () if self.vectors is None else self.vectors.names, self._gates_need)

    def attach(self, runner: Any, device: torch.device) -> None:
        """Installs the taps on the loaded model and scores the golden inputs through the tap's arithmetic."""
        model_config = runner.vllm_config.model_config
        config = model_config.hf_text_config
        if self.plan.probes or self.plan.vectors:
            check_model(self.plan, local_model_dir(model_config.model, model_config.revision))
        blocks = decoder_blocks(runner.get_model(), int(config.num_hidden_layers))
        steer.define_operation("CPU" if device.type == "cpu" else "CUDA")
        bank = self.bank
        self.buffers = TapBuffers.allocate(
            len(bank.layers), int(runner.max_num_tokens), bank.capacity, bank.needs_norm, device
        )
        self._weights = weights = laid_out(bank.weights(), device)
        self._used = used_layers(weights)
        # The same objects everywhere, so that the compiler sees what is one.
        scores = list(self.buffers.scores)
        scratch = make_scratch(int(config.hidden_size), bank.capacity, device)
        tapped = tapped_here(blocks, bank.layers)
        self._here = [index for index, _, _ in tapped]
        for index, block, rule in tapped:
            norms, used = self.buffers.squared_norms[index], self._used[index : index + 1]
            install(block, rule, weights[index], scores[index], norms, used, scratch)
        if self.vectors is not None:
            self.steerer = self._steer(runner, blocks, self.vectors, scores)
        self.selftest = score_golden_inputs(bank, weights)
        self.buffers.compile_kernels(model_config.dtype, weights[0], scratch)
        self._relay(runner, upstream(blocks, bank.layers))
        logger.info(
            "probewatch: %d probes on layers %s of %s, %d columns a tap, %.1f MiB of tap buffers",
            len(bank.seats),
            ",".join(map(str, bank.layers)),
            type(runner.get_model()).__name__,
            bank.capacity,
            self.buffers.scores.nbytes / 2**20,
        )

    def _steer(self, runner: Any, blocks: Any, vectors: VectorBank, scores: list[torch.Tensor]) -> Steerer:
        layers, device = self.bank.layers, self._weights.device
        buffers = steer.SteerBuffers.allocate(
            2 * int(runner.max_num_reqs) + steer.GATES + 2,
            len(vectors.names),
            int(runner.max_num_tokens),
            len(layers),
            device,
        )
        units, lengths = (part.to(device) for part in vectors.directions())
        for row, block, rule in tapped_here(blocks, vectors.layers):
            before = sum(tapped <= vectors.layers[row] for tapped in layers)
            taps = [] if self._gates_need else scores[:before]
            steer.install(block, rule, units[row], lengths[row], buffers, taps)
        steerer = Steerer(
            vectors,
            buffers,
            {name: sum(t <= last for t in layers) for name, last in vectors.last_layers.items()},
        )
        steerer.watch(runner, supported.runner_name(runner.vllm_config) == "v2", self.guard)
        return steerer

    def _relay(self, runner: Any, before: int) -> None:
        """With several pipeline stages, scores travel with the hidden states. ``before``: taps of earlier stages."""
        if stages() == 1:
            return
        relay = Relay(self.buffers.arrays, before, len(self._here))
        relay_through(runner, relay, lambda: self.proven, self.buffers.silence, self.guard)

    def prove(self, worker: Any) -> None:
        """From now on steps are scored. Raises ``TapError`` where the compiled model does not write to every tap."""
        require_taps(worker, self.buffers, {index: self.bank.layers[index] for index in self._here})
        if self.steerer is not None:
            self.steerer.set_gates(self.bank)
        if is_read():
            self.reader = self._make_reader(
                worker.model_runner, v2=supported.runner_name(worker.vllm_config) == "v2"
            )
        self.proven = True

    def _make_reader(self, runner: Any, v2: bool) -> StepReader:
        slots = KvSlots.of(runner.kv_cache_config)
        room = max(self.bank.state_columns, self.bank.capacity)  # for probes that come later
        store = ScoreStore(slots.total, room, self.plan.score_store_mib)
        logger.info(
            "probewatch: taps proven; score store %.1f MiB (%d KV slots x %d)",
            store.mib,
            slots.total,
            room,
        )
        capture: Capturer = view_v1.Batches(slots.group).capture
        if v2:
            capture = lambda runner, _: view_v2.capture(runner, slots.group)  # noqa: E731
        adapters = AdapterRules(self.bank, _adapter_digest)
        reader = StepReader(
            self.bank, self.buffers, store, slots.block_tokens, capture, adapters, self.steerer
        )
        if self.steerer is not None:
            self.steerer.levels = reader.levels
        return reader

    def prepare(self, desired: list[dict[str, Any]], epoch: int) -> None:
        """First half of a change on a running server, beside the steps: everything that can fail.

        ``desired``: ``Wanted`` objects of all probes that shall be attached then.
        """
        room = None if self.reader is None else self.reader.filing.room
        probes = [Wanted(**one) for one in desired]
        before, device = self.bank, self._weights.device

        def work() -> Prepared:
            change = prepare(before, probes, epoch, room, device)
            self.check_actions(change.bank)
            return change

        self._change.start(work)

    def prepared(self) -> bool:
        """Whether the change is ready to be committed. Raises what made it impossible."""
        return self._change.ready()

    def commit(self, epoch: int) -> dict[str, float]:
        """Second half, between two steps. Results of the self-test by probe."""
        self._put(self._change.take(epoch, before=(self.bank, self.selftest)))
        return self.selftest

    def undo(self, epoch: int) -> None:
        """Between two steps: back to what was before change ``epoch``, which some other process could not make."""
        before = self._change.undo(epoch, self.bank)
        if before is not None:
            self._put(before)

    def _put(self, change: Prepared) -> None:
        """The graphs stay as they are; their inputs change."""
        self._weights.copy_(change.weights)
        self._used.copy_(used_layers(change.weights))
        self.bank, self.selftest = change.bank, change.selftest
        if self.steerer is not None:
            self.steerer.set_gates(change.bank)
        if self.reader is not None:
            self.reader.swap(change.bank, AdapterRules(change.bank, _adapter_digest))

    def before_step(self, scheduler_output: Any) -> None:
        """Notes what new requests ask for. An error of ours never fails a user's request."""
        if self.steerer is not None:
            try:
                self.steerer.follow(scheduler_output)
            except Exception as error:
                self.guard(error)

    def after_forward(self, runner: Any, scheduler_output: Any) -> None:
        """Takes the step's scores off the device. An error of ours never fails a user's request."""
        if self.reader is None:
            return
        try:
            self.reader.after_forward(runner, scheduler_output)
        except Exception as error:
            self.reader.lose()
            self.buffers.silence()
            self.guard(error)

    def after_sampling(self, output: Any) -> None:
        """Attaches to the runner's output what became due, at once or when vLLM fetches the output."""
        step = self.reader.take() if self.reader is not None else None
        if step is None:
            return
        if not hasattr(output, "get_output"):
            self._complete(step, output)
            return
        try:
            when_fetched(output, functools.partial(self._complete, step))
        except Exception as error:
            assert self.reader is not None
            self.reader.lose()
            self.guard(error)

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
        if self._new_errors and scores.counts.any():  # a step without output sends no message
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
            self.buffers.silence()

    def report(self) -> dict[str, Any]:
        """Facts for the status page and for the proof before readiness."""
        return {
            "attached": self.proven and self.plan.failure is None,
            "tapped_layers": list(self.bank.layers),
            "probes": self.bank.contents,
            "selftest_error": self.selftest,
            "score_store_mib": self.reader.filing.mib if self.reader else 0.0,
            "epoch": self.bank.epoch,
            "errors": self._errors,
            "last_error": self._last_error,
        }


def _adapter_digest(adapter: str) -> str | None:
    try:
        return adapter_digest(local_model_dir(adapter.partition(":")[2]))
    except (ProbeError, AttachError) as error:
        logger.warning("probewatch: %s; its requests count as unscored", error)
        return None
