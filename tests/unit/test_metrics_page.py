"""docs/metrics.md and the catalogue name the same metrics, types and labels."""

from __future__ import annotations

import re
from pathlib import Path

from monitor.metrics import CATALOGUE
from monitor.unscored import Reason

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()


def test_the_page_lists_the_catalogue_and_nothing_else() -> None:
    rows = re.findall(r"^\| `(probewatch_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    listed = {name: (kind, tuple(re.findall(r"`(\w+)`", labels)), text) for name, kind, labels, text in rows}
    assert listed == {name: (m.type, m.labels, m.help) for name, m in CATALOGUE.items()}


def test_every_reason_is_explained() -> None:
    assert set(re.findall(r"^\| `([a-z_]+)` \| [^|]*\|$", PAGE, re.MULTILINE)) == {r.label for r in Reason}
