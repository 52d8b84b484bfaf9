"""Accounting in the process that talks to clients: every token vLLM counted is scored or has a reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from monitor.bank import ProbeBank
from monitor.drift import Drift
from monitor.events import FloatArray, ProbeVerdict
from monitor.metrics import Metrics
from monitor.records import RecentRecords, Record
from monitor.unscored import Reason, fill, reasons
from monitor.verdict import judge, of_probe, of_sequence

Listener = Callable[[Record], None]


@dataclass(slots=True)
class Running:
    """A sequence that has produced output and has not finished."""

    response_id: str
    group: str | None
    """See ``monitor.response_ids``."""
    choice: int
    prompt_tokens: int
    prompt_ids: Sequence[int] | None
    output_ids: list[int] = field(default_factory=list)
    states: bytearray = field(default_factory=bytearray)
    """float32 rows [fed, K]"""
    fed: int = 0
    lost: bool = False
    """Accounting failed on the way: nothing of this sequence may pass as scored."""


@dataclass(slots=True)
class Arrival:
    """One sequence's share of an engine step."""

    running: Running
    new_ids: Sequence[int]
    start: int
    """Position of the first delivered row."""
    states: FloatArray | None
    """[n, K]; None if the engine delivered nothing for this sequence."""


class Frontend:
    """Judges sequences of one model and engine. Knows tokens, states and verdicts; nothing of vLLM."""

    def __init__(
        self,
        bank: ProbeBank,
        actions: Mapping[str, str],
        metrics: Metrics,
        model_name: str,
        recent: RecentRecords,
    ) -> None:
        self.bank = bank
        self.actions = dict(actions)
        self.metrics = metrics
        self.model_name = model_name
        self.recent = recent
        self.listeners: list[Listener] = []
        self.last_error: str | None = None
        self.attached = False
        """Whether the taps have been proven."""
        self._drift = {seat.probe.manifest.name: Drift(seat.probe.manifest) for seat in bank.seats}
        for seat in bank.seats:
            metrics.add_probe(seat.probe, self.actions[seat.probe.manifest.name])

    def arrive(self, arrivals: Sequence[Arrival]) -> None:
        """Takes in one step's outputs.

        vLLM counts a sequence's prompt with its first output, and every sampled token when it comes out;
        a sampled token is fed one step later, so the first output of ``s`` tokens means ``prompt + s - 1``
        fed ones, and every later output of ``s`` tokens means ``s``.
        """
        prompt = generated = 0
        blocks = []
        for arrival in arrivals:
            running, sampled = arrival.running, len(arrival.new_ids)
            if not sampled:
                continue
            first = running.fed == 0
            fed = sampled + (running.prompt_tokens - 1 if first else 0)
            block = self._rows(arrival, fed)
            running.states += block.data.cast("B") if block.size else b""
            running.output_ids.extend(arrival.new_ids)
            running.fed += fed
            own_prompt = running.prompt_tokens if first else 0
            prompt += own_prompt
            generated += fed - own_prompt
            blocks.append((block, own_prompt))
        if blocks:
            self._count(blocks, prompt, generated)

    def _rows(self, arrival: Arrival, fed: int) -> FloatArray:
        """Exactly ``fed`` rows: what was delivered for the right position, NaN for the rest."""
        states = arrival.states
        if states is not None and arrival.start == arrival.running.fed and len(states) >= fed:
            return np.ascontiguousarray(states[:fed])
        rows = np.empty((fed, self.bank.state_columns), np.float32)
        fill(rows, Reason.NOT_DELIVERED)
        if states is not None and arrival.start == arrival.running.fed:
            rows[: len(states)] = states
        return rows

    def _count(self, blocks: Sequence[tuple[FloatArray, int]], prompt: int, generated: int) -> None:
        metrics = self.metrics
        metrics.inc("probewatch_tokens_seen_total", "prompt", by=prompt)
        metrics.inc("probewatch_tokens_seen_total", "generation", by=generated)
        if not self.bank.seats:
            return
        whole = blocks[0][0] if len(blocks) == 1 else np.concatenate([block for block, _ in blocks])
        finite = bool(np.isfinite(whole).all())
        if finite:
            missing = None
        else:
            is_prompt = np.concatenate([np.arange(len(block)) < own for block, own in blocks])
            missing = (reasons(whole), is_prompt)
        for seat in self.bank.seats:
            name = seat.probe.manifest.name
            lost = {"prompt": 0, "generation": 0}
            if missing is not None:
                lost = self._count_missing(name, missing[0][:, seat.states].max(axis=1), missing[1])
            metrics.inc("probewatch_tokens_scored_total", name, "prompt", by=prompt - lost["prompt"])
            metrics.inc(
                "probewatch_tokens_scored_total", name, "generation", by=generated - lost["generation"]
            )
        if finite or bool(np.isfinite(whole).any()):
            metrics.set("probewatch_last_scored_timestamp_seconds", to=time.time())

    def _count_missing(self, name: str, why: np.ndarray, is_prompt: np.ndarray) -> dict[str, int]:
        lost = {"prompt": 0, "generation": 0}
        for phase, rows in (("prompt", is_prompt), ("generation", ~is_prompt)):
            for reason in Reason:
                n = int((why[rows] == reason).sum())
                if n:
                    self.metrics.inc("probewatch_tokens_unscored_total", name, phase, reason.label, by=n)
                lost[phase] += n
        return lost

    def finish(self, running: Running, finish_reason: str) -> Record | None:
        """Judges a sequence that has ended, however it ended. None if it never produced output."""
        if not running.fed:
            return None
        states = self._states_of(running)
        verdicts = {
            seat.probe.manifest.name: judge(seat.probe, states[:, seat.states], running.prompt_tokens)
            for seat in self.bank.seats
        }
        ids = (
            None
            if running.prompt_ids is None
            else np.array([*running.prompt_ids, *running.output_ids], np.int32)
        )
        record = Record(
            response_id=running.response_id,
            group=running.group,
            choice=running.choice,
            model=self.model_name,
            finished_at=time.time(),
            finish_reason=finish_reason,
            verdict=of_sequence(verdicts, self.actions),
            verdicts=verdicts,
            actions=self.actions,
            bank=self.bank,
            prompt_tokens=running.prompt_tokens,
            token_ids=ids,
            states=states,
        )
        self._publish(verdicts)
        self.recent.add(record)
        for listener in self.listeners:
            listener(record)
        return record

    def _states_of(self, running: Running) -> FloatArray:
        """[fed, K]"""
        if not running.lost:
            return np.frombuffer(running.states, np.float32).reshape(running.fed, self.bank.state_columns)
        states = np.empty((running.fed, self.bank.state_columns), np.float32)
        fill(states, Reason.NOT_DELIVERED)
        return states

    def confirm(self) -> None:
        """The taps are in place and proven."""
        self.attached = True
        self.metrics.set("probewatch_attached", to=1)

    def _publish(self, verdicts: Mapping[str, ProbeVerdict]) -> None:
        for seat in self.bank.seats:
            manifest = seat.probe.manifest
            name, verdict = manifest.name, verdicts[manifest.name]
            self.metrics.inc("probewatch_requests_total", name, of_probe(verdict))
            if verdict.flagged and self.actions[name] != "observe":
                self.metrics.inc("probewatch_alerts_total", name, self.actions[name])
            if verdict.score is None:
                continue
            quantiles = manifest.benign_quantiles
            if quantiles is not None and manifest.threshold is not None and quantiles.iqr > 0:
                margin = (verdict.score - manifest.threshold) / quantiles.iqr
                self.metrics.observe("probewatch_request_margin", name, value=margin)
            drift = self._drift[name].add(verdict.score)
            if drift is not None:
                self.metrics.set("probewatch_score_drift", name, to=drift)

    def coverage(self) -> dict[str, float | None]:
        """Scored over seen tokens of each probe since the start; None before any token."""
        seen = self.metrics.total("probewatch_tokens_seen_total")
        return {
            (name := seat.probe.manifest.name): (
                self.metrics.total("probewatch_tokens_scored_total", name) / seen if seen else None
            )
            for seat in self.bank.seats
        }

    def error(self, stage: str, error: BaseException) -> None:
        """Counts an error inside the monitor; it never reaches a user's request."""
        self.last_error = f"{stage}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.metrics.inc("probewatch_errors_total", stage)
