"""What is remembered of a judged sequence, and how it is shown (JSON of the contract)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from monitor.bank import ProbeBank
from monitor.events import FloatArray, ProbeVerdict
from monitor.unscored import Reason, marked, reasons
from monitor.verdict import worst
from probes.masks import mask

TokenText = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Record:
    """One finished sequence. ``T`` tokens were fed; the last sampled token was not."""

    response_id: str
    group: str | None
    """See ``monitor.response_ids``."""
    choice: int
    model: str
    finished_at: float
    """Unix time, seconds."""
    finish_reason: str
    verdict: str
    verdicts: Mapping[str, ProbeVerdict]
    bank: ProbeBank
    """The probes in force when the sequence was judged."""
    prompt_tokens: int
    token_ids: npt.NDArray[np.int32] | None
    """[T + 1 or more] prompt and output ids, the unfed last one included; None for a prompt of embeddings."""
    states: FloatArray
    """[T, K]"""
    traceparent: str | None = None
    """W3C trace context of the client's request, where vLLM traces requests."""

    @property
    def coverage(self) -> dict[str, float | None]:
        """Share of fed tokens that every probe scored, by phase; None where nothing was fed."""
        scored = np.asarray(np.isfinite(self.states[:, self.bank.state_places]).all(axis=1))
        prompt, generated = scored[: self.prompt_tokens], scored[self.prompt_tokens :]
        return {
            "prompt": float(prompt.mean()) if len(prompt) else None,
            "generated": float(generated.mean()) if len(generated) else None,
        }


class Brief(NamedTuple):
    """What a client is told of a sequence, without the scores of its tokens: it may be kept for long."""

    choice: int
    verdict: str
    verdicts: Mapping[str, ProbeVerdict]
    coverage: dict[str, float | None]

    @classmethod
    def of(cls, record: Record) -> Brief:
        """Of a record."""
        return cls(record.choice, record.verdict, record.verdicts, record.coverage)


def summary(record: Record | Brief) -> dict[str, Any]:
    """Verdict, scores and coverage of one sequence (the ``probewatch`` object of a reply)."""
    return {
        "verdict": record.verdict,
        "probes": {
            name: {
                "score": _number(verdict.score),
                "threshold": _number(verdict.threshold),
                "flagged": verdict.flagged,
                "peak_token": verdict.peak_token,
                "tokens_scored": verdict.tokens_scored,
            }
            for name, verdict in record.verdicts.items()
        },
        "coverage": record.coverage,
    }


def headline(record: Record) -> dict[str, Any]:
    """A line of the live view: no text, no token."""
    flagged = [
        name for name, v in record.verdicts.items() if v.flagged and record.bank.actions[name] != "observe"
    ]
    return {
        "id": record.response_id,
        "choice": record.choice,
        "model": record.model,
        "finished_at": record.finished_at,
        "finish_reason": record.finish_reason,
        "prompt_tokens": record.prompt_tokens,
        "fed_tokens": len(record.states),
        "flagged_by": flagged,
        "statistics": _statistics(record),
        **summary(record),
    }


def _statistics(record: Record) -> dict[str, str]:
    """Digest of what each probe was when it judged, by name: another probe may have the name since."""
    return {seat.probe.manifest.name: seat.probe.statistic_digest for seat in record.bank.seats}


def detail(record: Record, text_of: TokenText) -> dict[str, Any]:
    """Everything about one sequence, with an entry for every position that vLLM accepted."""
    if record.token_ids is None:
        ids: list[int | None] = [None] * (len(record.states) + 1)
    else:
        ids = record.token_ids.tolist()
    texts = [None if token is None else text_of(token) for token in ids]
    shown = summary(record)
    for name, tokens in probe_tokens(record).items():
        shown["probes"][name]["tokens"] = list(show_tokens(tokens, record.prompt_tokens, ids, texts))
    return {
        "id": record.response_id,
        "model": record.model,
        "choice": record.choice,
        "finished_at": record.finished_at,
        "finish_reason": record.finish_reason,
        "statistics": _statistics(record),
        **shown,
    }


def of_response(records: list[Record], text_of: TokenText) -> dict[str, Any]:
    """A whole response in detail; with several sequences the top level is the worst and ``choices`` lists them."""
    return with_choices([detail(one, text_of) for one in records], [one.choice for one in records])


def reply(records: Sequence[Record | Brief]) -> dict[str, Any]:
    """A whole response as a client sees it: ``summary``, with ``choices`` where there are several sequences."""
    return with_choices([summary(record) for record in records], [record.choice for record in records])


_OF_A_CHOICE = ("verdict", "finish_reason", "probes", "coverage")


def with_choices(shown: list[dict[str, Any]], choices: list[int]) -> dict[str, Any]:
    """The sequences of one response as one object: the worst on top, beside it ``choices`` where there are several."""
    if len(shown) == 1:
        return shown[0]
    severest = worst([one["verdict"] for one in shown])
    top = next(one for one in shown if one["verdict"] == severest)
    listed = [
        {"index": choice, **{key: one[key] for key in _OF_A_CHOICE if key in one}}
        for choice, one in zip(choices, shown, strict=True)
    ]
    return {**top, "choices": listed}


