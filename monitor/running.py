"""The deployed statistic of many sequences at once, while their tokens arrive.

The same values as ``probes.aggregation.Stream`` (held equal by a test), vectorised over sequences, and with the
question that a gate asks: above which score would the next token make the statistic cross?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from monitor.errors import AttachError
from monitor.events import IntArray
from probes import Probe
from probes.probe import Stream

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Form:
    """A running value ``u`` of ``n`` tokens, 0 before the first. All take the method's parameter last."""

    add: Callable[[Floats, Floats, Floats, float], Floats]
    """(u, n, score) -> u, for many sequences"""
    run: Callable[[float, float, Floats, float], Floats]
    """(u, n, scores) -> u after each of them, for one sequence"""
    level: Callable[[Floats, Floats, float, float], Floats]
    """(u, n, threshold) -> the score that would bring u there, for many sequences"""


def _ema_run(u: float, n: float, scores: Floats, alpha: float) -> Floats:
    seeded = [u, *scores.tolist()] if n else scores.tolist()
    found = list(accumulate(seeded, lambda mean, score: mean + alpha * (score - mean)))
    return np.array(found[len(seeded) - len(scores) :])


def _cusum_run(u: float, n: float, scores: Floats, reference: float) -> Floats:
    steps = accumulate((scores - reference).tolist(), lambda s, step: max(0.0, s + step), initial=u)
    return np.array(list(steps)[1:])


# The first token of an average starts it, as in `probes.aggregation`.
_FORMS = {
    "mean": _Form(
        lambda u, n, x, _: u + (x - u) / (n + 1),
        lambda u, n, x, _: (u * n + np.cumsum(x)) / (n + np.arange(1, len(x) + 1)),
        lambda u, n, t, _: t + n * (t - u),
    ),
    "ema": _Form(
        lambda u, n, x, a: np.where(n == 0, x, u + a * (x - u)),
        _ema_run,
        lambda u, n, t, a: np.where(n == 0, t, u + (t - u) / a),
    ),
    "max": _Form(
        lambda u, n, x, _: np.where(n == 0, x, np.maximum(u, x)),
        lambda u, n, x, _: np.maximum.accumulate(x if n == 0 else np.maximum(x, u)),
        lambda u, n, t, _: np.full_like(u, t),
    ),
    "cusum": _Form(
        lambda u, n, x, k: np.maximum(0.0, u + x - k),
        _cusum_run,
        lambda u, n, t, k: t - u + k if t >= 0 else np.full_like(u, -np.inf),
    ),
    "last": _Form(lambda u, n, x, _: x, lambda u, n, x, _: x, lambda u, n, t, _: np.full_like(u, t)),
}


class RunningStatistics:
    """One probe's statistic for sequences that are told apart by a slot; of a method in ``_FORMS``."""

    def __init__(self, probe: Probe) -> None:
        """Raises ``AttachError`` for a probe whose statistic cannot be followed while a sequence runs."""
        rule = probe.manifest.aggregation
        self.threshold = threshold_of(probe)
        self._form = _FORMS[rule.method]
        self._parameter = (rule.reference or 0.0) if rule.method == "cusum" else (rule.alpha or 1.0)
        self._min_tokens = rule.min_tokens
        self._value = np.zeros(0)
        self._count = np.zeros(0)

    def begin(self, slots: IntArray) -> None:
        """New sequences in these slots."""
        if len(slots) and int(slots.max()) >= len(self._value):
            more = max(int(slots.max()) + 1, 2 * len(self._value)) - len(self._value)
            self._value = np.concatenate([self._value, np.zeros(more)])
            self._count = np.concatenate([self._count, np.zeros(more)])
        self._value[slots] = self._count[slots] = 0.0

    def add(self, slots: IntArray, scores: Floats) -> Bools:
        """The next in-mask score of each of these sequences, all different ones; which of them are above now."""
        value, count = self._value[slots], self._count[slots]
        value = self._form.add(value, count, scores, self._parameter)
        self._value[slots], self._count[slots] = value, count + 1
        above: Bools = (count + 1 >= self._min_tokens) & (value > self.threshold)
        return above

    def add_many(self, slot: int, scores: Floats) -> int | None:
        """The next in-mask scores of one sequence, one at least; index of the first that brings it above."""
        value, count = float(self._value[slot]), float(self._count[slot])
        values = self._form.run(value, count, scores, self._parameter)
        self._value[slot], self._count[slot] = values[-1], count + len(scores)
        counts = count + np.arange(1, len(scores) + 1)
        above = np.flatnonzero((counts >= self._min_tokens) & (values > self.threshold))
        return int(above[0]) if len(above) else None

    def levels(self, slots: IntArray) -> Floats:
        """The score that the next in-mask token of each sequence must exceed to bring the statistic above."""
        value, count = self._value[slots], self._count[slots]
        level = self._form.level(value, count, self.threshold, self._parameter)
        return np.where(count + 1 >= self._min_tokens, level, np.inf)


