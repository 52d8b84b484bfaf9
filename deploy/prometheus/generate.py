"""Writes the rules twice from one source: ``rules.yml`` for Prometheus, ``prometheusrule.yaml`` for its operator.

python -m deploy.prometheus.generate --check       # status 1 where a file is stale or a rule names what does not exist
python -m deploy.prometheus.generate --to FOLDER --docs-url https://git/docs --grafana-url https://grafana
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.prometheus import absent, dying, flagging, nonsense, recording, unscored
from deploy.prometheus.model import Alert, Group, Record
from deploy.prometheus.promql import faults, series

FOLDER = Path(__file__).parent
HEADER = "# Written by deploy/prometheus/generate.py (make dashboards); edit the rules there.\n"

GROUPS = (
    Group("probewatch-flags", [*recording.flag_records(), *flagging.alerts()]),
    Group("probewatch-absent", absent.alerts()),
    Group("probewatch-unscored", [*recording.coverage_records(), *unscored.alerts()]),
    Group("probewatch-nonsense", nonsense.alerts()),
    Group("probewatch-dying", dying.alerts()),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line for each fault."""
    options = _parser().parse_args(arguments)
    wanted = texts(options.docs_url.rstrip("/"), options.grafana_url.rstrip("/"))
    complaints = list(undefined())
    if not complaints and not options.check:
        for name, text in wanted.items():
            (options.to / name).write_text(text, encoding="utf-8")
    complaints += stale(wanted, options.to)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return int(bool(complaints))


def texts(docs_url: str = "docs", grafana_url: str = "") -> dict[str, str]:
    """The files as they should be."""
    groups = [
        {"name": group.name, "rules": [_rule(rule, docs_url, grafana_url) for rule in group.rules]}
        for group in GROUPS
    ]
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "probewatch", "labels": {"app.kubernetes.io/name": "probewatch"}},
        "spec": {"groups": groups},
    }
    return {"rules.yml": _yaml({"groups": groups}), "prometheusrule.yaml": _yaml(resource)}


def alerts() -> list[Alert]:
    """All alerts, in order."""
    return [rule for group in GROUPS for rule in group.rules if isinstance(rule, Alert)]


def recorded() -> dict[str, tuple[str, ...]]:
    """The series that recording rules make, with their labels."""
    return {
        rule.name: tuple(rule.labels.split(", "))
        for group in GROUPS
        for rule in group.rules
        if isinstance(rule, Record)
    }


def undefined() -> Iterator[str]:
    """One line for each metric or label in a rule that nothing defines."""
    known = series(recorded())
    for group in GROUPS:
        for rule in group.rules:
            yield from (f"{rule.name}: {fault}" for fault in faults(rule.expr, known))


def stale(wanted: dict[str, str], folder: Path = FOLDER) -> list[str]:
    """One line for each file that is not as it should be."""
    return [
        f"{folder / name}: stale; run `make dashboards`"
        for name, text in wanted.items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


class _Lines(str):
    """A text that YAML writes line by line."""


def _rule(rule: Record | Alert, docs_url: str, grafana_url: str) -> dict[str, Any]:
    found = rule.rule() if isinstance(rule, Record) else rule.rule(docs_url, grafana_url)
    if "\n" in rule.expr:
        found["expr"] = _Lines(rule.expr + "\n")
    return found


def _yaml(content: dict[str, Any]) -> str:
    yaml.SafeDumper.add_representer(
        _Lines, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
    )
    return HEADER + str(yaml.safe_dump(content, sort_keys=False, width=118, allow_unicode=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.prometheus.generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--to", type=Path, default=FOLDER, help="folder to write to (default: this one)")
    parser.add_argument("--docs-url", default="docs", help="where docs/ is published, for runbook_url")
    parser.add_argument("--grafana-url", default="", help="root of Grafana, for dashboard_url")
    return parser


if __name__ == "__main__":
    sys.exit(main())
