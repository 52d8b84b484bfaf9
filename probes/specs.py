"""Tokens and aggregations as they are written on a command line."""

import re
from typing import Final

from pydantic import ValidationError

from probes.errors import DataError
from probes.manifest import TokenMask
from probes.method import PARAMETERS, Aggregation

NUMBERS: Final = ("alpha", "reference", "temperature", "window")
"""Parameters of a method that can be written behind it."""


def tokens(text: str) -> TokenMask:
    """`answer`, `all`, `last-prompt`, `last-5-prompt`, and either of these with `+answer`. `DataError` for others."""
    if text in ("answer", "all"):
        return TokenMask() if text == "answer" else TokenMask(prompt="all")
    found = re.fullmatch(r"last-(?:([1-9][0-9]{0,6})-)?prompt(\+answer)?", text)
    if found is None:
        raise DataError(
            f"tokens {text!r} are unknown; give answer, all, last-prompt, last-5-prompt or a last-..+answer"
        )
    return TokenMask(prompt="last_k", last_k=int(found[1] or 1), generated=found[2] is not None)


def aggregation(text: str, min_tokens: int = 1) -> Aggregation:
    """`mean`, `max`, `last`, `ema:0.1`, `cusum:0`, `softmax:5`, `rolling_mean:40` ... `DataError` for others."""
    method, _, number = text.partition(":")
    named = [name for name in NUMBERS if method in PARAMETERS.get(name, ())]
    fields: dict[str, object] = {"method": method, "min_tokens": min_tokens}
    if number:
        fields[named[0] if named else "number"] = number
    try:
        return Aggregation.model_validate(fields)
    except ValidationError:
        raise DataError(
            f"aggregation {text!r} is unknown; give mean, max, last, ema:ALPHA (0 < ALPHA <= 1), cusum:REFERENCE, "
            "softmax:TEMPERATURE or rolling_mean:TOKENS"
        ) from None
