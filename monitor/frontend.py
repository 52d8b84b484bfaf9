"""Accounting in the process that talks to clients: every token vLLM counted is scored or has a reason."""

from __future__ import annotations

import time
import weakref
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from monitor.bank import ProbeBank
from monitor.events import FloatArray
from monitor.jury import Jury
from monitor.metrics import Metrics
from monitor.missing import all_missing, missing, undelivered
from monitor.publisher import Publisher
from monitor.records import RecentRecords, Record
from monitor.unscored import Reason, fill

Listener = Callable[[Record], None]
_PHASES = {phase: [(phase,)] for phase in ("prompt", "generation")}

PIECES_AT_MOST = 256
"""In which a running sequence's states lie; each costs ten times what a few of its numbers do."""
REMEMBERED_EPOCHS = 8
"""Banks of the past that messages still under way may have been laid out by."""


@dataclass(slots=True)
class Running:
    """A sequence that has produced output and has not finished."""

    response_id: str
    group: str | None
    """See ``monitor.response_ids``."""
    choice: int
    prompt_tokens: int
    prompt_ids: Sequence[int] | None
    output_ids: array[int] = field(default_factory=lambda: array("i"))
    bank: ProbeBank | None = None
    """What it is judged by, from its first output to its end."""
    states: list[bytes] = field(default_factory=list)
    """float32 rows [fed, K], laid out by ``bank``, as they came: one array that grows would be moved again and again"""
    fed: int = 0
    traceparent: str | None = None
    """See ``Record``."""
    lost: bool = False
    """Accounting failed on the way: nothing of this sequence may pass as scored."""


class Arrival(NamedTuple):
    """One sequence's share of an engine step."""

    running: Running
    new_ids: Sequence[int]
    start: int
    """Position of the first delivered row."""
    states: FloatArray | None
    """[n, K]; None if the engine delivered nothing for this sequence."""
    epoch: int = 0
    """Of the bank that laid out ``states``."""


def _failed(frontend: weakref.ref[Frontend], error: BaseException) -> None:
    """The metrics outlive an engine, and must not hold what it remembers."""
    alive = frontend()
    if alive is not None:
        alive.error("frontend", error)


