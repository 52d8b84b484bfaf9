"""Strata of benign traffic: its parts by a field of each conversation (`condition`, `template` ..), each of which is to
keep to the nominal false-positive rate.

A threshold from a mix keeps to it on that mix alone: the hardest part is flagged more often, and pays for the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from probes.calibration import chance_of, clopper_pearson
from probes.dataset import Conversation
from probes.errors import DatasetInvalid
from probes.recorded import Finished
from probes.report import share_json

SHOWN: Final = 12
"""Strata in the terminal, the hardest first."""
KEPT: Final = 100
"""Strata in the manifest, the hardest first."""
LONGEST: Final = 200
"""Characters of a field or a stratum."""
DOUBT: Final = 0.025
"""A realised rate with a lower chance than this is told as a warning; shared among the strata that are looked at."""


def names(rows: Sequence[Conversation | Finished], field: str, where: str) -> tuple[str, ...]:
    """The stratum of each conversation: its value of `field`. where: the file, for errors.

    Those without a value are a stratum of their own. `DatasetInvalid` where none has one, and where a value is no
    word or number.
    """
    if not _is_word(field):
        raise DatasetInvalid(
            f"--by {field[:40]!r} is no name of a field; give 1 to {LONGEST} printable characters"
        )
    values = [_value(row, field) for row in rows]
    if all(value is None for value in values):
        fit = [name for name in _fields(rows[0]) if _is_word(name)]
        have = [name for name in fit if all(isinstance(_value(row, name), str) for row in rows)]
        others = f", or give --by one of {', '.join(have[:SHOWN])}" if have else ""
        raise DatasetInvalid(f"{where}: no line has the field {field!r}; add it to each{others}")
    for row, value in zip(rows, values, strict=True):
        if value is not None and not _is_word(value):
            raise DatasetInvalid(
                f"{where}: {field!r} of {row.id!r} is not a word or number of at most {LONGEST} characters; mend it, "
                "or give --by another field"
            )
    return tuple(f"without {field}" if value is None else _shown(value) for value in values)


def _is_word(value: object) -> bool:
    shown = str(value) if isinstance(value, str | int | float) else ""
    return 0 < len(shown) <= LONGEST and shown.isprintable()


def _shown(value: object) -> str:
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)  # JSON knows one 1


def _value(row: Conversation | Finished, field: str) -> object:
    known = type(row).model_fields
    return getattr(row, field) if field in known else (row.model_extra or {}).get(field)


def _fields(row: Conversation | Finished) -> list[str]:
    return [name for name in (*type(row).model_fields, *(row.model_extra or {})) if name != "id"]


@dataclass(frozen=True)
class Stratum:
    """One part of the benign traffic."""

    name: str
    n: int
    """Conversations of the first set."""
    threshold: float | None
    """What it alone would give; None where the first set has none of it."""
    realised_n: int
    """Conversations of the second set."""
    flagged: int
    """Of those, by the deployed threshold."""

    @property
    def words(self) -> str:
        """One line for people."""
        alone = "not in the first set" if self.threshold is None else f"{self.n}, alone {self.threshold:.4f}"
        if not self.realised_n:
            return f"{self.name}: {alone}; not in the second set"
        hits, n = self.flagged, self.realised_n
        low, high = clopper_pearson(hits, n)
        return f"{self.name}: {alone}; {hits} of {n} flagged, {hits / n:.2%} ({low:.2%} to {high:.2%})"

    def figures(self) -> JsonValue:
        """For the manifest."""
        found: dict[str, JsonValue] = {"first set": self.n}
        if self.threshold is not None:
            found["threshold alone"] = round(self.threshold, 6)
        if self.realised_n:
            found["second set flagged"] = share_json(self.flagged, self.realised_n)
        return found


@dataclass(frozen=True)
class Strata:
    """What one threshold does to each part of the benign traffic."""

    field: str
    fpr: float
    parts: Sequence[Stratum]
    """By their own thresholds, the hardest first, which gave the one deployed; last those of the second set alone."""

    @property
    def hardest(self) -> Stratum:
        """The one whose threshold is deployed."""
        return self.parts[0]

    def figures(self) -> dict[str, JsonValue]:
        """For `manifest.metrics["benign_strata"]`."""
        kept = {part.name: part.figures() for part in self.parts[:KEPT]}
        return {"by": self.field, "threshold set by": self.hardest.name, "strata": kept}

    def lines(self) -> list[str]:
        """The same for people."""
        known = sum(part.threshold is not None for part in self.parts)
        left = len(self.parts) - SHOWN
        return [
            f"The threshold is that of {self.field} {self.hardest.name!r}, the hardest of {known}. Of each: how many "
            "in the first set and the threshold of these alone, flagged on the second (95% Clopper-Pearson).",
            *(f"  {part.words}" for part in self.parts[:SHOWN]),
            *([f"  and {left} more"] if left > 0 else []),
        ]

    def warnings(self) -> list[str]:
        """What speaks against the promise that the rate holds in each."""
        both = [part for part in self.parts if part.n and part.realised_n]
        told = [
            f"warning: {self.field} {part.name!r} is flagged more often than {self.fpr:g} by more than chance; its "
            "two sets are not of one kind"
            for part in both
            if chance_of(part.flagged, part.realised_n, part.n, self.fpr) < DOUBT / len(both)
        ]
        alone = [part.name for part in self.parts if not part.n]
        if alone:
            told.append(
                f"warning: {len(alone)} strata are in the second set alone (first: {alone[0]!r}); nothing holds the "
                "rate there, so give the first set some of them"
            )
        return told
