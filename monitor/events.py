"""The facts that cross between rooms and processes. Nothing here knows vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class StepView(NamedTuple):
    """One engine step as the forward pass saw it, copied after the batch was settled.

    ``R`` requests in row order, ``T`` real rows (no padding).
    """

    request_ids: tuple[str, ...]
    """[R] vLLM's internal ids, in row order."""
    query_start_loc: IntArray
    """[R + 1] first row of each request; the last entry is T."""
    first_position: IntArray
    """[R] position in its sequence of each request's first row (tokens computed before the step)."""
    prompt_tokens: IntArray
    """[R] length of each prompt."""
    known_tokens: IntArray
    """[R] prompt and output tokens known before this step sampled anything (drafts not counted)."""
    slots: IntArray
    """[T] KV slot of every row."""
    history: Mapping[int, IntArray]
    """For requests (by row index) that complete their prompt in this step and had some of it computed
    before, from the prefix cache or in earlier chunks: KV slots of positions 0 .. first_position - 1."""
    adapters: tuple[str | None, ...] | None = None
    """[R] the LoRA adapter each request runs with as ``ID:FOLDER``, None for the base model.

    None as a whole: the engine has no adapters."""
    decodes: bool = False
    """Every request has one row, and all of them have had output before."""

    @property
    def rows(self) -> int:
        """T, the number of real rows."""
        return len(self.slots)


@dataclass(frozen=True, slots=True)
class StepRows:
    """The rows of a step before its forward pass: ``R`` requests in row order."""

    request_ids: Sequence[str]
    """[R]"""
    query_start_loc: IntArray
    """[R + 1]"""
    first_position: IntArray
    """[R]"""
    prompt_tokens: IntArray
    """[R]"""

    @property
    def rows(self) -> int:
        """T, the number of real rows."""
        return int(self.query_start_loc[-1])


@dataclass(frozen=True, slots=True)
class Stop:
    """A probe ends a sequence."""

    row: int
    """Of the request in its step."""
    probe: str
    position: int
    """Of the token whose score crossed."""


class StepScores(NamedTuple):
    """Token states that became due in one step, for the requests that emit output in it."""

    counts: IntArray
    """[R] tokens delivered for each request of the step, in row order (0: nothing due)."""
    starts: IntArray
    """[R] position of the first delivered token of each request."""
    states: FloatArray
    """[sum(counts), K] the K state columns of every delivered token; see ``monitor.unscored`` for NaN. Where ``raw``,
    the taps' projections ``[L, sum(counts), C]``."""
    host_seconds: tuple[float, ...]
    """Host time that the monitor added to each step; empty where another message of the step tells it."""
    errors: int = 0
    """Errors inside the monitor since the last step that was delivered."""
    epoch: int = 0
    """Of the ``ProbeBank`` that laid out the states."""
    stops: tuple[Stop, ...] = ()
    """What the scheduler is to end; it travels no further."""
    gated: tuple[tuple[int, int, int], ...] = ()
    """(row of the request, position of its first token that may be steered, KV block of that token or -1 where it comes
    later) of gates that opened; as ``stops``."""
    steered: Mapping[str, int] = {}
    """Rows that each vector has touched since the last step that was delivered."""
    raw: bool = False
    """``ProbeBank.made`` makes the states."""

    def with_errors(self, errors: int) -> StepScores:
        """The same scores, telling of ``errors``."""
        return self._replace(errors=errors)


class ProbeVerdict(NamedTuple):
    """What one probe says about one finished sequence."""

    score: float | None
    threshold: float
    flagged: bool
    unscored: bool
    """Some token inside the mask has no score, or no token was inside the mask at all."""
    peak_token: int | None
    """Position of the highest token score inside the mask."""
    tokens_scored: int
    """Scored tokens inside the mask."""
