"""``GET /scores``: what a probe's statistic was on recorded traffic, for `probewatch calibrate`.

By permission only: the admin key is needed in any case (``OPEN_EVIDENCE`` does not open it), and the evidence file must
be kept. Scores are an oracle for evading a probe; no text, token or user is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request

from monitor.alert_routes import read_since
from monitor.engines import Engines
from monitor.errors import EvidenceError
from monitor.evidence import EvidenceStore
from monitor.evidence_scores import ScoreQuery


def add_score_routes(
    router: APIRouter,
    guard: Callable[[Request], None],
    engines: Callable[[], Engines],
    evidence: Callable[[], EvidenceStore | None],
) -> None:
    """Adds the route behind ``guard``."""

    @router.get("/scores", dependencies=[Depends(guard)])
    async def scores(probe: str, since: str = "", until: str = "") -> dict[str, Any]:
        first = engines().first
        attached = {seat.probe.manifest.name: seat.probe for seat in first.bank.seats}
        if probe not in attached:
            raise HTTPException(
                404, f"no probe {probe[:64]!r} is attached; attached: {', '.join(attached) or 'none'}"
            )
        store = evidence()
        if store is None:
            raise HTTPException(
                409,
                "no evidence is kept, so no score is recorded; start the server with PROBEWATCH_EVIDENCE_PATH",
            )
        begin, end = read_since(since), read_since(until)
        query = ScoreQuery(
            probe,
            attached[probe].statistic_digest,
            0.0 if begin is None else begin,
            math.inf if end is None else end,
        )
        try:
            found = await store.scores(query)
        except EvidenceError as error:
            raise HTTPException(503, str(error)) from error
        return {
            "probe": probe,
            "statistic_digest": query.statistic_digest,
            "model": first.model_name,
            "sequences": found.sequences,
            "left_out": {
                "other_statistic": found.other_statistic,
                "not_fully_scored": found.not_fully_scored,
            },
        }
