"""``deploy/local/up``: ``probewatch serve``, Prometheus and Alertmanager as child processes, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from monitor.client import Server
from monitor.demo.patience import patient
from monitor.demo.server import ChildServer, check_port, free_port
from monitor.errors import ConfigurationError, MonitorError, ServerError
from monitor.shipped import MODEL_NAME, paths

START_SECONDS = 60.0
"""How long Prometheus and Alertmanager may take."""
SCRAPE_SECONDS = 5


class Ports(NamedTuple):
    """All on loopback."""

    server: int
    prometheus: int
    alertmanager: int

    def url(self, port: int) -> str:
        """Where that port answers."""
        return f"http://127.0.0.1:{port}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until Ctrl-C or SIGTERM, or until one of the three ends: then status 1."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    own = given[: given.index("--")] if "--" in given else given
    args = _parser().parse_args(own)
    args.options = given[len(own) + 1 :]
    try:
        with _folder(args.keep) as folder, _stopped_by_signals() as stop:
            _run(args, folder, stop)
    except MonitorError as error:
        print(f"up: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


def _run(args: argparse.Namespace, folder: Path, stop: threading.Event) -> None:
    ports = Ports(port(args.port, 8000), port(args.prometheus_port, 9090), port(args.alertmanager_port, 9093))
    write_configuration(folder, ports)
    with contextlib.ExitStack() as children:

        def start(
            name: str, command: Sequence[str], environment: Mapping[str, str], port: int
        ) -> ChildServer:
            child = ChildServer(command, environment, ports.url(port), folder / f"{name}.log")
            children.callback(child.stop)
            return child

        watchers = [
            start("alertmanager", alertmanager(folder, ports), os.environ, ports.alertmanager),
            start("prometheus", prometheus(folder, ports), os.environ, ports.prometheus),
        ]
        environment = serve_environment(os.environ, folder, ports, shipped=args.model is None)
        server = start("server", serve(args, ports), environment, ports.server)
        print(f"up: starting; logs are in {folder}", flush=True)
        for watcher in watchers:
            _wait_for(watcher, stop)
        if not server.wait_ready(lambda seconds, message: None, stop.is_set):
            return
        print(told(ports, folder), flush=True)
        while not stop.wait(1):
            for child in (*watchers, server):
                child.check_alive()
        print("up: ending", flush=True)


def write_configuration(folder: Path, ports: Ports) -> None:
    """``prometheus.yml`` and ``alertmanager.yml`` for these ports, with the rules that come with the package."""
    target = [f"127.0.0.1:{ports.server}"]
    collected = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": paths()["rules"],
        "alerting": {
            "alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports.alertmanager}"]}]}]
        },
        "scrape_configs": [{"job_name": "vllm", "static_configs": [{"targets": target}]}],
    }
    route = {"receiver": "screen", "group_by": ["alertname", "model_name", "probe"], "group_wait": "5s"}
    routed = {"route": route, "receivers": [{"name": "screen"}]}
    for name, content in (("prometheus.yml", collected), ("alertmanager.yml", routed)):
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def prometheus(folder: Path, ports: Ports) -> list[str]:
    """Prometheus' command line."""
    return [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{ports.prometheus}",
    ]


def alertmanager(folder: Path, ports: Ports) -> list[str]:
    """Alertmanager's, without a cluster of its kind."""
    return [
        program("alertmanager", "prometheus-alertmanager"),
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{ports.alertmanager}",
        "--cluster.listen-address=",
    ]


def serve(args: argparse.Namespace, ports: Ports) -> list[str]:
    """``probewatch serve``: the model and probes that were given, else those that come with the package."""
    shipped: dict[str, Any] = paths()
    probes = args.probe or (shipped["probes"] if args.model is None else [])
    model = args.model or shipped["model"]
    # A laptop's worth, which may have other work: by itself vLLM wants nearly all of the memory to be free.
    laptop = ["--max-model-len=2048", "--gpu-memory-utilization=0.4", f"--served-model-name={MODEL_NAME}"]
    return [
        *(sys.executable, "-m", "monitor.cli", "serve", model),
        *(f"--probe={path}" for path in probes),
        "--host=127.0.0.1",
        f"--port={ports.server}",
        *(laptop if args.model is None else []),
        *args.options,
    ]


def serve_environment(
    environ: Mapping[str, str], folder: Path, ports: Ports, shipped: bool
) -> dict[str, str]:
    """The user's own settings, and what else makes flags visible on one machine. ``shipped``: the model is."""
    defaults = {
        "PROBEWATCH_EVIDENCE_PATH": str(folder / "evidence.sqlite"),
        "PROBEWATCH_ALERTMANAGER_URL": ports.url(ports.alertmanager),
        "VLLM_USE_AOT_COMPILE": "0",
    }
    if shipped:
        defaults["VLLM_CPU_KVCACHE_SPACE"] = "1"
    if "PROBEWATCH_ADMIN_KEY" not in environ:
        defaults["PROBEWATCH_OPEN_EVIDENCE"] = "1"  # everything listens on loopback
    return patient({**defaults, **environ})


def port(given: int | None, usual: int) -> int:
    """A port that nobody listens on: the one that was given, else the usual one, else any.

    Debian starts a Prometheus of its own with the package, so the usual ports are often taken. Raises
    ``ConfigurationError`` for a given one that is.
    """
    if given is not None:
        return check_port(given)
    try:
        return check_port(usual)
    except ConfigurationError:
        return free_port()


def program(*names: str) -> str:
    """The first of these programs that is there. Raises ``ConfigurationError``."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise ConfigurationError(
            f"no {names[0]} on the path; apt-get install prometheus prometheus-alertmanager"
        )
    return found


def told(ports: Ports, folder: Path) -> str:
    """What the screen shows."""
    lines = {
        "chat": f"{ports.url(ports.server)}/v1",
        "evidence": f"{ports.url(ports.server)}/probewatch/ui",
        "metrics": f"{ports.url(ports.server)}/metrics",
        "live table": f"probewatch watch --url {ports.url(ports.server)}",
        "Prometheus": f"{ports.url(ports.prometheus)}/alerts",
        "Alertmanager": ports.url(ports.alertmanager),
        "logs, data": str(folder),
    }
    return "\n".join(
        [*(f"{name:>14}  {where}" for name, where in lines.items()), "up: ready; Ctrl-C ends all"]
    )


def _wait_for(child: ChildServer, stop: threading.Event) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not stop.wait(0.2) and not Server(child.url, timeout=2).answers("/-/ready"):
        child.check_alive()
        if time.monotonic() > deadline:
            raise ServerError(f"{child.url} is not ready after {START_SECONDS:g} s; its log: {child.log}")


@contextlib.contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is None:
        scratch = Path(tempfile.mkdtemp(prefix="probewatch-up-"))
        yield scratch
        shutil.rmtree(scratch)  # after an error it stays: the error names a log in it
        return
    try:
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--keep {kept} cannot be made ({error}); name another folder") from error
    yield kept.absolute()


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy/local/up", description=__doc__, epilog="What follows -- goes to `vllm serve`."
    )
    parser.add_argument(
        "model", nargs="?", help="folder or name (default: the model that comes with the package)"
    )
    parser.add_argument("--probe", action="append", default=[], metavar="FILE", help="artifact that scores")
    for option, usual in (("--port", 8000), ("--prometheus-port", 9090), ("--alertmanager-port", 9093)):
        parser.add_argument(
            option, type=int, metavar="N", help=f"default: {usual}, or a free one if that is taken"
        )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keeps data and logs (default: a scratch folder)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
