"""The course of the demo: start the server, ask, judge, show, stop."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from monitor import shipped
from monitor.client import API_KEY_VARIABLE, Server
from monitor.demo import text
from monitor.demo.outcome import MIN_ANSWERS, Answer, as_json, checks
from monitor.demo.server import ChildServer, check_port, free_port, serve_command, serve_environment
from monitor.demo.session import open_session, served_model
from monitor.demo.traffic import Interviewer
from monitor.demo.view import LiveView, PlainView, View
from monitor.errors import ConfigurationError, MonitorError

DEFAULT_ANSWERS: Final = 210
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``probewatch demo``."""
    parser.epilog = "example: probewatch demo --once --seed 7 --json answers.json"
    parser.add_argument(
        "--once", action="store_true", help="stop by itself; status 0 if the probe did its work"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="seed of the questions (default: random, printed)"
    )
    parser.add_argument(
        "--json", type=Path, default=None, metavar="FILE", help="write every answer with its verdict"
    )
    parser.add_argument(
        "--answers",
        type=int,
        default=DEFAULT_ANSWERS,
        metavar="N",
        help=f"how many (default: {DEFAULT_ANSWERS})",
    )
    parser.add_argument(
        "--port", type=int, default=None, help="of the server it starts (default: a free one)"
    )
    parser.add_argument("--url", default=None, help="use this running server instead of starting one")
    parser.add_argument("--api-key", default=None, help=f"with --url (default: {API_KEY_VARIABLE})")
    parser.add_argument("--admin-key", default=None, help="with --url (default: PROBEWATCH_ADMIN_KEY)")
    parser.add_argument(
        "--keep-log", type=Path, default=None, metavar="FILE", help="keep the server's log here"
    )


def main(args: argparse.Namespace) -> int:
    """0: with --once, everything passed; without, stopped by its user. 1: a check failed or the server died."""
    _check(args)
    view: View = LiveView(Console()) if _is_screen() else PlainView()
    with _stopped_by_signals() as stop:
        try:
            return _with_server(args, view, stop)
        except BrokenPipeError:  # the reader of the pipe has gone; the server is down already
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1


def _with_server(args: argparse.Namespace, view: View, stop: threading.Event) -> int:
    if args.url is not None:
        return _converse(args, Server(args.url, args.api_key, args.admin_key), None, view, stop)
    paths = _shipped()
    port = check_port(args.port) if args.port is not None else free_port()
    log = args.keep_log or _scratch_log()
    url = f"http://127.0.0.1:{port}"
    artifacts = [*paths["probes"], *paths["vectors"]]
    command = serve_command(paths["model"], artifacts, port)
    view.say([f"serving {paths['model']} with {len(artifacts)} artifacts; the server's log: {log}"])
    with tempfile.TemporaryDirectory(prefix="probewatch-demo-", ignore_cleanup_errors=True) as folder:
        evidence = {"PROBEWATCH_EVIDENCE_PATH": str(Path(folder) / "evidence.sqlite")}
        child = ChildServer(command, {**serve_environment(os.environ), **evidence}, url, log)
        try:
            status = _converse(args, Server(url), child, view, stop)
        finally:
            child.stop()
    if args.keep_log is None and status == 0:
        log.unlink(missing_ok=True)
    return status


def _converse(
    args: argparse.Namespace, server: Server, child: ChildServer | None, view: View, stop: threading.Event
) -> int:
    seed = args.seed if args.seed is not None else secrets.randbelow(1_000_000)
    with view:
        if child is not None and not child.wait_ready(view.starting, stop.is_set):
            view.say(["stopped before the server was ready"])
            return 130 if args.once else 0
        session = open_session(server, seed, view, stop)
        interviewer = Interviewer(server, served_model(server), session.probe.name)
        try:
            session.run(interviewer, args.answers, args.once)
        except MonitorError:
            if child is not None:
                time.sleep(1)  # a dying server closes its connections before it ends
                child.check_alive()
            raise
        finally:
            if args.json is not None:
                write_json(args.json, session.answers)
        view.gauges(gauges := session.gauges())
        found = checks(session.tally, session.probe.nominal_fpr, session.flags_counted())
    view.say(text.summary(session.tally, gauges, found, time.monotonic() - session.started_at, seed))
    if args.json is not None:
        view.say([f"every answer with its verdict: {args.json}"])
    if not args.once:
        return 0
    if stop.is_set():
        return 130
    return 0 if all(check.passed for check in found) else 1


def write_json(path: Path, answers: list[Answer]) -> None:
    """Writes the answers in the order of their questions; a reader sees the old file or the whole new one."""
    content = [as_json(answer) for answer in sorted(answers, key=lambda answer: answer.number)]
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise ConfigurationError(f"--json {path} cannot be written: {error}") from error


def _check(args: argparse.Namespace) -> None:
    if args.answers < 1:
        raise ConfigurationError(f"--answers {args.answers}: give at least 1")
    if args.once and args.answers < MIN_ANSWERS:
        raise ConfigurationError(
            f"--answers {args.answers}: a verdict with --once needs at least {MIN_ANSWERS}"
        )
    for option, path in (("--json", args.json), ("--keep-log", args.keep_log)):
        if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
            raise ConfigurationError(f"{option} {path}: name a file in a folder that exists")
    if args.url is not None and (args.port is not None or args.keep_log is not None):
        raise ConfigurationError("--port and --keep-log concern a server of the demo's own; leave them out")


def _shipped() -> dict[str, Any]:
    paths: dict[str, Any] = dict(shipped.paths())
    if not (Path(paths["model"]) / "config.json").is_file():
        raise ConfigurationError(f"the shipped model is not in {paths['model']}; `make organism` trains it")
    if not paths["probes"]:
        raise ConfigurationError(f"no shipped probes lie beside {paths['model']}; `make probes` trains them")
    return paths


def _scratch_log() -> Path:
    with tempfile.NamedTemporaryFile(prefix="probewatch-demo-", suffix=".log", delete=False) as file:
        return Path(file.name)


def _is_screen() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and a polite kill set: the demo ends in order. The second one ends it at once."""
    stop = threading.Event()

    def handle(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
