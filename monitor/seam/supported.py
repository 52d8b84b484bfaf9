"""Engine configurations the monitor refuses, each with the setting to change. Never run wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from monitor.errors import CompatibilityError
from monitor.seam.symbols import check_capabilities
from monitor.seam.touched import Runner
from monitor.versions import NEWEST, OLDEST

_Rule = tuple[str, Callable[[Any], bool], str]

_REFUSED: tuple[_Rule, ...] = (
    (
        "asynchronous scheduling with speculative decoding on the V1 model runner",
        lambda c: (
            bool(c.scheduler_config.async_scheduling)
            and c.speculative_config is not None
            and runner_name(c) == "v1"
        ),
        "add --no-async-scheduling",
    ),
    (
        "context parallelism",
        lambda c: (
            getattr(c.parallel_config, "prefill_context_parallel_size", 1) > 1
            or getattr(c.parallel_config, "decode_context_parallel_size", 1) > 1
        ),
        "use context-parallel sizes of 1",
    ),
    (
        "dual-batch overlap",
        lambda c: (
            bool(getattr(c.parallel_config, "enable_dbo", False))
            or int(getattr(c.parallel_config, "ubatch_size", 0) or 0) > 1
        ),
        "remove --enable-dbo and --ubatch-size",
    ),
    (
        "sequence-parallel MoE",
        lambda c: (
            bool(getattr(c.parallel_config, "use_sequence_parallel_moe", False))
            and bool(getattr(c.model_config, "is_moe", True))
        ),
        "use another --all2all-backend, or --data-parallel-size 1",
    ),
    (
        "sequence parallelism",
        lambda c: bool(getattr(c.compilation_config.pass_config, "enable_sp", False)),
        'add --compilation-config \'{"pass_config": {"enable_sp": false}}\'',
    ),
    ("a KV connector", lambda c: c.kv_transfer_config is not None, "remove --kv-transfer-config"),
    (
        "vLLM's Rust front end",
        lambda c: os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"),
        "unset VLLM_USE_RUST_FRONTEND",
    ),
    (
        "weights that are not those of the files (--load-format dummy)",
        lambda c: str(c.load_config.load_format) == "dummy",
        "use another --load-format",
    ),
    ("--hf-overrides", lambda c: bool(c.model_config.hf_overrides), "remove --hf-overrides"),
    ("a pooling model", lambda c: c.model_config.runner_type == "pooling", "serve a generating model"),
)


def check_steering(vllm_config: Any) -> None:
    """Raises ``CompatibilityError`` where the rows of a step are known too late to be steered."""
    if getattr(vllm_config.speculative_config, "enable_adaptive_verification", False):
        raise CompatibilityError(
            "adaptive verification of drafts is on, with which nothing can be steered; turn it off, or leave out "
            "--vector"
        )


def gates_need(vllm_config: Any) -> str | None:
    """What probe-gated steering lacks in this engine, None if nothing: a gate's state lives in one worker."""
    config = vllm_config.parallel_config
    if config.tensor_parallel_size > 1 or config.pipeline_parallel_size > 1:
        return "one worker an engine (--tensor-parallel-size 1 and --pipeline-parallel-size 1)"
    return None


def runner_name(vllm_config: Any) -> Runner:
    """``v1`` or ``v2``, the model runner that vLLM chose."""
    return "v2" if getattr(vllm_config, "use_v2_model_runner", False) else "v1"


def check_version() -> None:
    """Raises ``CompatibilityError`` unless the installed vLLM is one this seam was written against, and has what
    it touches whichever model runner is used."""
    found = vllm_version()
    release = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if not OLDEST <= release <= NEWEST:
        low, high = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        raise CompatibilityError(f"vLLM {found} is not supported; install one from {low} to {high}")
    check_capabilities(found)


def vllm_version() -> str:
    """Version of the installed vLLM."""
    import vllm

    return str(vllm.__version__)


def check(vllm_config: Any) -> None:
    """Raises ``CompatibilityError`` naming what this vLLM's model runner lacks, or the first unsupported feature that
    is on, and how to turn it off."""
    check_capabilities(vllm_version(), runner_name(vllm_config))
    for feature, is_on, remedy in _REFUSED:
        if is_on(vllm_config):
            raise CompatibilityError(
                f"{feature} is on, which this version of the monitor cannot score; {remedy}"
            )


def worker_classes() -> list[type]:
    """Worker classes of this platform, each of which warms up in its own way."""
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu_worker import Worker

    if not current_platform.is_cpu():
        return [Worker]
    from vllm.v1.worker.cpu_worker import CPUWorker

    return [Worker, CPUWorker]
