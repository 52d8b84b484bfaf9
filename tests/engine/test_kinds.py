"""Every kind and aggregation inside one engine, against the library's offline score on Hugging Face activations."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import Finished, Runner
from machine import ON_GPU, TOLERANCE
from traffic import mixed
from transformers import AutoModelForCausalLM

import probes
from probes import kinds
from probes.aggregation import RULES
from probes.identity import model_identity
from probes.masks import mask
from probes.testing import fake_aggregation, write_artifact

LAYERS = (0, 2)
REQUESTS = 40


def wanted() -> dict[str, dict[str, object]]:
    """Name -> manifest fields: each kind with its own aggregation, and each aggregation of one score a token."""
    found: dict[str, dict[str, object]] = {
        f"{kind}-{scoring}".replace("_", "-"): {"kind": kind, "scoring": scoring}
        for kind, scoring in [*kinds.KINDS, kinds.ENSEMBLE]
    }
    for method in sorted(kinds.record.ONE_SCORE):
        found[f"by-{method}".replace("_", "-")] = {"aggregation": fake_aggregation(method)}
    found["by-rolling-attention"] = {
        "kind": "attention",
        "aggregation": fake_aggregation("rolling_attention"),
    }
    return found


NAMES = list(wanted())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def artifacts(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, binding = tmp_path_factory.mktemp("kinds"), model_identity(model).binding()
    given = {"layers": LAYERS, "d_model": tiny.D_MODEL, "binding": binding, "threshold": 0.0}
    return {
        name: write_artifact(folder / f"{name}.safetensors", seed, name=name, **given, **fields)
        for seed, (name, fields) in enumerate(wanted().items())
    }


@pytest.fixture(scope="module")
def finished(model: Path, artifacts: dict[str, Path], run_engine: Runner) -> Finished:
    done = run_engine(model, list(artifacts.values()), [mixed(REQUESTS, seed=1)], engine={"dtype": "float32"})
    assert done.status == 0, done.log[-4000:]
    return done


@pytest.fixture(scope="module")
def residuals(finished: Finished, model: Path) -> list[torch.Tensor]:
    """[T, L, d] of every request, by Hugging Face: all its tokens but the last, which is not fed."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for ids in finished.sequences(0)[1]:
        with torch.no_grad():
            hidden = loaded(torch.tensor(ids[None, :-1]), output_hidden_states=True).hidden_states
        found.append(torch.stack([hidden[b + 1][0] for b in LAYERS], dim=1))
    return found


def of_probe(served: list[np.ndarray], artifacts: dict[str, Path], name: str) -> list[torch.Tensor]:
    """The state columns of one probe: probes lie one after the other in the order in which they were given."""
    loaded = [probes.load(path) for path in artifacts.values()]
    widths = [kinds.state_width(kinds.of(probe.manifest), probe.tensors) for probe in loaded]
    edges = list(pairwise(np.cumsum([0, *widths])))[NAMES.index(name)]
    return [torch.from_numpy(np.ascontiguousarray(states[:, slice(*edges)])) for states in served]


def test_every_kind_and_aggregation_is_here() -> None:
    named = [{"aggregation": None, **fields} for fields in wanted().values()]
    methods = {fields["aggregation"].method for fields in named if fields["aggregation"]}  # type: ignore[attr-defined]
    for fields in named:
        kind = kinds.KINDS.get((str(fields.get("kind")), str(fields.get("scoring", "logit"))))
        methods |= set() if kind is None or len(kind.aggregations) > 1 else set(kind.aggregations)
    assert methods | {"attention", "members"} == set(RULES)


@pytest.mark.parametrize("name", NAMES)
def test_served_scores_are_the_librarys(
    finished: Finished, artifacts: dict[str, Path], residuals: list[torch.Tensor], name: str
) -> None:
    probe = probes.load(artifacts[name])
    served = of_probe(finished.sequences(0)[0], artifacts, name)
    expected = [probe.token_state(hidden) for hidden in residuals]
    shown = torch.cat([probe.token_scores(states) for states in served])
    offline = torch.cat([probe.token_scores(states) for states in expected])
    unit = float(offline.std())
    assert unit > 1e-3
    # A JumpReLU may fall on the other side of its threshold where the stream itself is rounded.
    most = unit if ON_GPU and probe.manifest.kind == "sae" else TOLERANCE * max(unit, 1.0)
    assert float((shown - offline).abs().max()) < most
    for states, reference in zip(served, expected, strict=True):
        assert float((states - reference).abs().max()) < most * max(1.0, float(reference.abs().max()) / unit)
    outputs: list[dict[str, Any]] = finished.phase(0)["outputs"]
    for output, hidden, ids in zip(outputs, residuals, finished.sequences(0)[1], strict=True):
        prompt = len(ids) - len(output["tokens"])
        inside = mask(np.arange(len(hidden)), prompt, probe.manifest.token_mask)
        verdict = output["verdict"]["probes"][name]
        assert verdict["tokens_scored"] == inside.sum()
        if inside.any():
            statistic = probe.statistic(probe.token_state(hidden), inside)
            assert verdict["score"] == pytest.approx(statistic, abs=most, rel=TOLERANCE)
            assert verdict["flagged"] == (statistic > 0.0) or abs(statistic) < most