@dataclass(frozen=True, slots=True)
class ProbeTokens:
    """What one probe says about the fed tokens of a sequence."""

    scores: FloatArray
    """[T] NaN where there is none, and the NaN says why (``monitor.unscored``)"""
    inside: npt.NDArray[np.bool_]
    """[T] whether the token counts for the aggregation"""


def probe_tokens(record: Record) -> dict[str, ProbeTokens]:
    """By name, in the order of ``summary``."""
    found = {}
    for seat in record.bank.seats:
        states, manifest = record.states[:, seat.states], seat.probe.manifest
        scores = seat.probe.token_scores(torch.from_numpy(np.array(states))).numpy().astype(np.float32)
        inside = mask(np.arange(len(states)), record.prompt_tokens, manifest.token_mask)
        found[manifest.name] = ProbeTokens(marked(scores, reasons(states).max(axis=1, initial=-1)), inside)
    return found


def show_tokens(
    tokens: ProbeTokens, prompt_tokens: int, ids: Sequence[int | None], texts: Sequence[str | None]
) -> Iterator[dict[str, Any]]:
    """An entry for each of ``ids`` and ``texts``, the unfed ones at the end included."""
    why = reasons(tokens.scores)
    for position, (token_id, text) in enumerate(zip(ids, texts, strict=True)):
        fed = position < len(why)
        reason = "not_fed" if not fed else Reason(int(why[position])).label if why[position] >= 0 else None
        yield {
            "position": position,
            "token_id": token_id,
            "token": text,
            "phase": "prompt" if position < prompt_tokens else "generation",
            "score": float(tokens.scores[position]) if reason is None else None,
            "reason": reason,
            "masked": not bool(tokens.inside[position]) if fed else True,
        }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


KEPT_ALWAYS = 1024
"""Responses that stay whatever they weigh (the contract)."""
CHOICES_AT_MOST = 1024
"""Sequences of one response; ids can be chosen by clients, so what seems to be one response has a bound."""


class RecentRecords:
    """The last ``limit`` responses within ``limit_mib``; the oldest is dropped whole.

    A response id may come from the client (``X-Request-Id``), so it may come again: then the earlier answer is kept
    beside the later one, for nobody shall erase a flag by asking something harmless under the same id.
    """

    def __init__(self, limit: int, limit_mib: int = 512) -> None:
        self._limit = limit
        self._limit_bytes = limit_mib * 2**20
        self._bytes = 0
        self._responses: OrderedDict[int, dict[int, Record]] = OrderedDict()
        self._serials: dict[str, list[int]] = {}
        self._next = 0

    def add(self, record: Record) -> None:
        """Remembers a sequence; the sequences of one response are kept together, by choice."""
        choices = self._response_of(record)
        if record.choice in choices:
            self._bytes -= weight(choices[record.choice])
        choices[record.choice] = record
        self._bytes += weight(record)
        while len(self._responses) > self._limit or (
            self._bytes > self._limit_bytes and len(self._responses) > KEPT_ALWAYS
        ):
            self._drop_oldest()

    def _response_of(self, record: Record) -> dict[int, Record]:
        serials = self._serials.setdefault(record.response_id, [])
        for serial in serials:
            choices = self._responses[serial]
            same = next(iter(choices.values())).group == record.group
            fits = len(choices) < CHOICES_AT_MOST
            if same and (record.group is not None or (record.choice not in choices and fits)):
                self._responses.move_to_end(serial)
                return choices
        serials.append(self._next)
        self._responses[self._next] = {}
        self._next += 1
        return self._responses[serials[-1]]

    def _drop_oldest(self) -> None:
        serial, choices = self._responses.popitem(last=False)
        self._bytes -= sum(map(weight, choices.values()))
        response_id = next(iter(choices.values())).response_id
        self._serials[response_id].remove(serial)
        if not self._serials[response_id]:
            del self._serials[response_id]

    def of(self, response_id: str) -> list[Record]:
        """The sequences of the latest response of that id, by choice; empty if unknown or forgotten."""
        serials = self._serials.get(response_id)
        return self._by_choice(serials[-1]) if serials else []

    def worst_of(self, response_id: str) -> list[Record]:
        """As ``of``; where the id came several times, the response with the worst verdict, the latest of those."""
        found = [self._by_choice(serial) for serial in reversed(self._serials.get(response_id, []))]
        severest = worst([record.verdict for records in found for record in records])
        return next((records for records in found if severest in [r.verdict for r in records]), [])

    def newest(self, limit: int) -> list[Record]:
        """At most ``limit`` sequences, newest first."""
        found: list[Record] = []
        for serial in reversed(self._responses):
            found.extend(self._by_choice(serial))
            if len(found) >= limit:
                break
        return found[:limit]

    def _by_choice(self, serial: int) -> list[Record]:
        return [record for _, record in sorted(self._responses[serial].items())]

    def __len__(self) -> int:
        return len(self._responses)


def weight(record: Record) -> int:
    """About how many bytes a record takes in memory."""
    ids = 0 if record.token_ids is None else record.token_ids.nbytes
    return record.states.nbytes + ids + 2048  # objects and strings around them, roughly
