"""Engines shared between tests: each start costs most of a minute."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pytest
import tiny

from monitor.demo.patience import patient
from monitor.seam import __file__ as _seam
from probes.identity import model_identity
from probes.testing import write_artifact

ROOT = Path(_seam).resolve().parents[2]
ENGINE = {
    "max_model_len": 512,
    "max_num_batched_tokens": 256,  # long prompts are split: chunked prefill
    "max_num_seqs": 32,
    "block_size": 32,  # the default of 128 would never hit the prefix cache here
    **machine.MEMORY,
}
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
}


@dataclass(frozen=True)
class Finished:
    """What an engine process left behind."""

    status: int
    log: str
    result: dict[str, Any]
    folder: Path

    def phase(self, index: int) -> dict[str, Any]:
        """Outputs and counters of one phase."""
        found: dict[str, Any] = self.result["phases"][index]
        return found

    def sequences(self, index: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """(states [T, K], token ids [T + 1]) of every sequence of one phase."""
        found = self.arrays(index)
        n = len(found) // 2
        return [found[f"states_{i}"] for i in range(n)], [found[f"ids_{i}"] for i in range(n)]

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Rows of every request of one phase."""
        return dict(np.load(self.folder / f"phase_{index}.npz"))


Runner = Callable[..., Finished]


@pytest.fixture(scope="session")
def run_engine(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Runs an engine process and waits for it."""

    def run(model: Path, probes: list[Path], phases: list[dict[str, Any]], **job: Any) -> Finished:
        folder = tmp_path_factory.mktemp("engine")
        engine = {**ENGINE, **job.pop("engine", {})}
        environment = job.pop("environment", {})
        described = {
            "model": str(model),
            "probes": list(map(str, probes)),
            "phases": phases,
            "engine": engine,
            **job,
        }
        (folder / "job.json").write_text(json.dumps(described))
        script = str(Path(__file__).with_name("engine_process.py"))
        done = subprocess.run(
            [sys.executable, script, str(folder / "job.json"), str(folder)],
            env=patient({**os.environ, **ENVIRONMENT, **environment}),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        file = folder / "result.json"
        result = json.loads(file.read_text()) if file.exists() else {}
        return Finished(done.returncode, done.stdout + done.stderr, result, folder)

    return run


@dataclass(frozen=True)
class Subject:
    """A random-weight model and probes of several kinds bound to it."""

    model: Path
    probes: list[Path]


def make_subject(folder: Path, model_type: str, dtype: str) -> Subject:
    """Four probes on three layers: one and two layers, logit, projection and cosine."""
    import torch

    model = tiny.write_model(folder / "model", model_type, getattr(torch, dtype))
    binding = model_identity(model).binding()
    wanted = [
        {"name": "one-layer", "layers": (1,)},
        {"name": "two-layers", "layers": (0, 2)},
        {"name": "projection", "layers": (1, 2), "kind": "steering", "scoring": "projection"},
        {"name": "cosine", "layers": (2,), "kind": "steering", "scoring": "cosine"},
    ]
    probes = [
        write_artifact(
            folder / f"{spec['name']}.safetensors",
            seed=seed,
            d_model=tiny.D_MODEL,
            binding=binding,
            threshold=0.0,
            **spec,
        )
        for seed, spec in enumerate(wanted)
    ]
    return Subject(model, probes)
