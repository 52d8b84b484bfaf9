"""What the tests of monitor/ share: probes without files, and a readable registry.

Engines to be watched are in ``monitor_fake_engine`` (scheduling), ``monitor_fake_runners`` (what vLLM's model runners
show of it) and ``monitor_fake_server`` (the whole road from forward pass to verdict).
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry

from monitor.bank import ProbeBank
from monitor.engines import Engines
from monitor.events import FloatArray, IntArray
from monitor.frontend import Frontend
from monitor.metrics import Metrics
from monitor.records import RecentRecords
from probes import Probe
from probes.artifact import split_golden
from probes.testing import fake_manifest, fake_tensors

torch.set_num_threads(1)

MODEL = "model"
BENIGN = {"probabilities": tuple(i / 10 for i in range(11)), "values": tuple(float(i) for i in range(11))}
"""Benign statistics spread evenly over 0 .. 10; their interquartile range is 5."""


def make_probe(name: str = "fake", seed: int = 0, **changes: object) -> Probe:
    """A probe with random tensors and ``changes`` to its manifest, never written to a file."""
    manifest = fake_manifest(name=name, **changes)
    tensors, inputs, scores = split_golden(fake_tensors(manifest, seed))
    return Probe(manifest, tensors, inputs, scores)


def alerting(name: str = "lie", threshold: float = 0.0, **changes: object) -> Probe:
    """A probe that alerts; every token counts, and its statistic is the highest token score."""
    fields: dict[str, Any] = {
        "token_mask": {"prompt": "all", "skip_positions": ()},
        "aggregation": {"method": "max"},
        "threshold": threshold,
        "default_action": "alert",
    }
    return make_probe(name, **{**fields, **changes})


def make_bank(*probes: Probe, capacity: int = 1) -> ProbeBank:
    """The probes on exactly the layers they read."""
    layers = sorted({layer for probe in probes for layer in probe.manifest.layers})
    d_model = probes[0].manifest.d_model if probes else 4
    return ProbeBank(probes, layers, d_model, capacity)


def make_frontend(*probes: Probe, recent: int = 1024) -> tuple[Frontend, CollectorRegistry]:
    """A frontend that counts into a registry of its own; every probe takes its manifest's action."""
    registry = CollectorRegistry()
    metrics = Metrics(MODEL, "0", registry)
    return Frontend(make_bank(*probes), metrics, MODEL, RecentRecords(recent)), registry


def alone(frontend: Frontend) -> Engines:
    """The one engine of a server."""
    return Engines(lambda index: frontend, [0], frontend.recent)


def value(registry: CollectorRegistry, sample: str, **labels: str) -> float | None:
    """One sample as a scrape would show it; None if the child does not exist."""
    return registry.get_sample_value(sample, {"model_name": MODEL, "engine": "0", **labels})


def summed(registry: CollectorRegistry, sample: str, **labels: str) -> float:
    """The sum of all samples of that name that carry ``labels``."""
    return sum(
        found.value
        for family in registry.collect()
        for found in family.samples
        if found.name == sample and labels.items() <= found.labels.items()
    )


def plant_enums(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of vLLM's enums when a sequence is stopped."""
    for name in ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.v1.request"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm.v1.engine"].FinishReason = SimpleNamespace(STOP="stop")  # type: ignore[attr-defined]
    sys.modules["vllm.v1.request"].RequestStatus = SimpleNamespace(FINISHED_STOPPED="stopped")  # type: ignore[attr-defined]


class Scrape:
    """What one scrape shows, for whoever asks much of it: reading a registry anew for each sample takes far longer."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in registry.collect():
            for found in family.samples:
                self._samples.setdefault(found.name, []).append((found.labels, found.value))

    def value(self, sample: str, **labels: str) -> float | None:
        """As ``value``."""
        wanted = {"model_name": MODEL, "engine": "0", **labels}
        return next((own for found, own in self._samples.get(sample, ()) if found == wanted), None)

    def summed(self, sample: str, **labels: str) -> float:
        """As ``summed``."""
        return sum(own for found, own in self._samples.get(sample, ()) if labels.items() <= found.items())


def column(*scores: float | np.float32) -> FloatArray:
    """States ``[T, 1]``; keeps the payload of a NaN."""
    return np.array([np.float32(score) for score in scores], np.float32).reshape(-1, 1)


def ints(*numbers: int) -> IntArray:
    """An int64 array."""
    return np.array(numbers, np.int64)