class Frontend:
    """Judges sequences of one model and engine. Knows tokens, states and verdicts; nothing of vLLM."""

    def __init__(
        self,
        bank: ProbeBank,
        metrics: Metrics,
        model_name: str,
        recent: RecentRecords,
    ) -> None:
        self.bank = bank
        """The probes, with thresholds and actions, for sequences that come from now on."""
        self._banks = {bank.epoch: bank}
        self._juries: weakref.WeakKeyDictionary[ProbeBank, Jury] = weakref.WeakKeyDictionary()
        self.metrics = metrics
        self.model_name = model_name
        self.recent = recent
        self.listeners: list[Listener] = []
        self.last_error: str | None = None
        self.attached = False
        """Whether the taps have been proven."""
        self._publisher = Publisher(metrics, bank, partial(_failed, weakref.ref(self)))

    def adopt(self, bank: ProbeBank) -> None:
        """From now on sequences are judged by ``bank``; those that run keep theirs."""
        self._publisher.change(self.bank, bank)
        self._banks[bank.epoch] = self.bank = bank
        for epoch in sorted(self._banks)[:-REMEMBERED_EPOCHS]:
            del self._banks[epoch]

    def _jury(self, bank: ProbeBank) -> Jury:
        jury = self._juries.get(bank)
        if jury is None:
            jury = self._juries[bank] = Jury(bank)
        return jury

    def bank_of(self, epoch: int) -> ProbeBank | None:
        """The latest bank of an epoch; None if it is unknown or long past."""
        return self._banks.get(epoch)

    def arrive(self, arrivals: Sequence[Arrival]) -> None:
        """Takes in one step's outputs.

        vLLM counts a sequence's prompt with its first output, and every sampled token when it comes out;
        a sampled token is fed one step later, so the first output of ``s`` tokens means ``prompt + s - 1``
        fed ones, and every later output of ``s`` tokens means ``s``.
        """
        prompt = generated = 0
        by_bank: dict[int, tuple[ProbeBank, list[tuple[FloatArray, int, Running]]]] = {}
        for arrival in arrivals:
            running, new_ids, start, block, epoch = arrival
            sampled = len(new_ids)
            if not sampled:
                continue
            bank = running.bank
            if bank is None:
                bank = running.bank = self._banks.get(epoch, self.bank)
            own_prompt = 0 if running.fed else running.prompt_tokens
            fed = sampled + own_prompt - 1 if own_prompt else sampled
            if block is None or len(block) != fed or start != running.fed or epoch != bank.epoch:
                block = self._rows_or_none(arrival, bank, fed)
            running.states.append(block.tobytes())
            if len(running.states) >= PIECES_AT_MOST:
                running.states[:] = [b"".join(running.states)]
            running.output_ids.extend(new_ids)
            running.fed += fed
            prompt += own_prompt
            generated += fed - own_prompt
            held = by_bank.get(id(bank))
            if held is None:
                held = by_bank[id(bank)] = (bank, [])
            held[1].append((block, own_prompt, running))
        if not by_bank:
            return
        with self.metrics.together():  # nobody may see these tokens as seen and not yet as scored or unscored
            self.metrics.inc_all("probewatch_tokens_seen_total", _PHASES["prompt"], by=prompt)
            self.metrics.inc_all("probewatch_tokens_seen_total", _PHASES["generation"], by=generated)
            for bank, blocks in by_bank.values():
                self._count(bank, blocks)

    def _rows_or_none(self, arrival: Arrival, bank: ProbeBank, fed: int) -> FloatArray:
        """As ``_rows``; what cannot be read counts as not delivered, for vLLM has counted it."""
        try:
            return self._rows(arrival, bank, fed)
        except Exception as error:
            self.error("frontend", error)
            arrival.running.lost = True
            return undelivered(fed, bank)

    def _rows(self, arrival: Arrival, bank: ProbeBank, fed: int) -> FloatArray:
        """Exactly ``fed`` rows: what was delivered for the right position, NaN for the rest."""
        states = arrival.states
        if states is not None and arrival.epoch != bank.epoch:
            states = self._translated(states, arrival.epoch, bank)
        if states is not None and arrival.start == arrival.running.fed and len(states) >= fed:
            return np.ascontiguousarray(states[:fed])
        rows = undelivered(fed, bank)
        if states is not None and arrival.start == arrival.running.fed:
            rows[: len(states)] = states
        return rows

    def _translated(self, states: FloatArray, epoch: int, bank: ProbeBank) -> FloatArray | None:
        """States laid out by another epoch's bank; a probe that is no longer there leaves a gap."""
        source = self.bank_of(epoch)
        if source is None:
            return None
        found = np.empty((len(states), bank.state_columns), np.float32)
        fill(found, Reason.DETACHED)
        for seat in bank.shared_with(source):
            found[:, seat.states] = states[:, seat.states]
        return found

    def _count(self, bank: ProbeBank, blocks: Sequence[tuple[FloatArray, int, Running]]) -> None:
        metrics = self.metrics
        if not bank.seats:
            return
        prompt = sum(own for _, own, _ in blocks)
        generated = sum(len(block) for block, _, _ in blocks) - prompt
        jury = self._jury(bank)
        try:
            lost, any_scored = missing(bank, blocks)
        except (
            Exception
        ) as error:  # these tokens are counted as seen: without this line they would be neither
            self.error("frontend", error)
            for _, _, running in blocks:
                running.lost = True
            lost, any_scored = all_missing(bank, prompt, generated), False
        if any_scored:
            metrics.set("probewatch_last_scored_timestamp_seconds", to=time.time())
        if not lost:
            metrics.inc_all("probewatch_tokens_scored_total", jury.children["prompt"], by=prompt)
            metrics.inc_all("probewatch_tokens_scored_total", jury.children["generation"], by=generated)
            return
        for name, by_phase in lost.items():
            for phase, came in (("prompt", prompt), ("generation", generated)):
                for reason, n in by_phase[phase].items():
                    metrics.inc_later("probewatch_tokens_unscored_total", name, phase, reason.label, by=n)
                scored = came - sum(by_phase[phase].values())
                metrics.inc_later("probewatch_tokens_scored_total", name, phase, by=scored)

    def finish(self, running: Running, finish_reason: str) -> Record | None:
        """Judges a sequence that has ended, however it ended. None if it never produced output."""
        bank = running.bank
        if bank is None:
            return None
        jury = self._jury(bank)
        try:
            states = self._states_of(running, bank)
            verdicts = jury.judge(states, running.prompt_tokens)
        except Exception as error:  # a sequence that cannot be judged is unscored, and not forgotten
            self.error("frontend", error)
            states = undelivered(running.fed, bank)
            verdicts = jury.undecided()
        ids = (
            None
            if running.prompt_ids is None
            else np.concatenate(
                [np.asarray(part, np.int32) for part in (running.prompt_ids, running.output_ids)]
            )
        )
        record = Record(
            response_id=running.response_id,
            group=running.group,
            choice=running.choice,
            model=self.model_name,
            finished_at=time.time(),
            finish_reason=finish_reason,
            verdict=verdicts.worst_of(jury.acting_places),
            verdicts=verdicts,
            bank=bank,
            prompt_tokens=running.prompt_tokens,
            token_ids=ids,
            states=states,
            traceparent=running.traceparent,
        )
        self._publisher.publish(verdicts, jury)
        self.recent.add(record)
        for listener in self.listeners:
            listener(record)
        return record

    def _states_of(self, running: Running, bank: ProbeBank) -> FloatArray:
        """[fed, K]"""
        if not running.lost:
            return np.frombuffer(b"".join(running.states), np.float32).reshape(
                running.fed, bank.state_columns
            )
        return undelivered(running.fed, bank)

    def confirm(self) -> None:
        """The taps are in place and proven."""
        self.attached = True
        self.metrics.set("probewatch_attached", to=1)

    def count_stop(self, name: str) -> None:
        """A probe has ended a sequence."""
        self.metrics.inc("probewatch_stopped_requests_total", name)

    def counts(self) -> dict[str, tuple[float, float]]:
        """Tokens with and without a score of each attached probe."""
        scored = self.metrics.totals("probewatch_tokens_scored_total")
        unscored = self.metrics.totals("probewatch_tokens_unscored_total")
        names = [seat.probe.manifest.name for seat in self.bank.seats]
        return {name: (scored[name], unscored[name]) for name in names}

    def follow(self, other: Frontend) -> None:
        """Takes over what another engine of the same server has proven, and how it judges."""
        if self.bank is not other.bank:
            self.adopt(other.bank)
        if other.attached:
            self.confirm()

    def error(self, stage: str, error: BaseException) -> None:
        """Counts an error inside the monitor; it never reaches a user's request."""
        self.last_error = f"{stage}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.metrics.inc("probewatch_errors_total", stage)