class StreamedStatistics:
    """The same of any other method and any number of state numbers, by a stream of the probe library a sequence.

    Some microseconds a token and sequence; no level can be named for a gate.
    """

    def __init__(self, probe: Probe) -> None:
        """Raises ``AttachError`` for a probe whose statistic cannot be followed while a sequence runs."""
        self.threshold = threshold_of(probe)
        self._probe = probe
        self._streams: dict[int, Stream] = {}

    def begin(self, slots: IntArray) -> None:
        """New sequences in these slots."""
        self._streams.update((slot, self._probe.stream()) for slot in slots.tolist())

    def add(self, slots: IntArray, states: Floats) -> Bools:
        """The next in-mask states, ``[n]`` or ``[n, K]``, of these sequences, all different; which are above now."""
        pairs = zip(slots.tolist(), range(len(slots)), strict=True)
        return np.array([self._crosses(self._streams[slot], states[i : i + 1]) for slot, i in pairs], bool)

    def add_many(self, slot: int, states: Floats) -> int | None:
        """The next in-mask states of one sequence; index of the first that brings it above."""
        stream, found = self._streams[slot], None
        for i in range(len(states)):
            if self._crosses(stream, states[i : i + 1]) and found is None:
                found = i
        return found

    def levels(self, slots: IntArray) -> Floats:
        """None that a device could decide by."""
        return np.full(len(slots), np.inf)

    def _crosses(self, stream: Stream, state: Floats) -> bool:
        value = stream.update(state)
        return stream.count >= self._probe.manifest.aggregation.min_tokens and value > self.threshold


def statistics_of(probe: Probe) -> RunningStatistics | StreamedStatistics:
    """What follows a probe. Raises ``AttachError`` where nothing can, or where it is to steer without a level."""
    manifest = probe.manifest
    if manifest.aggregation.method in _FORMS:
        return RunningStatistics(probe)
    if manifest.default_action.startswith("steer:"):
        raise AttachError(
            f"probe {manifest.name!r} aggregates by {manifest.aggregation.method!r}, which names no level to gate by, "
            f"so it cannot steer; use one of {', '.join(_FORMS)}, or the action alert or stop"
        )
    return StreamedStatistics(probe)


def threshold_of(probe: Probe) -> float:
    """Raises ``AttachError`` where there is none, or where it does not hold while a sequence runs."""
    manifest = probe.manifest
    if manifest.threshold is not None and manifest.statistic == "running_sup":
        return manifest.threshold
    why = (
        "has no threshold"
        if manifest.threshold is None
        else f"decides by the statistic {manifest.statistic!r}, which is known only at the end"
    )
    raise AttachError(
        f"probe {manifest.name!r} {why}, so it cannot {manifest.default_action} while a sequence runs; "
        "calibrate it with a running statistic, or use the action alert"
    )
