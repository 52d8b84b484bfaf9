"""What probes with the actions ``stop`` and ``steer:VECTOR`` do to running sequences, and when.

The aggregation decides, not a single token: what is followed is the statistic that the threshold was calibrated on,
with its mask and its ``min_tokens``. Vectorised over the batch; only running sequences are held, a few numbers each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from monitor.bank import ProbeBank, Seat
from monitor.events import FloatArray, IntArray, StepRows, StepView, Stop
from monitor.gates import GateKey, gate_key, gating
from monitor.running import Bools, RunningStatistics, StreamedStatistics, statistics_of
from monitor.slices import row_owners
from probes.masks import mask

NEVER = np.iinfo(np.int64).max


@dataclass
class _Trigger:
    """One acting probe, for the sequences that began while it was set so. Arrays are by slot."""

    seat: Seat
    statistics: RunningStatistics | StreamedStatistics
    steers: bool
    """It drives a gate of the device; else it stops."""
    members: Bools = field(default_factory=lambda: np.zeros(0, bool))
    since: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Position of the token whose score crossed, ``NEVER`` so far; of a gate, the first that may be steered."""
    blind: Bools = field(default_factory=lambda: np.zeros(0, bool))
    """The latest token has no score from this probe: what the device reads of the next is not to be trusted either."""

    def grow(self, slots: int) -> None:
        more = slots - len(self.members)
        self.members = np.concatenate([self.members, np.zeros(more, bool)])
        self.since = np.concatenate([self.since, np.full(more, NEVER)])
        self.blind = np.concatenate([self.blind, np.zeros(more, bool)])


@dataclass(frozen=True)
class Crossed:
    """What has crossed by the end of a step."""

    stops: tuple[Stop, ...] = ()
    """Told again with every step until the sequence ends: vLLM may have dropped the output that carried it."""
    gated: tuple[tuple[int, int], ...] = ()
    """(row of the request, position of the first token that may be steered) of gates that opened in this step."""


NOTHING = Crossed()


