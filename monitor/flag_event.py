"""One event per flagged sequence, as receivers get it: which probe flagged what, by how much, and where to look.

No text and no token id unless the operator opted in (``PROBEWATCH_PUSH_TEXT``): ids are text to whoever has the
tokenizer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import numpy as np

from monitor.alerts import alert_of
from monitor.evidence_rows import Text
from monitor.records import ProbeTokens, Record, probe_tokens
from probes import ProbeManifest

Event = dict[str, Any]

TYPE = "probewatch.flagged"
SCHEMA = 1
TOP_TOKENS = 5
TEXT_CHARACTERS = 20_000
"""Of a prompt, and of an answer, at most."""


@dataclass(frozen=True)
class Origin:
    """The server that events come from."""

    url: str
    """Where people reach it, without a slash at the end."""
    version: str = ""
    vllm_version: str = ""
    revision: str | None = None
    """Of the served model, where it has one."""


def flag_event(record: Record, origin: Origin, engine: str, text: Text | None = None) -> Event:
    """The event of a record that an acting probe flagged. Raises ``ValueError`` for any other.

    ``text``: how ids become text, None unless it may leave the server.
    """
    alert = alert_of(record)
    if alert is None:
        raise ValueError(
            f"the record of {record.response_id!r} is {record.verdict}; only flagged ones are events"
        )
    manifests = {seat.probe.manifest.name: seat.probe.manifest for seat in record.bank.seats}
    tokens = probe_tokens(record)
    told: Event = {
        "type": TYPE,
        "schema": SCHEMA,
        "alert_id": alert_id(record),
        "time": datetime.fromtimestamp(record.finished_at, UTC).isoformat(),
        "request_id": record.response_id,
        "choice": record.choice,
        "traceparent": record.traceparent,
        "model": {"name": record.model, "revision": origin.revision},
        "server": {
            "url": origin.url,
            "engine": engine,
            "version": origin.version,
            "vllm_version": origin.vllm_version,
        },
        **{
            key: alert[key] for key in ("verdict", "finish_reason", "prompt_tokens", "fed_tokens", "coverage")
        },
        "probes": [
            _finding(shown, manifests[shown["name"]], tokens[shown["name"]], record, text)
            for shown in alert["probes"]
        ],
        "links": links(origin, record),
    }
    if text is not None and record.token_ids is not None:
        ids = record.token_ids.tolist()
        parts = {"prompt": ids[: record.prompt_tokens], "answer": ids[record.prompt_tokens :]}
        told["text"] = {name: text.decode(part)[:TEXT_CHARACTERS] for name, part in parts.items()}
    return told


def alert_id(record: Record) -> str:
    """The same for every receiver and attempt; another one where a client's request id comes again."""
    identity = f"{record.response_id}\0{record.choice}\0{record.finished_at!r}"
    return hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:32]


def links(origin: Origin, record: Record) -> dict[str, str]:
    """Where a person, and a program, finds the evidence."""
    request = quote(record.response_id, safe="", errors="replace")
    choice = f"choice={record.choice}"
    return {
        "evidence": f"{origin.url}/probewatch/ui#id={request}&{choice}",
        "request": f"{origin.url}/v1/probewatch/requests/{request}?{choice}",
    }


def _finding(
    shown: dict[str, Any], manifest: ProbeManifest, tokens: ProbeTokens, record: Record, text: Text | None
) -> dict[str, Any]:
    """What one probe found: its identity, how it aggregates, and the tokens that weigh most."""
    usable = tokens.inside & np.isfinite(tokens.scores)
    ranked = np.argsort(np.where(usable, -tokens.scores, np.inf), kind="stable")
    return {
        **shown,
        "version": manifest.version,
        "kind": manifest.kind,
        "concept": manifest.concept,
        "sha256": manifest.tensors_sha256,
        "layers": list(manifest.layers),
        "aggregation": manifest.aggregation.method,
        "statistic": manifest.statistic,
        "nominal_fpr": manifest.nominal_fpr,
        "peak_span": peak_span(tokens.scores, usable, shown["threshold"], shown["peak_token"]),
        "top_tokens": [
            _token(int(position), tokens, record, text)
            for position in ranked[: min(TOP_TOKENS, int(usable.sum()))]
        ],
    }


def peak_span(scores: Any, usable: Any, threshold: float, peak: int | None) -> list[int] | None:
    """[first, last] position of the run of tokens above the threshold that holds the peak; the peak alone where
    it lies below, None without one. ``scores``, ``usable``: [T]"""
    if peak is None:
        return None
    above = usable & (scores > threshold)
    gaps = np.flatnonzero(~above)
    if not above[peak]:
        return [peak, peak]
    before, after = gaps[gaps < peak], gaps[gaps > peak]
    return [int(before[-1]) + 1 if len(before) else 0, int(after[0]) - 1 if len(after) else len(scores) - 1]


def _token(position: int, tokens: ProbeTokens, record: Record, text: Text | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "position": position,
        "phase": "prompt" if position < record.prompt_tokens else "generation",
        "score": float(tokens.scores[position]),
    }
    if text is not None and record.token_ids is not None:
        found["token"] = text.token_text(int(record.token_ids[position]))
    return found
