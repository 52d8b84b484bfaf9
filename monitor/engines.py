"""The engines that one server process talks to: one, or one for each data-parallel rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from monitor.bank import ProbeBank
from monitor.frontend import Frontend, Listener
from monitor.records import RecentRecords
from monitor.steering import VectorBank


class Engines:
    """A ``Frontend`` for each engine; what they remember is kept together, because a client knows no engine."""

    def __init__(
        self,
        make: Callable[[int], Frontend],
        indices: list[int],
        recent: RecentRecords,
        vectors: VectorBank | None = None,
    ) -> None:
        self._make = make
        self._frontends = {index: make(index) for index in indices}
        self.recent = recent
        self.vectors = vectors
        """What requests may steer with; None without any."""
        self._listening: list[Callable[[Frontend], Listener]] = []

    def __getitem__(self, index: int) -> Frontend:
        """The frontend of an engine; a new one where the server has grown."""
        if index not in self._frontends:
            self._frontends[index] = self._make(index)
            self._frontends[index].follow(self.first)
            self._frontends[index].listeners.extend(make(self._frontends[index]) for make in self._listening)
        return self._frontends[index]

    def listen(self, make: Callable[[Frontend], Listener]) -> None:
        """Every finished sequence is told to ``make(its frontend)``, also those of engines that come later."""
        self._listening.append(make)
        for frontend in self.all:
            frontend.listeners.append(make(frontend))

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

    def tested(self, errors: Mapping[str, float]) -> None:
        """What the workers' self-test gave: largest difference from the golden scores, by probe."""
        for frontend in self.all:
            for name, error in errors.items():
                frontend.metrics.set("probewatch_selftest_error", name, to=error)

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
        """Scored over all tokens that were fed while the probe was attached; None before any of them."""
        counts = [frontend.counts() for frontend in self.all]
        found: dict[str, float | None] = {}
        for name in counts[0]:
            scored, unscored = (sum(own[name][part] for own in counts) for part in (0, 1))
            found[name] = scored / (scored + unscored) if scored + unscored else None
        return found