class Triggers:
    """Follows sequences from the step in which their first output comes."""

    def __init__(self, bank: ProbeBank) -> None:
        """Raises ``AttachError`` for an acting probe that cannot be followed."""
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._next: IntArray = np.zeros(0, np.int64)
        """[slots] position of the first token that has not been taken in"""
        self._live = _triggers(bank)
        """For sequences that come."""
        self._old: list[_Trigger] = []

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def at_work(self) -> bool:
        """Whether a probe acts, or there are sequences that one acts on."""
        return bool(self._live or self._slots)

    def renew(self, bank: ProbeBank, before: ProbeBank) -> None:
        """Called in the order of the steps: from the next one on, states are laid out by ``bank``.

        Sequences that run keep their thresholds; a probe that has gone, moved, or acts otherwise now, does nothing to
        them any more.
        """
        fresh = _triggers(bank)
        stays = {seat.states.start for seat in bank.shared_with(before)}
        acting = {gate_key(trigger.seat) for trigger in fresh}
        kept = [
            trigger
            for trigger in self._all
            if trigger.seat.states.start in stays
            and gate_key(trigger.seat) in acting
            and trigger.members.any()
        ]
        for trigger in fresh:
            trigger.grow(len(self._next))
        self._old, self._live = kept, fresh

    def forget(self, request_ids: Iterable[str]) -> None:
        """Sequences that vLLM has let go of."""
        for request_id in request_ids:
            slot = self._slots.pop(request_id, None)
            if slot is not None:
                self._free.append(slot)
                for trigger in self._all:
                    trigger.members[slot] = False
        if self._old:
            self._old = [trigger for trigger in self._old if trigger.members.any()]

    @property
    def _all(self) -> list[_Trigger]:
        return [*self._old, *self._live]

    def follow(
        self,
        view: StepView,
        starts: IntArray,
        counts: IntArray,
        states: FloatArray,
        fired: Bools | None = None,
        numbers: Mapping[GateKey, int] | None = None,
    ) -> Crossed:
        """Takes in what became due in a step, ``states [sum(counts), K]``.

        ``fired [T, G]``: the gates that the device held open in the forward pass, None where it was asked nothing;
        ``numbers``: see ``gate_numbers``. What the device did is the truth, whatever the host makes of the score.
        """
        if not self.at_work:
            return NOTHING
        rows = np.flatnonzero(counts)
        for row in rows[starts[rows] == 0].tolist():
            if self._live:
                self._begin(view.request_ids[row])
        slots = np.array([self._slots.get(view.request_ids[row], -1) for row in rows.tolist()], np.int64)
        rows, slots = rows[slots >= 0], slots[slots >= 0]
        if not len(rows):
            return Crossed()
        due = _Due.of(view, rows, slots, starts, counts, states, self._next)
        stops: dict[int, Stop] = {}
        gated: list[tuple[int, int]] = []
        for trigger in self._all:
            opened = _take(trigger, due)
            if not trigger.steers:
                crossed = trigger.members[slots] & (trigger.since[slots] != NEVER)
                for row, position in zip(
                    rows[crossed].tolist(), trigger.since[slots[crossed]].tolist(), strict=True
                ):
                    if row not in stops or position < stops[row].position:
                        stops[row] = Stop(row, trigger.seat.probe.manifest.name, position)
                continue
            within = np.zeros(len(rows), bool)
            gate = (numbers or {}).get(gate_key(trigger.seat))
            if fired is not None and gate is not None:
                within = (
                    fired[view.query_start_loc[rows], gate] & (counts[rows] == 1) & trigger.members[slots]
                )
            trigger.since[slots[opened & ~within]] += 1
            rounded = within & ~opened & (trigger.since[slots] == NEVER)
            trigger.since[slots[rounded]] = starts[rows[rounded]]
            told = opened | rounded
            gated += zip(rows[told].tolist(), trigger.since[slots[told]].tolist(), strict=True)
        self._next[slots] = np.maximum(self._next[slots], starts[rows] + counts[rows])
        return Crossed(tuple(stops.values()), tuple(gated))

    def _begin(self, request_id: str) -> None:
        slot = self._slots.get(request_id)
        if slot is None:
            if not self._free:
                size = max(64, 2 * len(self._next))
                self._free = list(range(size - 1, len(self._next) - 1, -1))
                self._next = np.concatenate([self._next, np.zeros(size - len(self._next), np.int64)])
                for trigger in self._all:
                    trigger.grow(size)
            slot = self._slots[request_id] = self._free.pop()
        self._next[slot] = 0
        for trigger in self._live:
            trigger.members[slot] = True
            trigger.since[slot] = NEVER
            trigger.blind[slot] = False
            trigger.statistics.begin(np.array([slot]))

    def levels(self, step: StepRows, gates: int, numbers: Mapping[GateKey, int]) -> FloatArray | None:
        """``[T, G]``: the score above which each row opens each gate; -inf open already, inf not to be opened.

        ``numbers``: of the gates that the device has now; a trigger that is not among them does nothing. None where no
        sequence has anything to do with a gate.
        """
        driven = [(trigger, numbers.get(gate_key(trigger.seat))) for trigger in self._all if trigger.steers]
        triggers = [(trigger, gate) for trigger, gate in driven if gate is not None]
        if not triggers or not self._slots:
            return None
        rows = [(r, self._slots[name]) for r, name in enumerate(step.request_ids) if name in self._slots]
        if not rows:
            return None
        picked = np.array(rows, np.int64)
        starts, counts = step.query_start_loc[:-1], np.diff(step.query_start_loc)
        found: npt.NDArray[np.float32] = np.full((step.rows, gates), np.inf, np.float32)
        for trigger, gate in triggers:
            self._fill(found[:, gate], trigger, step, picked, starts, counts)
        return found

    def _fill(
        self,
        found: FloatArray,
        trigger: _Trigger,
        step: StepRows,
        picked: IntArray,
        starts: IntArray,
        counts: IntArray,
    ) -> None:
        own = picked[trigger.members[picked[:, 1]]]
        rows, slots = own[:, 0], own[:, 1]
        since = trigger.since[slots]
        opened = since != NEVER
        for row, first_open in zip(rows[opened].tolist(), since[opened].tolist(), strict=True):
            # By position: after a preemption, tokens from before the gate opened are computed again.
            begin = max(0, first_open - int(step.first_position[row]))
            if begin < counts[row]:
                found[starts[row] + begin : starts[row] + counts[row]] = -np.inf
        # Only where every token before has been taken in: with asynchronous scheduling the host is behind, and what it
        # does not know the device must not decide.
        single = ~opened & ~trigger.blind[slots] & (counts[rows] == 1)
        single &= step.first_position[rows] == self._next[slots]
        rows, slots = rows[single], slots[single]
        inside = mask(
            step.first_position[rows], step.prompt_tokens[rows], trigger.seat.probe.manifest.token_mask
        )
        rows, slots = rows[inside], slots[inside]
        found[starts[rows]] = trigger.statistics.levels(slots)


