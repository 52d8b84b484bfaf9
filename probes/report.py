"""The report card: figures as JSON inside the manifest, and the same as Markdown beside the artifact."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from probes.calibration import clopper_pearson
from probes.controls import Spread
from probes.estimate import Estimate
from probes.evaluation import auroc, bootstrap, recall_at
from probes.manifest import ProbeManifest
from probes.method import described

Floats = NDArray[np.float64]
FPR: Final = 0.01


@dataclass(frozen=True)
class Judged:
    """One contrast of the test set: who stands against whom, and what separates them."""

    description: str
    n_positive: int
    n_negative: int
    auroc: Estimate
    recall: Estimate
    """At 1% false positives among the contrast's own negatives."""
    others: Mapping[str, Estimate] = field(default_factory=dict)
    """AUROC of controls and of other probes on the same conversations."""


def judge(
    description: str,
    scores: Floats,
    labels: Sequence[int],
    groups: Sequence[str],
    others: Mapping[str, Floats] | None = None,
) -> Judged:
    """Figures of one contrast, each with a group-clustered 95% interval."""
    y = np.asarray(labels)
    return Judged(
        description,
        int(y.sum()),
        int((1 - y).sum()),
        bootstrap(auroc, scores, y, groups),
        bootstrap(recall_at(FPR), scores, y, groups),
        {name: bootstrap(auroc, other, y, groups) for name, other in (others or {}).items()},
    )


def estimate_json(estimate: Estimate) -> JsonValue:
    """value and 95% interval; None where a figure cannot be given (too few conversations for it)."""
    return {name: round(x, 4) if np.isfinite(x) else None for name, x in estimate._asdict().items()}


def judged_json(judged: Judged) -> JsonValue:
    """A contrast as it stands in `manifest.metrics["test"]`."""
    return {
        "description": judged.description,
        "n_positive": judged.n_positive,
        "n_negative": judged.n_negative,
        "auroc": estimate_json(judged.auroc),
        "recall_at_1pct_fpr": estimate_json(judged.recall),
        "others_auroc": {name: estimate_json(other) for name, other in judged.others.items()},
    }


def spread_json(spread: Spread) -> JsonValue:
    """AUROCs of many draws of a control."""
    return {"median": round(spread.median, 4), "highest": round(spread.highest, 4), "draws": spread.draws}


