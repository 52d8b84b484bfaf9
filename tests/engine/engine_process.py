"""Runs one in-process vLLM engine as told by a JSON job, and writes down everything it produced.

A process of its own for each engine: vLLM keeps global state, and a refusal must end somewhere.

Job: {"model", "probes": [files], "engine": {LLM arguments}, "settings": {PROBEWATCH_*}, "sabotage": name|null,
"vectors": [files], "phases": [PHASE]}, where a phase is {"prompts": [[ids]], "max_tokens": [n],
"adapters": [folder|null]|null, "steer": [probewatch_steer|null]|null, "sabotage": name|null},
{"storm": {arguments of ``storm.Storm``}}, {"chats": [[messages]], "params": [{SamplingParams}]}
or {"beams": [[ids]], "width": n, "max_tokens": n}. With "tokenizer": true the engine has one.
Result folder: phase_I.npz (rows of every sequence), result.json (texts of the accounting).
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
    reader = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.probewatch.reader
    original, calls = reader.complete, iter(range(1 << 30))

    def complete(step: Any, output: Any) -> Any:
        if next(calls) == 5:
            raise RuntimeError("planted")
        return original(step, output)

    reader.complete = complete


class _Raw:
    """How many messages held projections in place of states; steps that were read together count as one."""

    messages = 0


def _count_raw() -> None:
    from monitor.bank import ProbeBank

    original = ProbeBank.made

    def made(self: ProbeBank, step: Any) -> Any:
        _Raw.messages += step.raw
        return original(self, step)

    ProbeBank.made = made  # type: ignore[method-assign]


def _unsalted(_: Any) -> None:
    """The prefix cache as it is without us: it knows nothing about steering."""
    from monitor.seam import inputs, scheduler

    inputs.cache_salt = lambda arguments, vectors, salt: salt  # type: ignore[assignment]
    scheduler.unshare = lambda *_: None  # type: ignore[assignment]


_SABOTAGE = {"failing_bookkeeping": _failing_bookkeeping, "unsalted": _unsalted}


def _metrics() -> dict[str, float]:
    from prometheus_client import REGISTRY

    return {
        f"{sample.name}{json.dumps(dict(sorted(sample.labels.items())))}": sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def run(job: dict[str, Any], out: Path) -> None:
    """Starts the engine, runs the phases, writes the results."""
    if job["probes"] or job.get("vectors"):
        os.environ["PROBEWATCH_PROBES"] = ",".join(job["probes"])
        os.environ["PROBEWATCH_VECTORS"] = ",".join(job.get("vectors", []))
        os.environ.update({f"PROBEWATCH_{name}": value for name, value in job.get("settings", {}).items()})
    if job.get("sabotage") == "dead_tap":
        _dead_tap()
    _count_raw()
    from vllm import LLM

    llm = LLM(
        model=job["model"],
        skip_tokenizer_init=not job.get("tokenizer"),
        disable_log_stats=False,
        **job["engine"],
    )
    result: dict[str, Any] = {"phases": []}
    for index, phase in enumerate(job["phases"]):
        if sabotage := phase.get("sabotage"):
            _SABOTAGE[sabotage](llm)
        kinds = {"storm": _storm, "chats": _chats, "beams": _beams, "prompts": _generate}
        run_phase = next(kinds[kind] for kind in kinds if kind in phase)
        result["phases"].append(run_phase(llm, phase, out / f"phase_{index}.npz"))
    result["wrapped"] = _wrapped()
    (out / "result.json").write_text(json.dumps(result))


def _wrapped() -> list[str]:
    """Names of the worker's methods that the monitor has wrapped in this process."""
    from vllm.v1.worker.cpu_worker import CPUWorker

    return sorted(n for n in dir(CPUWorker) if hasattr(getattr(CPUWorker, n), "__probewatch_original__"))


def _generate(llm: Any, phase: dict[str, Any], file: Path) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    params = [
        SamplingParams(
            max_tokens=n,
            temperature=0,
            detokenize=False,
            ignore_eos=True,
            extra_args={"probewatch_steer": steer} if steer else None,
        )
        for n, steer in zip(
            phase["max_tokens"], phase.get("steer") or [None] * len(phase["prompts"]), strict=True
        )
    ]
    folders = phase.get("adapters") or [None] * len(params)
    known = sorted({folder for folder in folders if folder})
    adapters = [LoRARequest(Path(f).name, known.index(f) + 1, f) if f else None for f in folders]
    prompts: Any = [{"prompt_token_ids": ids} for ids in phase["prompts"]]
    outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=adapters if any(adapters) else None)
    return _described(llm, outputs, file)


def _chats(llm: Any, phase: dict[str, Any], file: Path) -> dict[str, Any]:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    params = []
    for given in phase["params"]:
        given = dict(given)
        choice = given.pop("choice", None)
        structured = StructuredOutputsParams(choice=choice) if choice else None
        params.append(SamplingParams(temperature=0, structured_outputs=structured, **given))
    return _described(llm, llm.chat(phase["chats"], params, use_tqdm=False), file)


def _beams(llm: Any, phase: dict[str, Any], file: Path) -> dict[str, Any]:
    from vllm.sampling_params import BeamSearchParams

    recent = llm.llm_engine.output_processor.probewatch.engines.recent
    before = len(recent.newest(10**9))
    params = BeamSearchParams(beam_width=phase["width"], max_tokens=phase["max_tokens"], ignore_eos=True)
    llm.beam_search([{"prompt_token_ids": ids} for ids in phase["beams"]], params)
    records = recent.newest(10**9)
    return _account(llm, records[: len(records) - before], file)


def _described(llm: Any, outputs: list[Any], file: Path) -> dict[str, Any]:
    tap = getattr(llm.llm_engine.output_processor, "probewatch", None)
    records = [] if tap is None else [tap.engines.recent.of(output.request_id)[0] for output in outputs]
    described = [
        {
            "tokens": list(output.outputs[0].token_ids),
            "text": output.outputs[0].text,
            "finish_reason": output.outputs[0].finish_reason,
            "cached": output.num_cached_tokens,
            "verdict": getattr(output, "probewatch", None),
        }
        for output in outputs
    ]
    return {"outputs": described, **_account(llm, records, file)}


def _storm(llm: Any, phase: dict[str, Any], file: Path) -> dict[str, Any]:
    import storm

    happened = storm.drive(llm.llm_engine, storm.Storm(**phase["storm"]))
    prefix = f"storm-{phase['storm']['seed']}-"
    recent = llm.llm_engine.output_processor.probewatch.engines.recent
    records = [record for record in recent.newest(10**9) if record.response_id.startswith(prefix)]
    return {"happened": happened, **_account(llm, records, file)}


def _account(llm: Any, records: list[Any], file: Path) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for i, record in enumerate(records):
        arrays[f"states_{i}"] = record.states
        arrays[f"ids_{i}"] = np.array(record.token_ids)
    np.savez(file, **arrays)
    tap = getattr(llm.llm_engine.output_processor, "probewatch", None)
    return {
        "metrics": _metrics(),
        "raw_messages": _Raw.messages,
        "still_running": len(tap.running) if tap is not None else 0,
        "last_error": tap.engines.last_error if tap is not None else None,
    }


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