@dataclass(frozen=True)
class _Due:
    """The tokens that became due in a step, of the ``n`` sequences that are followed."""

    slots: IntArray
    """[n]"""
    owner: IntArray
    """[T] which of the n"""
    positions: IntArray
    """[T]"""
    prompts: IntArray
    """[T] length of the prompt of its sequence"""
    states: FloatArray
    """[T, K]"""
    new: Bools
    """[T] not taken in before: an output that vLLM drops comes again"""

    @classmethod
    def of(
        cls,
        view: StepView,
        rows: IntArray,
        slots: IntArray,
        starts: IntArray,
        counts: IntArray,
        states: FloatArray,
        following: IntArray,
    ) -> _Due:
        owner, offset = row_owners(counts[rows])
        first = (np.cumsum(counts) - counts)[rows]
        positions = starts[rows][owner] + offset
        return cls(
            slots,
            owner,
            positions,
            view.prompt_tokens[rows][owner],
            states[first[owner] + offset],
            positions >= following[slots][owner],
        )


def _take(trigger: _Trigger, due: _Due) -> Bools:
    """[n] which of the sequences crossed in this step; notes where."""
    states = due.states[:, trigger.seat.states].astype(np.float64)
    scores = states[:, 0] if states.shape[1] == 1 else states
    waiting = trigger.members[due.slots] & (trigger.since[due.slots] == NEVER)
    finite: Bools = np.asarray(np.isfinite(states).all(axis=1))
    trigger.blind[due.slots] = ~finite[np.flatnonzero(np.diff(due.owner, append=-1))]
    inside = waiting[due.owner] & due.new & finite
    inside &= mask(due.positions, due.prompts, trigger.seat.probe.manifest.token_mask)
    tokens = np.flatnonzero(inside)
    crossed = np.zeros(len(due.slots), bool)
    if not len(tokens):
        return crossed
    owner = due.owner[tokens]
    several = np.bincount(owner, minlength=len(due.slots)) > 1
    alone = ~several[owner]
    above = trigger.statistics.add(due.slots[owner[alone]], scores[tokens[alone]])
    at = tokens[alone][above]
    for one in np.flatnonzero(several).tolist():
        own = tokens[owner == one]
        found = trigger.statistics.add_many(int(due.slots[one]), scores[own])
        at = at if found is None else np.append(at, own[found])
    crossed[due.owner[at]] = True
    trigger.since[due.slots[due.owner[at]]] = due.positions[at]
    return crossed


def _triggers(bank: ProbeBank) -> list[_Trigger]:
    gates = gating(bank)
    return [
        _Trigger(seat, statistics_of(seat.probe), seat in gates)
        for seat in bank.seats
        if seat.probe.manifest.default_action == "stop" or seat in gates
    ]
