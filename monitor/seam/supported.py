"""Engine configurations the monitor refuses, each with the setting to change. Never run wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monitor.errors import CompatibilityError

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
    ("pooling models", lambda c: c.model_config.runner_type == "pooling", "serve a generating model"),
)


def check(vllm_config: Any) -> None:
    """Raises ``CompatibilityError`` naming the first unsupported feature that is on, and how to turn it off."""
    for feature, is_on, remedy in _REFUSED:
        if is_on(vllm_config):
            raise CompatibilityError(
                f"{feature} is on, which this version of the monitor cannot score; {remedy}"
            )
