"""Paired rounds: all arms do the same work with the same seed, one at a time, in an order that rotates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol, TypeVar

from bench.arms import Arm
from bench.report import Found


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

    def round(self, load: L_contra, seed: int, /) -> dict[str, float]:
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
            for one in [*running[turn:], *running[:turn]]:
                result = one.round(load, 1000 + number)
                if number >= 0:
                    found[load.name][one.arm.name].append(result)
        if number >= 0:
            last = found[loads[0].name]
            shown = ", ".join(f"{arm} {done[-1]['tokens_per_second']:.0f}" for arm, done in last.items())
            print(f"round {number + 1} of {rounds}: tokens/s {shown}", flush=True)
    return found
