"""``python -m grafana``: writes the dashboards, and the rules of ``deploy/prometheus`` beside them.

With ``--check`` it writes nothing, and ends with status 1 where a file is stale or names a metric or label that the
code does not define.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.prometheus import generate as rules
from deploy.prometheus.promql import faults, series
from grafana import actions, fleet, overview, probes
from grafana.board import Board, build
from grafana.panels import JSON

FOLDER = Path(__file__).parent
BOARDS: dict[str, Board] = {
    "probewatch_overview.json": overview.BOARD,
    "probewatch_probes.json": probes.BOARD,
    "probewatch_fleet.json": fleet.BOARD,
    "probewatch_actions.json": actions.BOARD,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one line for each fault."""
    parser = argparse.ArgumentParser(prog="python -m grafana", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args(arguments).check
    complaints = list(undefined())
    if not complaints and not check:
        for name, text in texts().items():
            (FOLDER / name).write_text(text, encoding="utf-8")
    complaints += stale()
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return max(int(bool(complaints)), rules.main(["--check"] if check else []))


def texts() -> dict[str, str]:
    """The files as they should be."""
    return {
        name: json.dumps(build(board), indent=2, ensure_ascii=False) + "\n" for name, board in BOARDS.items()
    }


def undefined() -> Iterator[str]:
    """One line for each metric or label in a query that nothing defines."""
    known = series()
    for name, board in BOARDS.items():
        for expression in expressions(build(board)):
            yield from (f"grafana/{name}: {fault}" for fault in faults(expression, known))


def stale(folder: Path = FOLDER) -> list[str]:
    """One line for each file that is not as it should be."""
    wanted = texts()
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return [
        f"grafana/{name}: "
        + ("not written by grafana/; remove it" if name not in wanted else "stale; run `make dashboards`")
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]


def flat(panels: Sequence[JSON]) -> Iterator[JSON]:
    """All panels in order of reading, those inside collapsed rows too."""
    for panel in panels:
        yield panel
        yield from flat(panel.get("panels", []))


def expressions(dashboard: JSON) -> Iterator[str]:
    """Every query of the panels, and the series that the variables list."""
    for panel in flat(dashboard["panels"]):
        yield from (target["expr"] for target in panel.get("targets", []))
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"].removeprefix("label_values(").rpartition(",")[0]


if __name__ == "__main__":
    sys.exit(main())
