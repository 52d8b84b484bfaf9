"""Which metrics and labels a PromQL expression names, and whether anything defines them.

This is no parser: whether an expression is PromQL at all, promtool says (``make rules-check``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from monitor.catalogue import CATALOGUE, ERROR_STAGES, PHASES
from monitor.unscored import Reason
from monitor.verdict import FLAGGED, OK, UNSCORED

TARGET = ("job", "instance")
"""Labels that a scrape gives to every series."""
ENGINE = (*TARGET, "model_name", "engine")
"""Labels of each metric of ours, and of vLLM's."""

OUTSIDE: dict[str, tuple[str, ...]] = {
    "up": TARGET,
    "vllm:generation_tokens_total": ENGINE,
    "vllm:num_requests_running": ENGINE,
    "vllm:prompt_tokens_total": ENGINE,
    "vllm:request_success_total": (*ENGINE, "finished_reason"),
}
"""Series that we use and others define, with their labels."""

VALUES = {
    "phase": set(PHASES),
    "reason": {reason.label for reason in Reason},
    "stage": set(ERROR_STAGES),
    "verdict": {OK, FLAGGED, UNSCORED},
}
"""Labels whose values are a closed list."""

_TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<name>[a-zA-Z_:][\w:]*)|(?P<number>[\d.]\w*)"""
    r"""|(?P<sign>=~|!~|!=|\$\w+|\S)""",
    re.VERBOSE,
)
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
_AGGREGATIONS = {"sum", "min", "max", "avg", "count", "group", "quantile", "topk", "bottomk"}


class Names(NamedTuple):
    """What an expression names."""

    selectors: Sequence[tuple[str, tuple[tuple[str, str], ...]]]
    """Each series with its matchers: (label, value or regular expression)."""
    groupings: frozenset[str]
    """Labels in ``by (...)``, ``on (...)`` and their like."""


def read(expression: str) -> Names:
    """The names in an expression, in the order of the text."""
    tokens = list(_tokens(expression))
    selectors: list[tuple[str, tuple[tuple[str, str], ...]]] = []
    groupings: set[str] = set()
    for i, (kind, text) in enumerate(tokens):
        following = tokens[i + 1][1] if i + 1 < len(tokens) else ""
        if kind != "name" or text in _WORDS | _AGGREGATIONS:
            continue
        if text in _GROUPING:
            groupings.update(_until(tokens, i + 1, ")", "name") if following == "(" else ())
        elif following == "{":
            labels, values = (_until(tokens, i + 1, "}", kind) for kind in ("name", "string"))
            selectors.append((text, tuple(zip(labels, (value[1:-1] for value in values), strict=True))))
        elif following != "(" and not _inside_labels(tokens, i):
            selectors.append((text, ()))
    return Names(selectors, frozenset(groupings))


def series(extra: Mapping[str, Sequence[str]] | None = None) -> dict[str, frozenset[str]]:
    """Every series that an expression may name, with its labels: the catalogue's as a scrape shows them, those of
    others, and ``extra`` (recorded ones)."""
    known = {name: frozenset(labels) for name, labels in {**OUTSIDE, **(extra or {})}.items()}
    for name, metric in CATALOGUE.items():
        labels = frozenset((*ENGINE, *metric.labels))
        if metric.type != "histogram":
            known[name] = labels
            continue
        known[f"{name}_bucket"] = labels | {"le"}
        known[f"{name}_count"] = labels
        # prometheus_client leaves the sum out where observations can be negative: it could not be a counter.
        if metric.buckets[0] >= 0:
            known[f"{name}_sum"] = labels
    return known


def faults(expression: str, known: Mapping[str, frozenset[str]]) -> list[str]:
    """One line for each name in ``expression`` that nothing defines."""
    found, complaints = read(expression), []
    for name, matchers in found.selectors:
        if name not in known:
            complaints.append(
                f"{name}: no metric of this name in monitor/catalogue.py, nor one of vLLM's in use"
            )
            continue
        for label, value in matchers:
            if label not in known[name]:
                complaints.append(f"{name}: has no label {label}")
            complaints += [
                f"{name}: {label} is never {word}"
                for word in value.split("|")
                if word not in VALUES.get(label, {word})
            ]
    available = frozenset[str]().union(*(known.get(name, frozenset()) for name, _ in found.selectors))
    complaints += [
        f"{label}: no metric in the expression has this label" for label in found.groupings - available
    ]
    return [f"{complaint}, in: {expression}" for complaint in complaints]


def _tokens(expression: str) -> Iterator[tuple[str, str]]:
    """(kind, text), without what stands in brackets: durations."""
    depth = 0
    for match in _TOKEN.finditer(expression):
        text = match.group()
        depth += text == "["
        if not depth:
            yield str(match.lastgroup), text
        depth -= text == "]"


def _until(tokens: Sequence[tuple[str, str]], start: int, end: str, wanted: str) -> Iterator[str]:
    for kind, text in tokens[start:]:
        if text == end and kind == "sign":
            return
        if kind == wanted:
            yield text


def _inside_labels(tokens: Sequence[tuple[str, str]], i: int) -> bool:
    """Whether token ``i`` stands inside ``{...}`` or the list of a grouping."""
    for j in range(i - 1, -1, -1):
        kind, text = tokens[j]
        if kind == "sign" and text in "})":
            return False
        if kind == "sign" and text == "{":
            return True
        if kind == "sign" and text == "(":
            return j > 0 and tokens[j - 1][1] in _GROUPING
    return False
