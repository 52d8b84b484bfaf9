"""Step scores as plain bytes, for the free-form carrier between engine and API server (never pickle)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from monitor.events import FloatArray, StepScores

CARRIER = "probewatch"
"""The one name under which our data rides on vLLM's objects."""
VERSION = 6
"""Raise it whenever messages, or the layout of states in them, change."""
_ALIKE = ("version", "counts", "shape", "epoch")
"""Parts of a message that are the same in steps which can be joined."""


def pack(step: StepScores, rows: Sequence[int]) -> dict[str, Any]:
    """The share of some requests, given as row indices of the step, in that order.

    Host time and errors of the step are ``without_totals`` in every message of it but the first.
    """
    counts, starts, states = step.counts, step.starts, step.states
    if list(rows) != list(range(len(counts))):
        own = np.array(rows, np.intp)
        if step.raw:
            states = states[:, own]
        else:
            ends = np.cumsum(counts)
            states = np.concatenate([states[ends[r] - counts[r] : ends[r]] for r in own])
        counts, starts = counts[own], starts[own]
    return {
        "version": VERSION,
        "counts": counts.tobytes(),
        "starts": starts.tobytes(),
        "states": states.tobytes(),
        "shape": list(states.shape),
        "host_seconds": list(step.host_seconds),
        "errors": step.errors,
        "epoch": step.epoch,
        "steered": dict(step.steered),
    }


def without_totals(message: dict[str, Any]) -> dict[str, Any]:
    """For the further messages of a step: what belongs to the whole step is counted once."""
    return {**message, "host_seconds": [], "errors": 0, "steered": {}}


def unpack(message: dict[str, Any]) -> StepScores:
    """The inverse of ``pack``. Raises ``ValueError`` on another version or inconsistent lengths."""
    if message["version"] != VERSION:
        raise ValueError(
            f"step scores of version {message['version']}, expected {VERSION}; restart the whole server"
        )
    counts = np.frombuffer(message["counts"], np.int64)
    starts = np.frombuffer(message["starts"], np.int64)
    if len(starts) != len(counts):
        raise ValueError(f"{len(starts)} starts for {len(counts)} counts; the message is damaged")
    raw = _is_raw(message)
    states = _states(message)
    if states.shape[raw] != counts.sum():
        raise ValueError(
            f"scores of {states.shape[raw]} tokens where {counts.sum()} are due; the message is damaged"
        )
    return StepScores(
        counts,
        starts,
        states,
        tuple(map(float, message["host_seconds"])),
        int(message["errors"]),
        int(message["epoch"]),
        steered=message["steered"],
        raw=raw,
    )


def _is_raw(message: dict[str, Any]) -> bool:
    """``[L, R, C]`` instead of ``[T, K]``."""
    return len(message["shape"]) == 3


def _states(message: dict[str, Any]) -> FloatArray:
    return np.frombuffer(message["states"], np.float32).reshape(message["shape"])


def requests_of(message: dict[str, Any]) -> int:
    """How many requests a message speaks of."""
    return len(message["counts"]) // np.dtype(np.int64).itemsize


def joined(messages: Sequence[dict[str, Any]]) -> StepScores | None:
    """Steps that each delivered the next token of the same requests, as one step that delivered several of each.

    None if they are not that. Raises ``ValueError`` for inconsistent lengths."""
    first = messages[0]
    if any(message[key] != first[key] for message in messages[1:] for key in _ALIKE):
        return None
    counts = np.frombuffer(first["counts"], np.int64)
    if first["version"] != VERSION or not (counts == 1).all():
        return None
    starts = np.frombuffer(b"".join([message["starts"] for message in messages]), np.int64)
    starts = starts.reshape(len(messages), len(counts))
    if (starts[1:] != starts[:-1] + 1).any():
        return None
    raw = _is_raw(first)
    states = np.stack(
        [_states(message) for message in messages], axis=1 + raw
    )  # [R, steps, K] or [L, R, steps, C]
    *outer, _, _, width = states.shape
    steered: dict[str, int] = {}
    for message in messages:
        for vector, rows in message["steered"].items():
            steered[vector] = steered.get(vector, 0) + rows
    return StepScores(
        counts * len(messages),
        starts[0],
        states.reshape(*outer, -1, width),
        tuple([float(seconds) for message in messages for seconds in message["host_seconds"]]),
        sum([int(message["errors"]) for message in messages]),
        int(first["epoch"]),
        steered=steered,
        raw=raw,
    )


def shares(step: StepScores) -> Iterator[tuple[int, FloatArray]]:
    """``(start, states [n, K])`` of each request of a step, in order."""
    assert not step.raw, "states are made before they are shared out"
    at = 0
    counts: Sequence[int] = step.counts.tolist()
    for start, count in zip(step.starts.tolist(), counts, strict=True):
        yield start, step.states[at : at + count]
        at += count
