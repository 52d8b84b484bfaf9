"""What one probe's statistic was on recorded traffic: numbers to calibrate with, and nothing of what was said."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SEQUENCES_AT_MOST = 1_000_000
"""In one answer; who has more asks for a shorter time."""


@dataclass(frozen=True)
class ScoreQuery:
    """Which scores are wanted."""

    probe: str
    statistic_digest: str
    """See ``probes.ProbeManifest.statistic_digest``: the tensors, mask and aggregation that are attached now."""
    since: float = 0.0
    """Unix time, seconds; that moment included."""
    until: float = math.inf
    """That moment excluded."""


@dataclass
class Scores:
    """Sequences that count, and how many do not."""

    sequences: list[dict[str, Any]] = field(default_factory=list)
    """``{"id", "choice", "score", "tokens"}`` each"""
    other_statistic: int = 0
    """Judged without this probe, or by another version of it."""
    not_fully_scored: int = 0
    """Some token has no score: what the statistic would have been is not known."""


def gather(rows: Iterable[tuple[str, int, str]], query: ScoreQuery) -> Scores:
    """rows: response id, choice, and the JSON of ``records.headline``. A choice that comes again counts once."""
    found, seen = Scores(), set[tuple[str, int]]()
    for response_id, choice, summary in rows:
        told = json.loads(summary)
        if told.get("statistics", {}).get(query.probe) != query.statistic_digest:
            found.other_statistic += 1
            continue
        verdict = told["probes"][query.probe]
        whole = all(share is None or share == 1.0 for share in told["coverage"].values())
        if verdict["score"] is None or not whole:
            found.not_fully_scored += 1
        elif (response_id, choice) not in seen and len(found.sequences) < SEQUENCES_AT_MOST:
            seen.add((response_id, choice))
            row = {
                "id": response_id,
                "choice": choice,
                "score": verdict["score"],
                "tokens": verdict["tokens_scored"],
            }
            found.sequences.append(row)
    return found
