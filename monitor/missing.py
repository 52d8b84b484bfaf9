"""Tokens without a score: making their rows, and counting them by probe, phase and reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitor.bank import ProbeBank
from monitor.events import FloatArray
from monitor.unscored import Reason, fill, reasons

Lost = dict[str, dict[Reason, int]]
"""How many tokens have no score, by phase and reason."""


def undelivered(fed: int, bank: ProbeBank) -> FloatArray:
    """``[fed, K]`` without a score."""
    rows = np.empty((fed, bank.state_columns), np.float32)
    fill(rows, Reason.NOT_DELIVERED)
    return rows


def missing(
    bank: ProbeBank, blocks: Sequence[tuple[FloatArray, int, object]]
) -> tuple[dict[str, Lost], bool]:
    """What has no score, by probe, phase and reason (empty: all has one), and whether anything has one.

    ``blocks``: rows ``[fed, K]``, how many of them are the prompt's, and whose they are.
    """
    whole = blocks[0][0] if len(blocks) == 1 else np.concatenate([block for block, _, _ in blocks])
    finite = np.isfinite(whole)
    if finite.all():
        return {}, True
    is_prompt = np.concatenate([np.arange(len(block)) < own for block, own, _ in blocks])
    why = reasons(whole)
    lost: dict[str, Lost] = {}
    for seat in bank.seats:
        worst = why[:, seat.states].max(axis=1)
        lost[seat.probe.manifest.name] = {
            phase: {reason: n for reason in Reason if (n := int((worst[rows] == reason).sum()))}
            for phase, rows in (("prompt", is_prompt), ("generation", ~is_prompt))
        }
    # Columns of no seat hold whatever a probe that has gone has left there.
    return lost, any(bool(finite[:, seat.states].any()) for seat in bank.seats)


def all_missing(bank: ProbeBank, prompt: int, generated: int) -> dict[str, Lost]:
    """That no probe of the bank has scored any of so many tokens."""
    found = {"prompt": {Reason.NOT_DELIVERED: prompt}, "generation": {Reason.NOT_DELIVERED: generated}}
    return {seat.probe.manifest.name: found for seat in bank.seats}
