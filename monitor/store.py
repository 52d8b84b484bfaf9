"""The score store: one row of token states for every slot of the KV cache.

A token's state belongs to the same slot as its keys and values, so whatever vLLM does with the slot
(prefix-cache hit, chunked prefill, preemption and recompute, rejected drafts overwritten by the next
step) happens to the score too. A slot is rewritten whenever its token is recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitor.errors import AttachError
from monitor.events import FloatArray, IntArray
from monitor.unscored import Reason, fill


class ScoreStore:
    """Rows ``[slots, K]`` of float32, unscored until written."""

    def __init__(self, slots: int, columns: int, limit_mib: int) -> None:
        size_mib = slots * columns * 4 / 2**20
        if size_mib > limit_mib:
            raise AttachError(
                f"the score store needs {size_mib:.0f} MiB for {slots} KV slots x {columns} columns, more than "
                f"PROBEWATCH_SCORE_STORE_MIB={limit_mib}; raise the limit or shrink the KV cache"
            )
        self.rows: FloatArray = np.empty((slots, columns), np.float32)
        fill(self.rows, Reason.BEFORE_ATTACH)
        self._written = False

    @property
    def columns(self) -> int:
        """Room for state columns."""
        return int(self.rows.shape[1])

    @property
    def mib(self) -> float:
        """Memory held, in MiB."""
        return self.rows.nbytes / 2**20

    def write(self, slots: IntArray, states: FloatArray) -> None:
        """Stores ``states [n, k]`` at ``slots [n]``; columns from k on hold no probe and stay as they are."""
        self.rows[:, : states.shape[1]][slots] = states
        self._written = True

    def renew(self, columns: Sequence[int]) -> None:
        """Other probes own these columns now: what is there is not theirs."""
        marks = np.empty((len(self.rows), len(columns)), np.float32)
        fill(marks, Reason.BEFORE_ATTACH)
        self.rows[:, columns] = marks

    def forget(self) -> None:
        """After a step that could not be filed: no slot may keep what an earlier owner left there."""
        if self._written:
            fill(self.rows, Reason.NOT_DELIVERED)
            self._written = False

    def read(self, slots: IntArray) -> FloatArray:
        """Rows ``[n, K]`` at ``slots [n]``, copied."""
        rows: FloatArray = self.rows[slots]
        return rows

    def copy_blocks(self, pairs: Sequence[tuple[int, int]], block_size: int) -> None:
        """Repeats vLLM's copy-on-write of whole KV blocks, given as (source, destination) block ids."""
        for source, destination in pairs:
            self.rows[destination * block_size : (destination + 1) * block_size] = self.rows[
                source * block_size : (source + 1) * block_size
            ]
