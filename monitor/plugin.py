"""Entry points that vLLM calls. Nothing here can fail to import, and nothing is loaded unless configured.

vLLM swallows errors raised while a plugin is imported and propagates those raised by the function itself:
so this module imports only the standard library, as little of it as can be (every process of vLLM loads it, on every
server beside which it is installed), and ``register`` raises.
"""

from __future__ import annotations

import os
import sys

_ASKED_FOR = ("PROBEWATCH_PROBES", "PROBEWATCH_TAP_LAYERS", "PROBEWATCH_VECTORS", "PROBEWATCH_CONFIG")


def is_configured() -> bool:
    """Whether the environment asks for the monitor at all."""
    return any(os.environ.get(name) for name in _ASKED_FOR)


def _is_child() -> bool:
    """Whether ``multiprocessing`` started this process. One that it started has loaded it."""
    loaded = sys.modules.get("multiprocessing.process")
    return loaded is not None and loaded.parent_process() is not None


def _warn_of_stray_settings() -> None:
    """A misspelt PROBEWATCH_PROBES would otherwise serve unmonitored without a word."""
    stray = sorted(name for name in os.environ if name.startswith("PROBEWATCH_"))
    if stray and not _is_child():
        asked = ", ".join(_ASKED_FOR)
        print(f"probewatch: {', '.join(stray)} set, but none of {asked}: not monitoring", file=sys.stderr)


def register() -> None:
    """``vllm.general_plugins``: called in every process of vLLM, possibly more than once."""
    if "PROBEWATCH_RUN_BY" in os.environ:
        from monitor.lifetime import end_with_the_command

        end_with_the_command()
    if layers := os.environ.get("PROBEWATCH_COLLECT"):
        from monitor.seam import collector

        collector.install([int(layer) for layer in layers.split(",")])
        return
    if not is_configured():
        _warn_of_stray_settings()
        return
    from monitor.attach import make_plan, unmonitored
    from monitor.config import load_settings
    from monitor.errors import AttachError, MonitorError
    from monitor.refusal import file_reason, print_at_exit
    from monitor.seam.engine import install

    if not _is_child():
        print_at_exit()
    try:
        settings = load_settings()
        try:
            plan = make_plan(settings)
        except AttachError as error:
            if settings.on_attach_failure == "refuse":
                raise
            plan = unmonitored(settings, str(error))
        install(settings, plan)
    except MonitorError as error:
        file_reason(str(error))
        raise


def endpoint_plugin() -> object:
    """``vllm.endpoint_plugins``: called in API servers whose VLLM_PLUGINS names ``probewatch``."""
    from monitor.seam.endpoint import ProbewatchEndpoint

    return ProbewatchEndpoint(is_configured())
