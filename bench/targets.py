"""What the monitor may cost, and whether a benchmark shows that it does not cost more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.arms import AGAIN, STOCK
from bench.ratios import MEASURES, Rounds, ratio
from bench.workload import Workload
from probes.estimate import Estimate

LARGER_IS_BETTER = ("tokens_per_second",)
RESOLVED = 0.02
"""Widest interval, of the arm and of stock against itself, that can show that the two are alike."""


def reached(found: Estimate, goal: float, larger_is_better: bool = False) -> str:
    """``met`` where the whole interval is as good as ``goal``, ``missed`` where all of it is worse, else
    ``unresolved``."""
    if larger_is_better:
        return "met" if found.low >= goal else "missed" if found.high < goal else "unresolved"
    return "met" if found.high <= goal else "missed" if found.low > goal else "unresolved"


@dataclass(frozen=True)
class Target:
    """One ratio to stock, on the loads that it speaks of."""

    device: str
    """``cpu`` or ``cuda``"""
    arm: str
    measure: str
    goal: float | None
    """None: as stock against stock."""
    requests: tuple[int, int] = (1, 256)
    """Fewest and most."""
    tokens_in: tuple[int, int] = (0, 4000)

    def concerns(self, device: str, load: Workload) -> bool:
        """Whether it speaks of this load."""
        return (
            device == self.device
            and self.requests[0] <= load.requests <= self.requests[1]
            and self.tokens_in[0] <= load.tokens_in <= self.tokens_in[1]
        )

    def judged(self, found: Estimate, null: Estimate) -> str:
        """``met``, ``missed`` or ``unresolved``.

        The interval must exclude a larger loss, or exclude the target. Where stock differs from itself, nothing can be
        said, whatever the arm's interval. As stock against stock is what overlaps it, both no wider than ``RESOLVED``.
        """
        if not null.low <= 1.0 <= null.high:
            return "unresolved"
        if self.goal is None:
            if found.low > null.high or found.high < null.low:
                return "missed"
            return "met" if max(found.high - found.low, null.high - null.low) <= RESOLVED else "unresolved"
        return reached(found, self.goal, larger_is_better=self.measure in LARGER_IS_BETTER)


_LONG = (7000, 16384)
TARGETS = (
    Target("cpu", "8 probes", "tokens_per_second", 0.995, (32, 32)),
    Target("cpu", "8 probes all layers", "tokens_per_second", 0.98, (32, 32)),
    Target("cpu", "1000 probes", "tokens_per_second", 0.98, (32, 32)),
    Target("cpu", "installed", "tokens_per_second", None, (32, 32)),
    Target("cpu", "idle", "tokens_per_second", None, (32, 32)),
    Target("cuda", "8 probes", "inter_token_seconds", 1.003, (1, 32)),
    Target("cuda", "8 probes", "tokens_per_second", 0.995, (256, 256)),
    Target("cuda", "8 probes", "first_token_seconds", 1.005, tokens_in=_LONG),
    Target("cuda", "1000 probes one layer", "inter_token_seconds", 1.01),
    Target("cuda", "steered", "inter_token_seconds", 1.02),
)


def verdicts(device: str, load: Workload, arms: dict[str, Rounds]) -> Iterator[dict[str, str]]:
    """Of every target that speaks of an arm and load that were measured."""
    for target in TARGETS:
        if target.arm not in arms or not target.concerns(device, load):
            continue
        if target.measure not in arms[STOCK][0]:
            continue
        found, null = (ratio(arms, arm, target.measure) for arm in (target.arm, AGAIN))
        yield {
            "arm": target.arm,
            "measure": MEASURES[target.measure],
            "target": "noise floor" if target.goal is None else f"{target.goal:g}",
            "found": f"{found:.4f}",
            "stock against stock": f"{null:.4f}",
            "verdict": target.judged(found, null),
        }
