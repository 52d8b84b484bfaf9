"""Paired rounds: all arms do the same work with the same seed, one at a time, in an order that rotates.

Where a round is of several turns, the arms alternate turn by turn: the finer, the less of the machine's drift is
between them.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any, Protocol, TypeVar

from bench.arms import Arm
from bench.ratios import Found

Round = Generator[None, None, dict[str, Any]]
"""Yields after each turn; returns what the whole round measured."""


SETTLE_SECONDS = 0.005
"""Between two turns: the threads of one engine look out for more work before they sleep, on the time of the other."""


class Load(Protocol):
    """The work of one round."""

    @property
    def name(self) -> str:
        """For tables."""


L = TypeVar("L", bound=Load)
L_contra = TypeVar("L_contra", bound=Load, contravariant=True)


class Contender(Protocol[L_contra]):
    """What runs an arm."""

    arm: Arm

    def round(self, load: L_contra, seed: int, /) -> Round:
        """What one round measures."""


def measure(running: Sequence[Contender[L]], loads: Sequence[L], rounds: int, until: float) -> Found:
    """Warms every arm up, then runs paired rounds in rotating order, for no longer than ``until``."""
    found: Found = {load.name: {one.arm.name: [] for one in running} for load in loads}
    for number in range(-1, rounds):
        if number >= 3 and time.monotonic() > until:
            print(f"out of time after {number} rounds", flush=True)
            break
        turn = number % len(running)
        for load in loads if number % 2 else loads[::-1]:
            results = in_turns([*running[turn:], *running[:turn]], load, 1000 + number)
            if number >= 0:
                for name, result in results.items():
                    found[load.name][name].append(result)
        if number >= 0:
            last = found[loads[0].name]
            shown = ", ".join(f"{arm} {done[-1]['tokens_per_second']:.0f}" for arm, done in last.items())
            print(f"round {number + 1} of {rounds}: tokens/s {shown}", flush=True)
    return found


def in_turns(running: Sequence[Contender[L]], load: L, seed: int) -> dict[str, dict[str, Any]]:
    """One round of every arm, turn by turn; who is first in one turn is last in the next."""
    rounds = {one.arm.name: one.round(load, seed) for one in running}
    found: dict[str, dict[str, Any]] = {}
    while rounds:
        for name in list(rounds):
            try:
                next(rounds[name])
                time.sleep(SETTLE_SECONDS)
            except StopIteration as ended:
                found[name] = ended.value
                del rounds[name]
        if rounds:
            first = next(iter(rounds))
            rounds[first] = rounds.pop(first)
    return found


def alone(one: Contender[L], load: L, seed: int) -> dict[str, Any]:
    """One round of one arm."""
    return in_turns([one], load, seed)[one.arm.name]
