"""Which running sequences a probe ends: the running statistic of every probe whose action is ``stop``.

The aggregation decides, not a single token: the statistic that is followed is the one the threshold was calibrated on,
with its mask and its ``min_tokens``. Only running sequences are held, a few floats each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from monitor.bank import ProbeBank, Seat
from monitor.events import FloatArray, IntArray, StepView, Stop
from probes.masks import mask
from probes.probe import Stream


@dataclass(slots=True)
class _Followed:
    streams: list[tuple[Seat, Stream]]
    next: int = 0
    """Position of the first token that has not been taken in."""
    crossed: tuple[str, int] | None = None
    """Probe and position. It is told with every later step: vLLM may have dropped the output that carried it."""


class StopWatch:
    """Follows sequences from the step in which their first output comes."""

    def __init__(self, bank: ProbeBank) -> None:
        self._seats = _stopping(bank)
        self._running: dict[str, _Followed] = {}

    def renew(self, bank: ProbeBank, before: ProbeBank) -> None:
        """Called in the order of the steps: from the next one on, states are laid out by ``bank``.

        Sequences that run keep their thresholds; a probe that has gone, or has moved, stops nobody any more.
        """
        self._seats = _stopping(bank)
        stays = {seat.states.start for seat in bank.shared_with(before)}
        for followed in self._running.values():
            followed.streams = [
                (seat, stream) for seat, stream in followed.streams if seat.states.start in stays
            ]

    def __len__(self) -> int:
        return len(self._running)

    def forget(self, request_ids: Iterable[str]) -> None:
        """Sequences that vLLM has let go of."""
        for request_id in request_ids:
            self._running.pop(request_id, None)

    def follow(
        self, view: StepView, starts: IntArray, counts: IntArray, states: FloatArray
    ) -> tuple[Stop, ...]:
        """Takes in what became due in a step, ``states [sum(counts), K]``; the sequences that have crossed so far."""
        if not self._seats and not self._running:
            return ()
        found = []
        ends = np.cumsum(counts)
        for row in np.flatnonzero(counts).tolist():
            request_id, start = view.request_ids[row], int(starts[row])
            if start == 0 and self._seats:
                self._running[request_id] = _Followed([(seat, seat.probe.stream()) for seat in self._seats])
            followed = self._running.get(request_id)
            if followed is None:
                continue  # it began before its probe could stop it
            if followed.crossed is None:
                own = states[ends[row] - counts[row] : ends[row]]
                followed.crossed = _crossed(followed, start, int(view.prompt_tokens[row]), own)
                followed.next = max(followed.next, start + len(own))
            if followed.crossed is not None:
                found.append(Stop(row, *followed.crossed))
        return tuple(found)


def _crossed(followed: _Followed, start: int, prompt: int, states: FloatArray) -> tuple[str, int] | None:
    positions = np.arange(start, start + len(states))
    for seat, stream in followed.streams:
        own = states[:, seat.states]
        inside = mask(positions, prompt, seat.probe.manifest.token_mask) & np.isfinite(own).all(axis=1)
        for at in np.flatnonzero(inside & (positions >= followed.next)).tolist():
            stream.update(own[at : at + 1])
            if seat.probe.crossed(stream.live):
                return seat.probe.manifest.name, int(positions[at])
    return None


def _stopping(bank: ProbeBank) -> list[Seat]:
    return [seat for seat in bank.seats if seat.probe.manifest.default_action == "stop"]
