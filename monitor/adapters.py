"""Which probes may score a request that runs with a LoRA adapter, and which one that does not.

An adapter changes the residual stream, so a probe speaks only for what it was trained on: the model itself, or the
model with one adapter. Everything else counts as unscored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from monitor.bank import ProbeBank
from monitor.events import FloatArray, StepView
from monitor.unscored import Reason, nan_for

REMEMBERED_ADAPTERS = 1024
"""Digests of adapters are looked up once while they are among that many."""


class AdapterRules:
    """``digest_of``: digest of an adapter as ``StepView`` names it, None if it cannot be told."""

    def __init__(self, bank: ProbeBank, digest_of: Callable[[str], str | None]) -> None:
        self._digest_of = digest_of
        self._bound: list[tuple[slice, str | None]] = []
        for seat in bank.seats:
            binding = seat.probe.manifest.binding
            self._bound.append((seat.states, binding.adapter_digest if binding else None))
        self._columns = bank.state_columns
        self._foreign = functools.lru_cache(REMEMBERED_ADAPTERS)(self._look_up)

    def silence(self, states: FloatArray, view: StepView) -> None:
        """Takes back, in ``states [T, K]``, what a probe said about an adapter that is not its own."""
        if view.adapters is None:
            return
        for request, adapter in enumerate(view.adapters):
            foreign = self._foreign(adapter)
            if foreign.any():
                rows = slice(view.query_start_loc[request], view.query_start_loc[request + 1])
                states[rows, foreign] = nan_for(Reason.OTHER_ADAPTER)

    def _look_up(self, adapter: str | None) -> npt.NDArray[np.bool_]:
        """[K] state columns of the probes that know nothing about ``adapter``."""
        columns = np.zeros(self._columns, bool)
        asked = any(bound is not None for _, bound in self._bound)
        digest = self._digest_of(adapter) if adapter is not None and asked else None
        for where, bound in self._bound:
            columns[where] = bound is not None if adapter is None else bound is None or bound != digest
        return columns
