"""When states are stored: those of steps that only decode wait for each other, for after a forward pass the processor's
caches hold nothing of all this, and eight together take little more than one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from monitor.bank import ProbeBank
from monitor.events import FloatArray, IntArray, StepView
from monitor.store import ScoreStore

STEPS_WAITING = 8


class Decoding(NamedTuple):
    """A step that feeds one generated token of every request, told by such a step before it: nothing is looked up."""

    view: StepView
    """Of that one; without adapters."""
    steps: int
    """Between the two, each in the same blocks."""

    @property
    def positions(self) -> IntArray:
        """[R]"""
        return self.view.first_position + self.steps

    @property
    def slots(self) -> IntArray:
        """[R]"""
        return self.view.slots + self.steps

    def view_now(self) -> StepView:
        """All that can be told of the step."""
        first = self.positions
        return self.view._replace(first_position=first, known_tokens=first + 1, slots=self.slots)


class _Waiting(NamedTuple):
    bank: ProbeBank
    step: Decoding
    projections: FloatArray
    """[L, R, C]"""


class Filing:
    """The score store of one worker; nobody who asks it can tell that steps wait."""

    def __init__(self, store: ScoreStore) -> None:
        self._store = store
        self._waiting: list[_Waiting] = []
        self.room = store.columns
        """State columns at most."""
        self.mib = store.mib

    @property
    def store(self) -> ScoreStore:
        """With all that came so far. Only for the thread that files steps."""
        if self._waiting:
            self._settle()
        return self._store

    def wait(self, bank: ProbeBank, step: Decoding, projections: FloatArray) -> None:
        """Stores them by the time that somebody asks. ``bank`` laid out ``projections [L, R, C]``, which stay as they
        are."""
        if self._waiting and self._waiting[-1].bank is not bank:
            self._settle()
        self._waiting.append(_Waiting(bank, step, projections))
        if len(self._waiting) >= STEPS_WAITING:
            self._settle()

    def _settle(self) -> None:
        """Later steps over earlier ones: a slot may have changed hands between them."""
        waiting, self._waiting = self._waiting, []
        projections = np.concatenate([one.projections for one in waiting], axis=1)
        slots = np.concatenate([one.step.slots for one in waiting])
        self._store.write(slots, waiting[0].bank.states(projections, None))

    def forget(self) -> None:
        """After a step that could not be filed: no slot may keep what an earlier owner left there."""
        self._waiting.clear()
        self._store.forget()
