"""The table of kinds in docs/training.md, held against the registry and the records."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from probes import artifact, kinds
from probes.aggregation import RULES
from probes.fitting import FITTERS
from probes.probe import Probe
from probes.testing import fake_aggregation, fake_manifest, fake_tensors

DOCS = Path(__file__).parents[2] / "docs" / "training.md"
SIZES = dict.fromkeys("CHFrw", 3) | {"V": 6}
"""Of fake probes: every axis has 3 entries, a lens tracks 3 tokens of 6."""


def rows() -> dict[str, list[str]]:
    """Fit -> the other cells of its row."""
    found = [line.strip("|\n ").split(" | ") for line in DOCS.read_text("utf-8").splitlines()]
    return {cells[0].strip("`"): cells[1:] for cells in found if len(cells) == 6 and cells[0].startswith("`")}


def size(text: str) -> int:
    """The number that `2 H w + 1` stands for."""
    factors = [re.findall(r"\d+|[A-Za-z]", term) for term in text.split("+")]
    return sum(int(np.prod([SIZES.get(f) or int(f) for f in term])) for term in factors)


def carried(carry: object) -> int:
    return sum(map(carried, carry)) if isinstance(carry, tuple) else int(np.size(carry))  # type: ignore[arg-type]


def test_the_table_names_every_fit() -> None:
    assert set(rows()) == set(FITTERS)


@pytest.mark.parametrize("name", FITTERS)
def test_the_table_tells_the_sizes(name: str) -> None:
    _, method, columns, kept, remembered = rows()[name]
    found = FITTERS[name]
    assert method == f"`{found.aggregation.method}`"
    manifest = fake_manifest(
        kind=found.kind, scoring=found.scoring, aggregation=fake_aggregation(found.aggregation.method)
    )
    probe = Probe(manifest, *artifact.split_golden(fake_tensors(manifest)))
    assert probe.columns.shape[2] == size(columns)
    states = probe.token_state(probe.golden_inputs).double().numpy()
    assert states.shape[1] == size(kept)
    _, carry = RULES[method.strip("`")].running(states, (), manifest.aggregation)
    if found.aggregation.window is None:
        assert carried(carry) == size(remembered)
    else:  # the table rounds w - 1 and what stands beside it up
        assert carried(carry) <= size(remembered) + 2 * SIZES["H"]


def test_the_table_names_every_method() -> None:
    named = set(re.findall(r"`([a-z_]+)`", DOCS.read_text("utf-8")))
    assert set(RULES) - {"members"} <= named
    assert named >= kinds.record.ONE_SCORE
