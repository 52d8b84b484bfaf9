"""A change of probes in one worker: prepared beside the steps, where everything can fail, and committed between two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from monitor.bank import ProbeBank
from monitor.errors import AttachError
from monitor.seam.selftest import score_golden_inputs
from probes import ProbeError, load


@dataclass(frozen=True)
class Prepared:
    """A change that only has to be committed."""

    bank: ProbeBank
    weights: torch.Tensor
    selftest: dict[str, float]


class Change:
    """The one change that is under way, if any."""

    def __init__(self) -> None:
        self._background = ThreadPoolExecutor(1, "probewatch")
        self._preparing: Future[Prepared] | None = None

    def start(self, work: Callable[[], Prepared]) -> None:
        """Prepares in a thread of its own; an earlier change that was not committed is dropped."""
        self._preparing = self._background.submit(work)

    def ready(self) -> bool:
        """Whether it can be committed. Raises what made it impossible."""
        if self._preparing is None:
            raise AttachError("nothing is being prepared; attach again")
        return self._preparing.done() and self._preparing.result() is not None

    def take(self, epoch: int) -> Prepared:
        """The prepared change, which is then nobody's but the caller's. Raises ``AttachError`` if it is another."""
        if not self.ready() or self._preparing is None or self._preparing.result().bank.epoch != epoch:
            raise AttachError(f"nothing is prepared for change {epoch}; attach again")
        change, self._preparing = self._preparing.result(), None
        return change

    def discard(self) -> None:
        """Forgets what was prepared."""
        self._preparing = None


def prepare(
    before: ProbeBank,
    keep: Sequence[str],
    add: Sequence[tuple[str, str]],
    epoch: int,
    room: int | None,
    device: torch.device,
) -> Prepared:
    """The bank that follows ``before``: loaded, laid out and tested. ``room``: state columns of the score store."""
    probes = [seat.probe for seat in before.seats if seat.probe.manifest.name in keep]
    try:
        for path, digest in (tuple(one) for one in add):
            probes.append(load(path))
            if probes[-1].manifest.tensors_sha256 != digest:
                raise AttachError(f"{path} has changed while it was attached; attach it again")
    except ProbeError as error:
        raise AttachError(str(error)) from error
    bank = before.follow(probes)
    if bank.epoch != epoch:
        raise AttachError(
            f"the worker is at change {before.epoch}, the API server asks for {epoch}; restart the server"
        )
    if room is not None and bank.state_columns > room:
        raise AttachError(
            f"the score store has {room} columns, {bank.state_columns} are needed; detach a probe, or start the server "
            "with a larger PROBEWATCH_TAP_COLUMNS"
        )
    weights = bank.weights().to(device)
    return Prepared(bank, weights, score_golden_inputs(bank, weights))


def restated(bank: ProbeBank, changes: Sequence[tuple[str, float | None, str]]) -> ProbeBank:
    """The bank with other thresholds and actions, given as (name, threshold, action)."""
    given = {name: {"threshold": threshold, "default_action": action} for name, threshold, action in changes}
    probes = [seat.probe for seat in bank.seats]
    return bank.restated(
        [replace(p, manifest=p.manifest.model_copy(update=given.get(p.manifest.name, {}))) for p in probes]
    )
