"""An ensemble: the weighted sum of its members' running values, each over its own state numbers."""

from collections.abc import Iterator, Mapping

import numpy as np

from probes.aggregation.rule import Carry, Floats, Rule
from probes.method import Aggregation, Member


def members_rule(rules: Mapping[str, Rule]) -> Rule:
    """The rule `members`, given those that members may use."""

    def final(states: Floats, rule: Aggregation) -> float:
        """sum_m weight_m value_m"""
        return sum(
            member.weight * rules[member.aggregation.method].final(own, member.aggregation)
            for member, own in _split(states, rule)
        )

    def running(states: Floats, carry: Carry, rule: Aggregation) -> tuple[Floats, Carry]:
        """Carries the members' carries."""
        parts = list(_split(states, rule))
        found = [
            rules[member.aggregation.method].running(own, before, member.aggregation)
            for (member, own), before in zip(parts, carry or ((),) * len(parts), strict=True)
        ]
        total = np.zeros(len(states))
        for (member, _), (values, _) in zip(parts, found, strict=True):
            total += member.weight * values
        return total, tuple(after for _, after in found)

    return Rule(final, running)


def _split(states: Floats, rule: Aggregation) -> Iterator[tuple[Member, Floats]]:
    members = rule.members or ()
    if states.shape[1] != sum(member.states for member in members):
        raise ValueError(
            f"state has K={states.shape[1]} numbers a token; the members take "
            f"{' + '.join(str(member.states) for member in members)}"
        )
    at = 0
    for member in members:
        yield member, states[:, at : at + member.states]
        at += member.states
