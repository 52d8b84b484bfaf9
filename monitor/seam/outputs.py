"""The API server's side: every output of the engine passes here once, before vLLM turns it into replies."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from monitor.attach import Plan
from monitor.engines import Engines
from monitor.events import FloatArray, StepScores
from monitor.frontend import Arrival, Frontend, Running
from monitor.response_ids import locate
from monitor.wire import CARRIER, joined, requests_of, shares, unpack

logger = logging.getLogger("probewatch")

STOPPED_BY = "probe:"
"""How the engine's stop reason begins when a probe has ended a sequence."""
STEPS_HELD = 8
"""Whose accounting may wait: after a forward pass nothing of it is in the processor's caches, and eight in a row take
a fraction of eight times one."""
SECONDS_HELD = 1.0
"""And for how long, where steps are slow."""


class _Held(NamedTuple):
    """A step that brought one token of each of some sequences, none of them its first or last."""

    frontend: Frontend
    message: dict[str, Any]
    names: list[str]
    tokens: list[int]
    since: float
    """Monotonic seconds."""


class OutputTap:
    """Follows the sequences of one ``OutputProcessor``, which may serve several engines.

    A sequence that begins or ends is accounted for at once, and whatever came before it with it; what only goes on
    waits for up to ``STEPS_HELD`` steps, the tokens as well as their scores. A step that came without scores never
    waits.
    """

    def __init__(self, engines: Engines, plan: Plan) -> None:
        self.engines = engines
        self.plan = plan
        self.frontend = engines.first
        """Of the engine whose outputs are being processed."""
        self.running: dict[str, tuple[Frontend, Running]] = {}
        self._reasons: dict[str, str] = {}
        self._shares: Iterator[tuple[int, FloatArray]] = iter(())
        self._epoch = 0
        self._held: list[_Held] = []

    def comes_from(self, engine: int) -> None:
        """The next outputs are those of that engine."""
        self.frontend = self.engines[engine]

    def take(self, outputs: Sequence[Any], request_states: dict[str, Any]) -> None:
        """Accounts for a chunk of outputs. vLLM may split a step's outputs into chunks; the order stays.

        Whatever goes wrong here costs scores and never a request: a step that cannot be read counts as
        not delivered, a sequence that cannot be accounted for ends unscored.
        """
        try:
            if self._hold(outputs):
                return
        except Exception as error:
            self.failed(error)
        self.settle()
        # vLLM's front end finds stop strings by itself: then the engine's output names no reason.
        self._reasons = {o.request_id: str(o.finish_reason) for o in outputs if o.finish_reason is not None}
        self._account(outputs, request_states)

    def _hold(self, outputs: Sequence[Any]) -> bool:
        """Whether these outputs wait."""
        names: list[str] = []
        tokens: list[int] = []
        carrying = 0
        for output in outputs:
            name, new = output.request_id, output.new_token_ids
            if output.finish_reason is not None or len(new) != 1 or name not in self.running:
                return False
            carrying += output.kv_transfer_params is not None
            names.append(name)
            tokens.append(new[0])
        if not names or carrying != (outputs[0].kv_transfer_params is not None):
            return False
        message, now = outputs[0].kv_transfer_params, time.monotonic()
        if message is None:
            return self._hold_more(names, tokens)
        if len(self._held) >= STEPS_HELD or (self._held and now - self._held[0].since > SECONDS_HELD):
            self.settle()
        found = _pop_message(outputs[0])
        if found is not None:
            self._held.append(_Held(self.frontend, found, names, tokens, now))
        return found is not None

    def _hold_more(self, names: Sequence[str], tokens: Sequence[int]) -> bool:
        """Whether outputs that come without scores are a further chunk of the latest step, and not a step that lost
        them."""
        last = self._held[-1] if self._held else None
        if last is None or last.frontend is not self.frontend:
            return False
        if len(last.names) + len(names) > requests_of(last.message):
            return False
        last.names.extend(names)
        last.tokens.extend(tokens)
        return True

    def settle(self) -> None:
        """Accounts for what waits. Never raises."""
        held, self._held = self._held, []
        current = self.frontend
        for frontend, steps in groupby(held, key=attrgetter("frontend")):
            self.frontend = frontend
            try:
                self._settle(list(steps))
            except Exception as error:
                self.failed(error)
        self.frontend = current

    def _settle(self, held: Sequence[_Held]) -> None:
        """Of one engine: all at once, or one by one where something is wrong with one, to tell it of that one."""
        step = self._together(held)
        if step is None:
            for one in held:
                self._read(one.message)
                self._go_on(one.names, [[token] for token in one.tokens])
        else:
            self._adopt(step)
            self._go_on(held[0].names, list(zip(*(one.tokens for one in held), strict=True)))

    def _together(self, held: Sequence[_Held]) -> StepScores | None:
        """The steps as one, if each brought all of the same sequences their next token."""
        names = held[0].names
        if any(one.names != names for one in held[1:]):
            return None
        try:
            step = joined([one.message for one in held])
            if step is not None and len(step.counts) == len(names):
                return self._made(step)
        except Exception:  # whatever it is, reading them one by one tells it
            return None
        return None

    def _go_on(self, names: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
        self._arrive(
            [
                Arrival(self.running[name][1], own, *self._share(), self._epoch)
                for name, own in zip(names, tokens, strict=True)
            ]
        )

    def _account(self, outputs: Sequence[Any], request_states: dict[str, Any]) -> None:
        arrivals: list[Arrival] = []
        try:
            for output in outputs:
                self._account_one(output, request_states, arrivals)
        except Exception as error:
            self._lost(arrivals, error)
        else:
            self._arrive(arrivals)

    def _arrive(self, arrivals: Sequence[Arrival]) -> None:
        try:
            self.frontend.arrive(arrivals)
        except Exception as error:
            self._lost(arrivals, error)

    def _lost(self, arrivals: Sequence[Arrival], error: Exception) -> None:
        for arrival in arrivals:
            arrival.running.lost = True
        self.failed(error)

    def _account_one(self, output: Any, request_states: dict[str, Any], arrivals: list[Arrival]) -> None:
        self._read(_pop_message(output))
        start, states = self._share()
        followed = self.running.get(output.request_id)
        if followed is None:
            request = request_states.get(output.request_id)
            if request is None:
                return  # aborted meanwhile: vLLM ignores it, and so do its counters
            followed = self.running[output.request_id] = (self.frontend, begin(request))
            followed[1].traceparent = (output.trace_headers or {}).get("traceparent")
            # A prompt that grows; its positions are not followed.
            followed[1].lost = bool(request.streaming_input)
        arrivals.append(Arrival(followed[1], output.new_token_ids, start, states, self._epoch))
        ended_by = output.stop_reason
        if isinstance(ended_by, str) and ended_by.startswith(STOPPED_BY):
            self.frontend.count_stop(ended_by.removeprefix(STOPPED_BY))

    def _read(self, message: dict[str, Any] | None) -> None:
        if message is None:
            return
        self._shares = iter(())  # what is left of an earlier step must never be taken for this one's
        try:
            self._adopt(self._made(unpack(message)))
        except Exception as error:
            self.failed(error)

    def _adopt(self, step: StepScores) -> None:
        """The next outputs are those of this step, one by one."""
        self._shares, self._epoch = shares(step), step.epoch
        try:
            self._note(step)
        except Exception as error:
            self.failed(error)

    def _share(self) -> tuple[int, FloatArray | None]:
        """Of the next output: the first position, and the states if they came."""
        return next(self._shares, (0, None))

    def _made(self, step: StepScores) -> StepScores:
        bank = self.frontend.bank_of(step.epoch)
        if bank is None:
            raise ValueError(f"step scores of epoch {step.epoch}, which is unknown; restart the whole server")
        return bank.made(step)

    def _note(self, step: StepScores) -> None:
        bank = self.frontend.bank_of(step.epoch)
        assert bank is not None
        metrics = self.frontend.metrics
        for seconds in step.host_seconds:
            metrics.observe("probewatch_step_overhead_seconds", value=seconds)
        for vector, rows in step.steered.items():
            metrics.inc("probewatch_steered_tokens_total", vector, by=rows)
        if step.errors:
            metrics.inc("probewatch_errors_total", "worker", by=step.errors)
            self.frontend.last_error = (
                f"worker: {step.errors} steps could not be scored; see the engine's log"
            )
        if not self.frontend.attached and any(
            np.isfinite(step.states[:, s.states]).any() for s in bank.seats
        ):
            self.frontend.confirm()  # an engine without our endpoint is proven by its first scores

    def finished(self, request_id: str, reason: str | None = None) -> None:
        """Judges a sequence that vLLM has let go of, however it ended."""
        if self._held:
            self.settle()
        frontend, running = self.running.pop(request_id, (None, None))
        if frontend is None or running is None:
            return
        try:
            frontend.finish(running, reason or self._reasons.get(request_id, "stop"))
        except Exception as error:
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """Counts an error of ours, logs the first."""
        if self.frontend.last_error is None:
            logger.exception("probewatch: accounting failed; see probewatch_errors_total")
        self.frontend.error("frontend", error)


def _pop_message(output: Any) -> dict[str, Any] | None:
    params = output.kv_transfer_params
    if not params or CARRIER not in params:
        return None
    message: dict[str, Any] = params.pop(CARRIER)
    output.kv_transfer_params = params or None
    return message


def begin(request: Any) -> Running:
    """A sequence of which nothing has come out yet."""
    parent = request.parent_req
    if parent is None:
        place = locate(str(request.external_req_id), request.request_id)
        choice = place.prompt
    else:
        # The children of n > 1 carry n = 1 themselves.
        place = locate(str(parent.external_req_id), parent.request_id)
        choice = place.prompt * int(parent.n) + int(request.request_index)
    ids = request.prompt_token_ids
    return Running(
        response_id=place.response_id,
        group=place.group,
        choice=choice,
        prompt_tokens=request.prompt_len,
        prompt_ids=None if ids is None else array("i", ids),
    )
