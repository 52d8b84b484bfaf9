"""The engines that one server process talks to: one, or one for each data-parallel rank."""

from __future__ import annotations

from collections.abc import Callable

from monitor.bank import ProbeBank
from monitor.frontend import Frontend
from monitor.records import RecentRecords


class Engines:
    """A ``Frontend`` for each engine; what they remember is kept together, because a client knows no engine."""

    def __init__(self, make: Callable[[int], Frontend], indices: list[int], recent: RecentRecords) -> None:
        self._make = make
        self._frontends = {index: make(index) for index in indices}
        self.recent = recent

    def __getitem__(self, index: int) -> Frontend:
        """The frontend of an engine; a new one where the server has grown."""
        if index not in self._frontends:
            self._frontends[index] = self._make(index)
            self._frontends[index].follow(self.first)
        return self._frontends[index]

    @property
    def first(self) -> Frontend:
        """Any of them: probes, actions and model are the same for all."""
        return next(iter(self._frontends.values()))

    @property
    def all(self) -> list[Frontend]:
        """All of them, in the order of their indices."""
        return [self._frontends[index] for index in sorted(self._frontends)]

    def adopt(self, bank: ProbeBank) -> None:
        """From now on sequences of every engine are judged by ``bank``."""
        for frontend in self.all:
            frontend.adopt(bank)

    def go_back(self, epoch: int) -> None:
        """Sequences that come are judged again by the bank of that epoch, where it is remembered."""
        bank = self.first.bank_of(epoch)
        if bank is not None:
            self.adopt(bank)

    @property
    def attached(self) -> bool:
        """Whether the taps of all of them have been proven."""
        return all(frontend.attached for frontend in self.all)

    @property
    def last_error(self) -> str | None:
        """The last error of any of them."""
        return next((f.last_error for f in self.all if f.last_error is not None), None)

    def coverage(self) -> dict[str, float | None]:
        """Scored over seen tokens of each probe since the start; None before any token."""
        counts = [frontend.counts() for frontend in self.all]
        seen = sum(own_seen for own_seen, _ in counts)
        return {
            name: sum(scored[name] for _, scored in counts) / seen if seen else None for name in counts[0][1]
        }