def markdown(manifest: ProbeManifest) -> str:
    """The report card of an artifact, from its manifest alone."""
    parts = [_heading(manifest), _how(manifest), "## Benign traffic\n\n" + benign_text(manifest)]
    for key, section in _SECTIONS.items():
        value = manifest.metrics.get(key)
        if isinstance(value, dict) and value:
            parts.append(section(value))
    notes = manifest.metrics.get("notes")
    if isinstance(notes, list) and notes:
        parts.append("## Read this with it\n\n" + "\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def _heading(m: ProbeManifest) -> str:
    model = "no model (unbound)" if m.binding is None else f"`{m.binding.model_id}`"
    return (
        f"# {m.name}\n\nA high score means **{m.positive_label}**, a low one {m.negative_label}. "
        f"Kind `{m.kind}`, bound to {model}, action `{m.default_action}`."
    )


def _how(m: ProbeManifest) -> str:
    mask, rule = m.token_mask, m.aggregation
    prompt = {
        "none": "no prompt token",
        "all": "all prompt tokens",
        "last_k": f"the last {mask.last_k} of the prompt",
    }
    tokens = prompt[mask.prompt] + (" and the answer's tokens" if mask.generated else "")
    rows = [
        ("layers (0-based, after the block)", ", ".join(map(str, m.layers))),
        ("tokens", tokens),
        ("aggregation", f"{described(rule)}, from token {rule.min_tokens} on"),
        ("deployed statistic", m.statistic),
        ("threshold", "none" if m.threshold is None else f"{m.threshold:.4f}"),
    ]
    if m.training is not None:
        rows.append(
            (
                "fitted to",
                f"{m.training.n_positive} positive, {m.training.n_negative} negative ({m.training.source})",
            )
        )
    return "## What it reads\n\n| | |\n|---|---|\n" + "\n".join(f"| {a} | {b} |" for a, b in rows)


def benign_text(m: ProbeManifest) -> str:
    """One line on the threshold and the realised false-positive rate."""
    c = m.calibration
    if c is None:
        return "Not calibrated: no threshold."
    lines = [f"Threshold for {c.nominal_fpr:.2%} false positives from {c.n} benign conversations."]
    if c.realised_fpr is not None and c.realised_ci is not None:
        low, high = c.realised_ci
        lines.append(
            f"On a second, disjoint set: {c.realised_false_positives} of {c.realised_n} flagged, "
            f"{c.realised_fpr:.2%} (95% Clopper-Pearson {low:.2%} to {high:.2%})."
        )
    return " ".join(lines)


def _test(title: str) -> Callable[[Mapping[str, JsonValue]], str]:
    return lambda value: _contrasts(f"## {title} (95% intervals clustered by entity)", value)


def _contrasts(title: str, value: Mapping[str, JsonValue]) -> str:
    lines = [title, ""]
    lines += ["| contrast | positive / negative | AUROC | recall at 1% FPR |", "|---|---|---|---|"]
    beside = ["| contrast | scored by | AUROC |", "|---|---|---|"]
    for name, row in value.items():
        if not isinstance(row, dict):
            continue
        label = f"{name}: {row['description']}"
        counts = f"{row['n_positive']} / {row['n_negative']}"
        lines.append(
            f"| {label} | {counts} | {_estimate(row['auroc'])} | {_estimate(row['recall_at_1pct_fpr'])} |"
        )
        others = row.get("others_auroc")
        if isinstance(others, dict):
            beside += [f"| {name} | {other} | {_estimate(figure)} |" for other, figure in others.items()]
    return "\n".join([*lines, "", "## Beside it, on the same conversations", "", *beside])


def _table(title: str, head: str) -> Callable[[Mapping[str, JsonValue]], str]:
    def section(value: Mapping[str, JsonValue]) -> str:
        rows = [f"| {name} | {_cell(found)} |" for name, found in value.items()]
        return "\n".join([f"## {title}", "", f"| {head} | |", "|---|---|", *rows])

    return section


def _strata(value: Mapping[str, JsonValue]) -> str:
    by, hardest, parts = (value.get(key) for key in ("by", "threshold set by", "strata"))
    told = f"The threshold is that of {hardest}, the hardest of them: the nominal rate is to hold in each."
    rows = parts if isinstance(parts, dict) else {}
    title, _, table = _table(f"Benign traffic by {by}", f"{by}")(rows).partition("\n")
    return f"{title}\n\n{told}\n{table}"


def share_json(hits: int, n: int) -> JsonValue:
    """A share of `n` with its 95% Clopper-Pearson interval."""
    low, high = clopper_pearson(hits, n)
    return {"value": round(hits / n, 4), "low": round(low, 4), "high": round(high, 4), "of": n}


def _cell(value: JsonValue) -> str:
    if isinstance(value, dict) and {"value", "low", "high", "of"} == set(value):
        return "{:.1%} [{:.1%}, {:.1%}] of {}".format(*(value[key] for key in ("value", "low", "high", "of")))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(found)}" for name, found in value.items())
    if isinstance(value, list):
        return " to ".join(_cell(found) for found in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _estimate(value: JsonValue) -> str:
    if not isinstance(value, dict) or any(not isinstance(x, int | float) for x in value.values()):
        return "too few"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


_SECTIONS: Final[Mapping[str, Callable[[Mapping[str, JsonValue]], str]]] = {
    "test": _test("Test figures"),
    "trained_wordings": _test("Test figures with question wordings that the fit has seen"),
    "controls": _table("Controls that must fail (AUROC on the test set)", "control"),
    "deployed": _table("At the shipped threshold, on the test set", "figure"),
    "deployed_trained_wordings": _table(
        "At the shipped threshold, with question wordings that the fit has seen", "figure"
    ),
    "benign_traffic": _table("What to expect of benign traffic", "figure"),
    "benign_strata": _strata,
    "steering": _table("Steering along it", "setting"),
    "layer_profile": _table("Profile on validation (best objective at each layer)", "layer"),
    "token_profile": _table("Choice of tokens and aggregation on validation (best objective)", "tokens"),
    "robustness": _table("Under other conditions", "condition"),
}
