"""Ensembles: the weighted sum of what the members say, over layers and kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import probes
from probes import ensembles
from probes.evaluation import auroc
from probes.testing import fake_aggregation, write_artifact


def member(folder: Path, name: str, **changes: object) -> probes.Probe:
    return probes.load(write_artifact(folder / f"{name}.safetensors", seed=len(name), name=name, **changes))


def test_an_ensemble_over_layers_and_kinds_is_their_weighted_sum(tmp_path: Path) -> None:
    one = member(
        tmp_path, "one", layers=(0, 2), kind="attention", aggregation=fake_aggregation("rolling_attention")
    )
    two = member(
        tmp_path, "other", layers=(1,), kind="mlp", aggregation=fake_aggregation("ema", min_tokens=4)
    )
    both = ensembles.combine([one, two], [0.5, -3.0], "both").save(tmp_path / "both.safetensors")
    loaded = probes.load(tmp_path / "both.safetensors")
    hidden = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(0))
    found = loaded.aggregate(loaded.token_state(hidden))
    parts = [
        one.aggregate(one.token_state(hidden[:, [0, 2]])),
        two.aggregate(two.token_state(hidden[:, [1]])),
    ]
    assert found == pytest.approx(0.5 * parts[0] - 3.0 * parts[1], rel=1e-5)
    assert both.manifest.layers == (0, 1, 2)
    assert both.manifest.aggregation.min_tokens == 4
    assert both.manifest.threshold is None


def test_weights_favour_the_member_that_knows() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 2
    values = np.stack([rng.normal(size=400) * 100, labels + 0.5 * rng.normal(size=400)], axis=1)
    weights = ensembles.fit_weights(values, labels)
    assert abs(weights[0]) * 100 < 0.2 * weights[1]
    sums = values @ weights
    assert auroc(sums[labels == 1], sums[labels == 0]) > 0.9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concept": "weather"}, "concept differs"),
        ({"token_mask": {"prompt": "all"}}, "token_mask differs"),
        ({"kind": "ensemble", "scoring": "members"}, "ensemble itself"),
    ],
)
def test_members_that_do_not_fit_together_are_refused(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    given = [member(tmp_path, "a"), member(tmp_path, "b", **changes)]
    with pytest.raises(probes.DataError, match=words):
        ensembles.combine(given, [1.0, 1.0], "c")
    with pytest.raises(probes.DataError, match="2 probes and 1 weights"):
        ensembles.combine(given, [1.0], "c")


@pytest.mark.parametrize(
    ("values", "labels", "words"),
    [
        ([[0.0], [np.nan]], [0, 1], "finite"),
        ([[0.0], [1.0]], [1, 1], "one class"),
        ([[0.0]], [0, 1], "a label"),
    ],
)
def test_statistics_that_weigh_nothing_are_refused(values: object, labels: list[int], words: str) -> None:
    with pytest.raises(probes.DataError, match=words):
        ensembles.fit_weights(np.array(values), labels)
