"""A change of probes in one worker: prepared beside the steps, where everything can fail, and committed between two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from monitor.bank import ProbeBank
from monitor.desired import Wanted, bank_of, load_added
from monitor.errors import AttachError
from monitor.quiet import QuietThread
from monitor.seam.selftest import score_golden_inputs


@dataclass(frozen=True)
class Prepared:
    """A change that only has to be committed."""

    bank: ProbeBank
    weights: torch.Tensor
    selftest: dict[str, float]


class Change:
    """The one change that is under way, if any."""

    def __init__(self) -> None:
        self._background = QuietThread()
        self._preparing: Future[Prepared] | None = None
        self._before: tuple[ProbeBank, dict[str, float]] | None = None
        """Bank and self-test before the latest change."""

    def start(self, work: Callable[[], Prepared]) -> None:
        """Prepares in a thread of its own; an earlier change that was not committed is dropped."""
        self._preparing = self._background.submit(work)

    def ready(self) -> bool:
        """Whether it can be committed. Raises what made it impossible."""
        if self._preparing is None:
            raise AttachError("nothing is being prepared; attach again")
        return self._preparing.done() and self._preparing.result() is not None

    def take(self, epoch: int, before: tuple[ProbeBank, dict[str, float]]) -> Prepared:
        """The prepared change, which is then nobody's but the caller's. Raises ``AttachError`` if it is another.

        ``before``: bank and self-test that it takes the place of.
        """
        if not self.ready() or self._preparing is None or self._preparing.result().bank.epoch != epoch:
            raise AttachError(f"nothing is prepared for change {epoch}; attach again")
        change, self._preparing = self._preparing.result(), None
        self._before = before
        return change

    def undo(self, epoch: int, current: ProbeBank) -> Prepared | None:
        """Forgets what was prepared. What was before change ``epoch`` where ``current`` comes of it."""
        self._preparing = None
        if current.epoch != epoch or self._before is None:
            return None
        bank, selftest = self._before
        return Prepared(bank, bank.weights(), selftest)


def prepare(
    before: ProbeBank,
    desired: Sequence[Wanted],
    epoch: int,
    room: int | None,
    device: torch.device,
) -> Prepared:
    """The bank that follows ``before``: loaded, laid out and tested; what stays as well, for it is gathered anew.

    ``room``: state columns of the score store.
    """
    bank = bank_of(before, desired, epoch, load_added(desired))
    if room is not None and bank.state_columns > room:
        raise AttachError(
            f"the score store has {room} columns, {bank.state_columns} are needed; detach a probe, or start the server "
            "with a larger PROBEWATCH_TAP_COLUMNS"
        )
    weights = bank.weights().to(device)
    return Prepared(bank, weights, score_golden_inputs(bank, weights))
