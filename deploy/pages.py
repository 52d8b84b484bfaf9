"""``python -m deploy.pages``: writes the part of docs/metrics.md that the code knows; ``--check`` compares instead."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.prometheus.generate import GROUPS, alerts
from deploy.prometheus.model import Record
from monitor.catalogue import CATALOGUE

SUFFIXES = ("", "_bucket", "_sum", "_count")
PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
BEGIN, END = "<!-- written by `make dashboards` from monitor/catalogue.py -->", "<!-- until here -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Status 1 where the page is stale."""
    parser = argparse.ArgumentParser(prog="python -m deploy.pages", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args(arguments).check
    found = PAGE.read_text(encoding="utf-8")
    wanted = page(found)
    if found == wanted:
        return 0
    if check:
        print("docs/metrics.md: stale; run `make dashboards`", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


def page(text: str) -> str:
    """The page with its written part renewed."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def reference() -> str:
    """A table of every metric, and the bounds of the histograms."""
    used = alerts_by_metric()
    rows = ["| metric | type | further labels | meaning | alerts |", "|---|---|---|---|---|"]
    for name, metric in CATALOGUE.items():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        links = ", ".join(f"[{alert}](runbooks/Probewatch{alert}.md)" for alert in used.get(name, ()))
        rows.append(f"| `{name}` | {metric.type} | {labels} | {metric.help} | {links} |")
    bounds = [
        f"- `{name}`: {', '.join(f'{bound:g}' for bound in metric.buckets)}"
        for name, metric in CATALOGUE.items()
        if metric.buckets
    ]
    return "\n".join([*rows, "", "Bounds of the histograms:", "", *bounds, ""])


def alerts_by_metric() -> dict[str, list[str]]:
    """Short names of the alerts that look at a metric, through recording rules too."""
    recorded = {r.name: r.expr for group in GROUPS for r in group.rules if isinstance(r, Record)}
    found: dict[str, list[str]] = {}
    for alert in alerts():
        for name in sorted(metrics_in(alert.expr, recorded)):
            found.setdefault(name, []).append(alert.name.removeprefix("Probewatch"))
    return found


def metrics_in(expression: str, recorded: dict[str, str]) -> set[str]:
    """Names of the catalogue's metrics that an expression reads, itself or by the rules it is built on."""
    words = set(re.findall(r"[a-zA-Z_][\w:]*", expression))
    found = {name for name in CATALOGUE if words & {name + suffix for suffix in SUFFIXES}}
    for rule in words & recorded.keys():
        found |= metrics_in(recorded[rule], recorded)
    return found


if __name__ == "__main__":
    sys.exit(main())
