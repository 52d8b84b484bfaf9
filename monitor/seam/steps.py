"""From forward passes to the scores that became due, in the order of the steps."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from monitor.adapters import AdapterRules
from monitor.arguments import SKIP
from monitor.bank import ProbeBank
from monitor.errors import TapError
from monitor.events import FloatArray, StepRows, StepScores, StepView
from monitor.filing import Decoding, Filing
from monitor.gates import GateKey, gate_numbers
from monitor.seam.capture import Capture
from monitor.seam.steerer import Steered, Steerer
from monitor.seam.tap import TapBuffers
from monitor.seam.transfer import Transfer
from monitor.slices import assemble, due, ones, without
from monitor.store import ScoreStore
from monitor.triggers import Triggers

Capturer = Callable[[Any, Any], Capture]


@dataclass
class Step:
    """A forward pass whose scores are on their way to the host."""

    bank: ProbeBank
    """That was in the taps."""
    gates: dict[GateKey, int]
    """Of that bank."""
    fresh: list[int]
    """State columns that hold another probe from this step on."""
    adapters: AdapterRules
    capture: Capture
    transfer: Transfer
    copies: list[tuple[int, int]]
    finished: list[str]
    """Sequences that vLLM let go of before this step."""
    host_seconds: float
    after_loss: bool
    """A forward pass before this one could not be read, so no slot may keep what it held until then."""
    steered: Steered | None = None


class StepReader:
    """The bookkeeping of the one worker whose output vLLM reads."""

    def __init__(
        self,
        bank: ProbeBank,
        buffers: TapBuffers,
        store: ScoreStore,
        block_tokens: int,
        capture: Capturer,
        adapters: AdapterRules,
        steerer: Steerer | None = None,
    ) -> None:
        self.bank = bank
        self._gates = gate_numbers(bank)
        self.buffers = buffers
        self.filing = Filing(store)
        self._block_tokens = block_tokens
        self._capture = capture
        self._adapters = adapters
        self._steerer = steerer
        self._steered: Counter[str] = Counter()
        """Rows that were steered in steps that had no output."""
        self._triggers = Triggers(bank)
        self._following = threading.Lock()
        """Steps may be completed in another thread than the one that asks for levels."""
        self._completed = bank
        """Of the latest step that was completed."""
        self._fresh: list[int] = []
        self._finished: list[str] = []
        self._step: Step | None = None
        self._copies: list[tuple[int, int]] = []
        self._lost = False
        self._skipped: set[str] = set()
        """Requests that an operator asked not to be judged."""

    def swap(self, bank: ProbeBank, adapters: AdapterRules) -> None:
        """Between two steps: other probes are in the taps from the next step on."""
        kept = {column for seat in bank.shared_with(self.bank) for column in _columns(seat.states)}
        self._fresh += sorted({column for seat in bank.seats for column in _columns(seat.states)} - kept)
        self.bank, self._gates, self._adapters = bank, gate_numbers(bank), adapters

    def after_forward(self, runner: Any, scheduler_output: Any) -> None:
        """Sends the step's scores on their way; nothing waits for the device here."""
        unfinished, self._step = self._step, None
        if unfinished is not None:
            self._finished = unfinished.finished + self._finished
            self._fresh, self._copies = unfinished.fresh + self._fresh, unfinished.copies + self._copies
        self._copies += [(copy[0], copy[1]) for copy in scheduler_output.kv_cache_block_copies or ()]
        self._finished += scheduler_output.finished_req_ids
        for request in scheduler_output.scheduled_new_reqs:
            if (getattr(request.sampling_params, "extra_args", None) or {}).get(SKIP):
                self._skipped.add(request.req_id)
        if unfinished is not None:
            raise TapError("a step was never sampled; its scores are lost")
        rows = scheduler_output.total_num_scheduled_tokens
        if not rows:
            return
        started = time.perf_counter()
        capture = self._capture(runner, scheduler_output)
        # The V2 runner may drop drafts that the scheduler sent.
        if capture.rows > rows or (capture.rows < rows and not capture.device):
            raise TapError(
                f"the batch holds {capture.rows} rows, the scheduler sent {rows}; this vLLM is not understood"
            )
        steered = self._steerer.last if self._steerer is not None else None
        fired = {} if self._steerer is None or steered is None else self._steerer.fired(capture.rows)
        transfer = self.buffers.send(
            capture.rows, capture.written, {**capture.device, **fired}, self.bank.used_columns
        )
        copies, self._copies = self._copies, []
        fresh, self._fresh = self._fresh, []
        finished, self._finished = self._finished, []
        lost, self._lost = self._lost, False
        seconds = time.perf_counter() - started
        self._step = Step(
            self.bank,
            self._gates,
            fresh,
            self._adapters,
            capture,
            transfer,
            copies,
            finished,
            seconds,
            lost,
            steered,
        )

    def take(self) -> Step | None:
        """The step that is being sampled; after that it is nobody's but the caller's."""
        step, self._step = self._step, None
        return step

    def complete(self, step: Step, output: Any) -> StepScores | None:
        """Files a step's scores under their KV slots, at once or with later steps; returns those that became due with
        ``output``.

        Steps must come in the order of their forward passes. With asynchronous scheduling this runs in vLLM's output
        thread, while later steps are computed.
        """
        if step.finished:
            with self._following:
                self._triggers.forget(step.finished)
            self._skipped -= set(step.finished)
        arrays = step.transfer.arrived()
        started = time.perf_counter()
        sampled_ids: Sequence[Sequence[int]] = getattr(output, "sampled_token_ids", None) or ()
        decoding = step.capture.decoding
        if sampled_ids and decoding is not None and self._only_goes_on(step, decoding, output):
            projections = arrays["scores"]
            self.filing.wait(step.bank, decoding, projections)
            n, positions = len(sampled_ids), decoding.positions
            seconds = step.host_seconds + time.perf_counter() - started
            return StepScores(ones(n), positions, projections, (seconds,), epoch=step.bank.epoch, raw=True)
        view = step.capture.settle(arrays)
        if view.rows != step.capture.rows:
            raise TapError(
                f"{view.rows} rows belong to requests, the batch holds {step.capture.rows}; this vLLM is not understood"
            )
        if step.bank is not self._completed:
            with self._following:
                self._triggers.renew(step.bank, self._completed)
            self._completed = step.bank
        if self._steerer is not None and step.steered is not None:
            self._steered.update(self._steerer.count(step.steered, arrays["fired"]))
        if step.after_loss:
            self.filing.forget()
        if step.fresh:
            self.filing.store.renew(step.fresh)
        if step.copies:
            self.filing.store.copy_blocks(step.copies, self._block_tokens)
        states = step.bank.states(arrays["scores"], arrays.get("squared_norms"))
        step.adapters.silence(states, view)
        self.filing.store.write(view.slots, states)
        if not sampled_ids:
            return None
        if tuple(output.req_ids) != view.request_ids:
            raise TapError(
                "the order of requests changed between forward pass and sampling; this vLLM is not understood"
            )
        if view.decodes and all(len(ids) == 1 for ids in sampled_ids):
            starts, counts, due_states = view.first_position, ones(len(sampled_ids)), states
        else:
            sampled = np.fromiter(map(len, sampled_ids), np.int64, len(sampled_ids))
            starts, counts = due(view, sampled)
            width = step.bank.state_columns
            history = {r: self.filing.store.read(slots)[:, :width] for r, slots in view.history.items()}
            due_states = assemble(view, states, history, starts, counts)
        if self._skipped:
            due_states = without(due_states, [name in self._skipped for name in view.request_ids], counts)
        with self._following:
            crossed = self._triggers.follow(view, starts, counts, due_states, arrays.get("fired"), step.gates)
        steered, self._steered = dict(self._steered), Counter()
        seconds = step.host_seconds + time.perf_counter() - started
        return StepScores(
            counts,
            starts,
            due_states,
            (seconds,),
            epoch=step.bank.epoch,
            stops=crossed.stops,
            gated=tuple((row, at, self._block(view, row, at)) for row, at in crossed.gated),
            steered=steered,
        )

    def _only_goes_on(self, step: Step, decoding: Decoding, output: Any) -> bool:
        """Whether each request got one token, and nothing else has to be done: then its states need not be made here.
        Plain Python, for NumPy is not in the caches."""
        return (
            step.bank is self._completed  # so no column is fresh either
            and step.bank.travels_raw
            and not (step.after_loss or step.copies or self._skipped)
            and self._steerer is None
            and not self._triggers.at_work
            and set(map(len, output.sampled_token_ids)) == {1}
            and tuple(output.req_ids) == decoding.view.request_ids
        )

    def _block(self, view: StepView, row: int, position: int) -> int:
        at = int(view.query_start_loc[row] + position - view.first_position[row])
        return int(view.slots[at]) // self._block_tokens if at < view.query_start_loc[row + 1] else -1

    def levels(self, step: StepRows, gates: int) -> FloatArray | None:
        """See ``Triggers.levels``."""
        with self._following:
            return self._triggers.levels(step, gates, self._gates)

    def lose(self) -> None:
        """After a forward pass that could not be read: nothing that was there before may be taken for it.

        Steps before it may still be on their way and will fill slots that it has taken over, so the store forgets when
        its turn comes: with the next step.
        """
        self._step = None
        self._lost = True

    def forget(self) -> None:
        """After a step that could not be filed; called where ``complete`` is, in its order."""
        self.filing.forget()


def _columns(where: slice) -> range:
    return range(where.start, where.stop)
