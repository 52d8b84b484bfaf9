"""How token states become one value for a request: the method and its parameters, as a manifest holds them.

What each method computes: `probes.aggregation`.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from probes.fields import Finite, Position, Record, Scoring

Method = Literal[
    "mean",
    "max",
    "last",
    "ema",
    "cusum",
    "softmax",
    "rolling_mean",
    "multimax",
    "attention",
    "rolling_attention",
    "feature_max",
    "mean_log_odds",
    "mean_level",
    "gap",
    "members",
]
PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    "alpha": ("ema",),
    "reference": ("cusum",),
    "temperature": ("softmax",),
    "window": ("rolling_mean", "rolling_attention"),
    "heads": ("rolling_attention", "multimax"),
    "belief_tokens": ("gap",),
    "members": ("members",),
}
"""Parameter -> the methods that need it; it is set if and only if the method is one of them."""


class Aggregation(Record):
    """How token states become one running value for a request (`probes.aggregation`)."""

    method: Method = "mean"
    alpha: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Weight of the newest token in `ema`."""
    reference: Finite | None = None
    """What `cusum` takes off each score, in score units: halfway between usual and alarming scores."""
    temperature: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Of `softmax`, in score units."""
    window: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Tokens of a rolling window."""
    heads: Literal["max_then_sum", "sum_then_max"] | None = None
    """Whether each head keeps its own maximum over tokens, or their sum has one."""
    belief_tokens: Annotated[Position, Field(ge=1)] | None = None
    """In-mask tokens at the start whose first number `gap` reads as belief; the later ones assert."""
    members: Annotated[tuple["Member", ...], Field(min_length=1, max_length=16)] | None = None
    """Of an ensemble."""
    min_tokens: Annotated[Position, Field(ge=1)] = 1
    """In-mask tokens before a live alert may latch."""

    @model_validator(mode="after")
    def _parameters_of_the_method(self) -> Self:
        for name, methods in PARAMETERS.items():
            value = getattr(self, name)
            if (self.method in methods) != (value is not None):
                raise ValueError(
                    f"{name} is {value} with method={self.method!r}; give it with {' or '.join(methods)} alone"
                )
        if self.belief_tokens is not None and self.min_tokens <= self.belief_tokens:
            raise ValueError(
                f"min_tokens is {self.min_tokens} with belief_tokens={self.belief_tokens}; nothing is asserted "
                "before belief_tokens + 1"
            )
        return self


class Member(Record):
    """A probe in an ensemble: its tensors carry its number as a prefix (`0.weight`)."""

    kind: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    scoring: Scoring = "logit"
    layers: Annotated[tuple[Position, ...], Field(min_length=1, max_length=256)]
    """Of the ensemble's layers, those that it reads."""
    states: Annotated[int, Field(ge=1, le=4096)]
    """Its state numbers a token."""
    weight: Finite
    """What its running value is multiplied by in the sum."""
    aggregation: Aggregation

    @model_validator(mode="after")
    def _not_nested(self) -> Self:
        if self.aggregation.method == "members" or self.scoring == "members":
            raise ValueError("an ensemble is a member of an ensemble; list its members instead")
        return self


def described(rule: Aggregation) -> str:
    """The method and its parameters in one line."""
    if rule.members is not None:
        return " + ".join(
            f"{m.weight:.3g} x {m.kind} at {', '.join(map(str, m.layers))} by {described(m.aggregation)}"
            for m in rule.members
        )
    values = {name: getattr(rule, name) for name in PARAMETERS}
    told = [f"{name.replace('_', ' ')} {value}" for name, value in values.items() if value is not None]
    return f"{rule.method} ({', '.join(told)})" if told else rule.method
