"""Runs one in-process vLLM engine as told by a JSON job, and writes down everything it produced.

A process of its own for each engine: vLLM keeps global state, and a refusal must end somewhere.

Job: {"model", "probes": [files], "engine": {LLM arguments}, "sabotage": name|null,
"phases": [{"prompts": [[ids]], "max_tokens": [n], "sabotage": name|null}]}
Result folder: phase_I.npz (rows of every request), result.json (texts of the accounting).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def _dead_tap() -> None:
    from monitor.seam import worker

    worker.install = lambda *_: None  # type: ignore[assignment]


def _failing_bookkeeping(llm: Any) -> None:
    monitor = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.probewatch
    original, calls = monitor.after_sampling, iter(range(1 << 30))

    def after_sampling(output: Any) -> None:
        if next(calls) == 5:
            raise RuntimeError("planted")
        original(output)

    monitor.after_sampling = after_sampling


def _metrics() -> dict[str, float]:
    from prometheus_client import REGISTRY

    return {
        f"{sample.name}{json.dumps(dict(sorted(sample.labels.items())))}": sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    }


def run(job: dict[str, Any], out: Path) -> None:
    """Starts the engine, runs the phases, writes the results."""
    if job["probes"]:
        os.environ["PROBEWATCH_PROBES"] = ",".join(job["probes"])
    if job.get("sabotage") == "dead_tap":
        _dead_tap()
    from vllm import LLM, SamplingParams

    llm = LLM(model=job["model"], skip_tokenizer_init=True, disable_log_stats=False, **job["engine"])
    result: dict[str, Any] = {"phases": []}
    for index, phase in enumerate(job["phases"]):
        if phase.get("sabotage") == "failing_bookkeeping":
            _failing_bookkeeping(llm)
        params = [
            SamplingParams(max_tokens=n, temperature=0, detokenize=False, ignore_eos=True)
            for n in phase["max_tokens"]
        ]
        prompts: Any = [{"prompt_token_ids": ids} for ids in phase["prompts"]]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        result["phases"].append(_phase(llm, outputs, out / f"phase_{index}.npz"))
    worker_class = type(llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker)
    wrapped = {
        name for name in dir(worker_class) if hasattr(getattr(worker_class, name), "__probewatch_original__")
    }
    result["wrapped"] = sorted(wrapped)
    (out / "result.json").write_text(json.dumps(result))


def _phase(llm: Any, outputs: list[Any], file: Path) -> dict[str, Any]:
    tap = getattr(llm.llm_engine.output_processor, "probewatch", None)
    arrays: dict[str, Any] = {}
    described = []
    for i, output in enumerate(outputs):
        described.append(
            {
                "tokens": list(output.outputs[0].token_ids),
                "cached": output.num_cached_tokens,
                "verdict": getattr(output, "probewatch", None),
            }
        )
        if tap is not None:
            (record,) = tap.frontend.recent.of(output.request_id)
            arrays[f"states_{i}"] = record.states
            arrays[f"ids_{i}"] = np.array(record.token_ids)
    np.savez(file, **arrays)
    return {
        "outputs": described,
        "metrics": _metrics(),
        "still_running": len(tap.running) if tap is not None else 0,
        "last_error": tap.frontend.last_error if tap is not None else None,
    }


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
