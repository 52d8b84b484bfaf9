"""A transcript that went through an engine as one prompt, judged as the server would have judged it live."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from monitor.records import Record
from monitor.verdict import judge, of_sequence


def as_live(record: Record, prompt_tokens: int, actions: Mapping[str, str]) -> Record:
    """The record that the same tokens would have left, had the answer been generated.

    ``prompt_tokens``: where the answer begins. ``actions``: of each probe by name, what it would do on a server. The
    token that the engine had to sample is no part of the transcript.
    """
    verdicts = {
        seat.probe.manifest.name: judge(seat.probe, record.states[:, seat.states], prompt_tokens)
        for seat in record.bank.seats
    }
    return replace(
        record,
        prompt_tokens=prompt_tokens,
        token_ids=None if record.token_ids is None else record.token_ids[: len(record.states)],
        verdicts=verdicts,
        verdict=of_sequence(verdicts, actions),
    )
