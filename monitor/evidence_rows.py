"""From a judged sequence to what goes to disk, and back to what ``/requests/{id}`` shows.

Token ids are text to whoever has the tokenizer. So unless the operator asked for text, neither leaves memory: what is
stored of them is a keyed hash, by which equal prompts and equal answers can be recognised.
"""

from __future__ import annotations

import hmac
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from monitor.alerts import alert_of
from monitor.records import (
    CHOICES_AT_MOST,
    ProbeTokens,
    Record,
    TokenText,
    headline,
    probe_tokens,
    show_tokens,
    with_choices,
)
from monitor.verdict import FLAGGED, worst

_FAST = 1
"""Level of zlib: scores hardly compress further."""


@dataclass(frozen=True)
class Text:
    """How ids become text, where text may be stored."""

    decode: Callable[[list[int]], str]
    token_text: TokenText


class Row(NamedTuple):
    """One sequence as it is stored; the names are those of the columns."""

    response_id: str
    response_group: str | None
    choice: int
    finished_at: float
    verdict: str
    flagged: int
    summary: str
    """JSON of ``records.headline``."""
    alert: str | None
    """JSON of ``alerts.alert_of``."""
    prompt_hash: str | None
    answer_hash: str | None
    positions: int
    """Accepted tokens, the unfed last one included."""
    scores: bytes | None
    """Flagged only: see ``pack_tokens``."""
    prompt_text: str | None
    answer_text: str | None
    tokens: bytes | None
    """zlib of the JSON ``[[token id, ...], [its text, ...]]``; only where text may be stored."""


def make_row(record: Record, key: bytes, text: Text | None) -> Row:
    """``text``: None unless text may be stored. Raises ``ValueError`` for an id that no file can hold."""
    record.response_id.encode()  # a lone surrogate would fail the whole batch later
    alert = alert_of(record)
    ids = record.token_ids
    prompt, answer = (
        (None, None) if ids is None else (ids[: record.prompt_tokens], ids[record.prompt_tokens :])
    )
    kept = text if ids is not None else None
    return Row(
        response_id=record.response_id,
        response_group=record.group,
        choice=record.choice,
        finished_at=record.finished_at,
        verdict=record.verdict,
        flagged=int(record.verdict == FLAGGED),
        summary=json.dumps(headline(record)),
        alert=None if alert is None else json.dumps(alert),
        prompt_hash=None if prompt is None else keyed_hash(key, prompt),
        answer_hash=None if answer is None else keyed_hash(key, answer),
        positions=len(record.states) + 1 if ids is None else len(ids),
        scores=None if alert is None else pack_tokens(probe_tokens(record).values()),
        prompt_text=None if kept is None or prompt is None else kept.decode(prompt.tolist()),
        answer_text=None if kept is None or answer is None else kept.decode(answer.tolist()),
        tokens=None if kept is None or ids is None else _pack_text(ids.tolist(), kept),
    )


def keyed_hash(key: bytes, ids: npt.NDArray[np.int32]) -> str:
    """HMAC-SHA256 of the ids as little-endian int32, in hexadecimal."""
    return hmac.new(key, ids.astype("<i4").tobytes(), "sha256").hexdigest()


def pack_tokens(tokens: Iterable[ProbeTokens]) -> bytes:
    """zlib of, for each probe: ``T`` little-endian float32 scores (a NaN says why), then the mask in ``T`` bits."""
    parts = [part.scores.astype("<f4").tobytes() + np.packbits(part.inside).tobytes() for part in tokens]
    return zlib.compress(b"".join(parts), _FAST)


def unpack_tokens(packed: bytes, count: int) -> list[ProbeTokens]:
    """What ``pack_tokens`` packed, ``count`` tokens for each probe. Raises ``ValueError`` or ``zlib.error``."""
    data = zlib.decompress(packed)
    size = 4 * count + (count + 7) // 8
    found = []
    for start in range(0, len(data), size):
        scores = np.frombuffer(data, "<f4", count, start)
        bits = np.frombuffer(data, np.uint8, size - 4 * count, start + 4 * count)
        inside = np.unpackbits(bits, count=count).astype(np.bool_)
        found.append(ProbeTokens(scores.astype(np.float32), inside))
    return found


def _pack_text(ids: list[int], text: Text) -> bytes:
    return zlib.compress(json.dumps([ids, [text.token_text(token) for token in ids]]).encode(), _FAST)


_SHOWN = (
    "id",
    "model",
    "choice",
    "finished_at",
    "finish_reason",
    "statistics",
    "verdict",
    "probes",
    "coverage",
)
"""The keys of ``records.detail``."""


def show(row: Row) -> dict[str, Any]:
    """One stored sequence as ``records.detail`` shows it; no tokens unless it was flagged."""
    told = json.loads(row.summary)
    nothing: list[Any] = [None] * row.positions
    ids, texts = json.loads(zlib.decompress(row.tokens)) if row.tokens is not None else (nothing, nothing)
    stored = unpack_tokens(row.scores, told["fed_tokens"]) if row.scores is not None else []
    for probe in told["probes"].values():
        probe["tokens"] = []
    for probe, tokens in zip(told["probes"].values(), stored, strict=False):
        probe["tokens"] = list(show_tokens(tokens, told["prompt_tokens"], ids, texts))
    return {key: told[key] for key in _SHOWN if key in told}  # old rows lack the statistics


def show_response(rows: Sequence[Row]) -> dict[str, Any]:
    """A whole stored response as ``records.of_response`` shows it."""
    return with_choices([show(row) for row in rows], [row.choice for row in rows])


class Line(NamedTuple):
    """As much of a row as tells which response it belongs to."""

    serial: int
    response_group: str | None
    choice: int
    verdict: str


def worst_response(oldest_first: Iterable[Line]) -> list[Line]:
    """Of the responses that came under one id, the worst, and the latest of those; by choice.

    The rule of ``RecentRecords``: an id may come again, and the later answer shall not hide the earlier one.
    """
    responses: list[dict[int, Line]] = []
    for line in oldest_first:
        home = next((found for found in responses if _belongs(line, found)), None)
        if home is None:
            home = {}
            responses.append(home)
        home[line.choice] = line
    verdicts = [worst([line.verdict for line in found.values()]) for found in responses]
    severest = worst(verdicts)
    chosen = [found for found, verdict in zip(responses, verdicts, strict=True) if verdict == severest]
    return [line for _, line in sorted(chosen[-1].items())] if chosen else []


def _belongs(line: Line, response: dict[int, Line]) -> bool:
    if next(iter(response.values())).response_group != line.response_group:
        return False
    return line.response_group is not None or (
        line.choice not in response and len(response) < CHOICES_AT_MOST
    )
