"""Benign traffic as the deployed statistic sees it, and what a threshold would do to it.

A live alert or stop looks at the running value after every token, so one conversation has as many chances to
cross as it has tokens. The running supremum counts all of them: a sequence is flagged at the end if and only
if its stream crossed somewhere on the way, and `crossed_after` says where.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probes.calibration import chance_of, thresholds_at, true_rate
from probes.errors import CalibrationError, SplitLeak
from probes.hf import Activations
from probes.manifest import Calibration
from probes.probe import Probe
from probes.recorded import Recording
from probes.strata import DOUBT, Strata, Stratum

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
    strata: tuple[str, ...] | None = None
    """None where the rate is to hold in the whole alone."""

    def part(self, kept: NDArray[np.intp]) -> "Benign":
        """Those conversations alone."""
        tracks = None if self.tracks is None else tuple(self.tracks[i] for i in kept)
        groups = tuple(self.groups[i] for i in kept)
        strata = None if self.strata is None else tuple(self.strata[i] for i in kept)
        return Benign(self.name, self.scores[kept], self.tokens[kept], groups, self.digest, tracks, strata)


def of_activations(
    probe: Probe,
    name: str,
    found: Iterable[Activations],
    groups: Sequence[str],
    digest: str,
    strata: tuple[str, ...] | None = None,
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
    return Benign(name, scores, tokens, tuple(groups), digest, tuple(tracks), strata)


def of_recording(name: str, recording: Recording, strata: tuple[str, ...] | None = None) -> Benign:
    """What a running server told. The sequences of one response are a group."""
    rows = recording.sequences
    return Benign(
        name,
        np.array([row.score for row in rows]),
        np.array([row.tokens for row in rows], np.int64),
        tuple(f"id:{row.id}" for row in rows),
        recording.digest,
        strata=strata,
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
    """One set as two, each group whole in one of them; groups with the same strata are dealt alike."""
    mixes: dict[str, set[str]] = {group: set() for group in sorted(set(whole.groups))}
    strata = whole.strata or ("",) * len(whole.groups)
    for group, stratum in zip(whole.groups, strata, strict=True):
        mixes[group].add(stratum)
    names = list(mixes)
    drawn = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    chosen = set(sorted(drawn, key=lambda group: sorted(mixes[group]))[::2])
    first = np.array([group in chosen for group in whole.groups])
    return whole.part(np.flatnonzero(first)), whole.part(np.flatnonzero(~first))


def by_stratum(field: str, first: Benign, second: Benign, fpr: float) -> Strata:
    """Both sets by stratum, at the threshold of the hardest."""
    before, after = first.strata or (), second.strata or ()
    own = thresholds_at(first.scores, before, fpr)
    deployed = max(own.values())
    flagged = Counter(name for score, name in zip(second.scores, after, strict=True) if score > deployed)
    in_first, in_second = Counter(before), Counter(after)
    ordered = [*own, *sorted(set(after) - set(own))]
    parts = [Stratum(name, in_first[name], own.get(name), in_second[name], flagged[name]) for name in ordered]
    return Strata(field, fpr, parts)


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
    strata: Strata | None = None

    @cached_property
    def true_rate(self) -> tuple[float, float]:
        """95% interval of the true rate, from the size of the first set alone. Of the hardest stratum only its upper
        end holds: a threshold that was taken for being the highest may be higher than its own.
        """
        return true_rate(self.calibration.n, self.calibration.nominal_fpr)

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
        found: dict[str, JsonValue] = {}
        if self.strata is None:
            found["true rate by the size of the first set (95%)"] = [round(low, 5), round(high, 5)]
        else:
            found["true rate in the hardest stratum by its size, at most (97.5%)"] = round(high, 5)
        found["in-mask tokens: median"] = float(np.median(both))
        found["in-mask tokens: longest"] = int(both.max())
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
        between = f"lies between {low:.2%} and {high:.2%} (95%"
        if self.strata is not None:
            between = f"in {self.strata.hardest.name!r} is at most {high:.2%} (97.5%"
        told = [] if self.strata is None else self.strata.lines()
        told.append(
            f"The true rate of this threshold {between}, by the size of the first set, whatever the scores' "
            "distribution)."
        )
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
        return [*told, *self._warnings()]

    def _warnings(self) -> list[str]:
        if self.strata is not None:
            return self.strata.warnings()
        c, n = self.calibration, len(self.second.scores)
        if chance_of(c.realised_false_positives or 0, n, c.n, c.nominal_fpr) >= DOUBT:
            return []
        return [
            f"warning: the second set is flagged more often than {c.nominal_fpr:g} by more than chance; the two sets "
            "are not of one kind"
        ]
