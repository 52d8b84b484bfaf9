"""Benign traffic as the deployed statistic sees it, and what a threshold would do to it.

A live alert or stop looks at the running value after every token, so one conversation has as many chances to
cross as it has tokens. The running supremum counts all of them: a sequence is flagged at the end if and only
if its stream crossed somewhere on the way, and `crossed_after` says where.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probes.calibration import true_rate
from probes.errors import CalibrationError, SplitLeak
from probes.hf import Activations
from probes.manifest import Calibration
from probes.probe import Probe
from probes.recorded import Recording

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Track:
    """The in-mask tokens of one conversation: all that aggregation needs."""

    states: Floats
    """[n, K]"""
    said: NDArray[np.int64]
    """[n] answer tokens fed by then; 0 at the prompt's last token or before."""


@dataclass(frozen=True)
class Benign:
    """One benign set. All sequences alike: one entry a conversation."""

    name: str
    scores: Floats
    """[n] deployed statistics"""
    tokens: NDArray[np.int64]
    """[n] in-mask tokens"""
    groups: tuple[str, ...]
    digest: str
    tracks: tuple[Track, ...] | None = None
    """None for recorded scores: where they crossed is not known."""

    def part(self, kept: NDArray[np.intp]) -> "Benign":
        """Those conversations alone."""
        tracks = None if self.tracks is None else tuple(self.tracks[i] for i in kept)
        groups = tuple(self.groups[i] for i in kept)
        return Benign(self.name, self.scores[kept], self.tokens[kept], groups, self.digest, tracks)


def of_activations(
    probe: Probe, name: str, found: Iterable[Activations], groups: Sequence[str], digest: str
) -> Benign:
    """Score conversations one at a time; only their states stay in memory. Raises `CalibrationError` for NaN
    and for a conversation without any token in the mask.
    """
    rule, tracks = probe.manifest, []
    for a in found:
        inside = a.mask(rule.token_mask)
        states = probe.token_state(a.at(rule.layers)).double().numpy()[inside]
        tracks.append(Track(states, np.maximum(0, a.positions[inside] - a.prompt_length + 1)))
    empty = sum(not len(track.states) for track in tracks)
    broken = sum(not np.isfinite(track.states).all() for track in tracks)
    if empty or broken:
        raise CalibrationError(
            f"{name}: {empty} conversations without a token in the mask of {rule.name!r}, {broken} with NaN or "
            "infinite scores; leave them out or mend them"
        )
    scores = np.array([probe.statistic(track.states) for track in tracks])
    tokens = np.array([len(track.states) for track in tracks], np.int64)
    return Benign(name, scores, tokens, tuple(groups), digest, tuple(tracks))


def of_recording(name: str, recording: Recording) -> Benign:
    """What a running server told. The sequences of one response are a group."""
    rows = recording.sequences
    return Benign(
        name,
        np.array([row.score for row in rows]),
        np.array([row.tokens for row in rows], np.int64),
        tuple(f"id:{row.id}" for row in rows),
        recording.digest,
    )


def check_apart(first: Benign, second: Benign) -> None:
    """Raise `SplitLeak` if a group is in both sets."""
    shared = sorted(set(first.groups) & set(second.groups))
    if shared:
        raise SplitLeak(
            f"group {shared[0]!r} and {len(shared) - 1} more are in {first.name} and in {second.name}; "
            "give sets that share no group"
        )


def halves(whole: Benign, seed: int) -> tuple[Benign, Benign]:
    """One set as two, each group whole in one of them."""
    names = sorted(set(whole.groups))
    chosen = set(np.random.default_rng(seed).permutation(names)[: (len(names) + 1) // 2].tolist())
    first = np.array([group in chosen for group in whole.groups])
    return whole.part(np.flatnonzero(first)), whole.part(np.flatnonzero(~first))


def crossed_after(probe: Probe, track: Track) -> int | None:
    """Answer tokens fed when a live alert would have latched or stopped; None if it never would.

    The tokens are fed one by one, as a server sees them.
    """
    stream = probe.stream()
    for row, said in zip(track.states, track.said, strict=True):
        stream.update(row[None])
        if probe.crossed(stream.live):
            return int(said)
    return None


@dataclass(frozen=True)
class Outlook:
    """What a calibrated probe will do to benign traffic."""

    calibration: Calibration
    first: Benign
    second: Benign
    stops: Sequence[int] | None
    """Answer tokens before each crossing on the second set; None where only scores were recorded."""
    requests_per_day: float | None = None

    @cached_property
    def true_rate(self) -> tuple[float, float]:
        """95% interval of the true rate, from the size of the first set alone."""
        return true_rate(len(self.first.scores), self.calibration.nominal_fpr)

    @property
    def flags_per_day(self) -> tuple[float, float, float] | None:
        """(expected, low, high) at the user's rate, from the second set and its interval."""
        c, rate = self.calibration, self.requests_per_day
        if rate is None or c.realised_fpr is None or c.realised_ci is None:
            return None
        return rate * c.realised_fpr, rate * c.realised_ci[0], rate * c.realised_ci[1]

    def figures(self) -> dict[str, JsonValue]:
        """For `manifest.metrics["benign_traffic"]`."""
        low, high = self.true_rate
        both = np.concatenate([self.first.tokens, self.second.tokens])
        found: dict[str, JsonValue] = {
            "true rate by the size of the first set (95%)": [round(low, 5), round(high, 5)],
            "in-mask tokens: median": float(np.median(both)),
            "in-mask tokens: longest": int(both.max()),
        }
        if self.stops:
            found["answer tokens before a benign stop (median)"] = float(np.median(self.stops))
        if self.flags_per_day is not None:
            expected, least, most = (round(x, 1) for x in self.flags_per_day)
            found["requests a day"] = self.requests_per_day
            found["false flags a day (expected)"] = expected
            found["false flags a day (95%)"] = [least, most]
        return found

    def lines(self) -> list[str]:
        """The same for people."""
        low, high = self.true_rate
        told = [
            f"The true rate of this threshold lies between {low:.2%} and {high:.2%} (95%, by the size of the "
            "first set, whatever the scores' distribution)."
        ]
        if self.flags_per_day is not None:
            expected, least, most = self.flags_per_day
            told.append(
                f"At {self.requests_per_day:,.0f} requests a day: about {expected:,.1f} false flags a day "
                f"({least:,.1f} to {most:,.1f})."
            )
        if self.stops:
            told.append(
                f"Stopped at once, those would be cut after {np.median(self.stops):g} answer tokens (median)."
            )
        longest = max(int(self.first.tokens.max()), int(self.second.tokens.max()))
        told.append(
            f"Longest conversation: {longest} in-mask tokens; a longer one has more chances to cross than this rate "
            "counts."
        )
        return told
