"""Engine configurations the monitor refuses, each with the setting to change. Never run wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from monitor.errors import CompatibilityError
from monitor.versions import NEWEST, OLDEST

_Rule = tuple[str, Callable[[Any], bool], str]

_REFUSED: tuple[_Rule, ...] = (
    (
        "the V2 model runner",
        lambda c: bool(getattr(c, "use_v2_model_runner", False)),
        "set VLLM_USE_V2_MODEL_RUNNER=0",
    ),
    (
        "asynchronous scheduling",
        lambda c: bool(c.scheduler_config.async_scheduling),
        "add --no-async-scheduling",
    ),
    (
        "pipeline parallelism",
        lambda c: c.parallel_config.pipeline_parallel_size > 1,
        "use --pipeline-parallel-size 1",
    ),
    (
        "tensor parallelism",
        lambda c: c.parallel_config.tensor_parallel_size > 1,
        "use --tensor-parallel-size 1",
    ),
    (
        "data parallelism",
        lambda c: c.parallel_config.data_parallel_size > 1,
        "use --data-parallel-size 1",
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
        lambda c: bool(getattr(c.parallel_config, "enable_dbo", False)),
        "remove --enable-dbo",
    ),
    ("LoRA adapters", lambda c: c.lora_config is not None, "remove --enable-lora"),
    ("a KV connector", lambda c: c.kv_transfer_config is not None, "remove --kv-transfer-config"),
    ("several API servers", lambda c: _api_servers(c) > 1, "use --api-server-count 1"),
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
    ("pooling models", lambda c: c.model_config.runner_type == "pooling", "serve a generating model"),
)


def _api_servers(vllm_config: Any) -> int:
    return int(getattr(vllm_config.parallel_config, "_api_process_count", 1) or 1)


def check_version() -> None:
    """Raises ``CompatibilityError`` unless the installed vLLM is one this seam was written against."""
    found = vllm_version()
    release = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    if not OLDEST <= release <= NEWEST:
        low, high = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
        raise CompatibilityError(f"vLLM {found} is not supported; install one from {low} to {high}")


def vllm_version() -> str:
    """Version of the installed vLLM."""
    import vllm

    return str(vllm.__version__)


def check(vllm_config: Any) -> None:
    """Raises ``CompatibilityError`` naming the first unsupported feature that is on, and how to turn it off."""
    for feature, is_on, remedy in _REFUSED:
        if is_on(vllm_config):
            raise CompatibilityError(
                f"{feature} is on, which this version of the monitor cannot score; {remedy}"
            )
