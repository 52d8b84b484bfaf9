"""The commands. Exit status: 0 done, 1 a check failed, 2 wrong use; errors are one line."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence

from monitor import __version__

_COMMANDS = {
    "demo": ("monitor.demo", "serve the shipped model that lies, and watch the probes catch it"),
    "watch": ("monitor.watch", "live table of requests and flags of a running server"),
    "audit": ("monitor.audit_command", "examine an audit log for lines changed, removed or cut"),
    "record": (
        "monitor.record",
        "a probe's scores on a server's traffic, without text, to calibrate it with",
    ),
    "export": ("monitor.ui.command", "one response of a running server as a single HTML file"),
    "doctor": ("monitor.doctor", "what would stop the monitor from working here, and the remedy"),
}
_ENGINES = {
    "collect": ("monitor.seam.collect", "activations of labelled chats through the tap, for training"),
    "score": ("monitor.seam.score", "judge transcripts offline, through the engine and the tap"),
}
"""Run an engine of their own; what they do not know is an option of vLLM's."""
_REMOTE = {
    "attach": "attach probes to a running server",
    "detach": "detach probes from a running server",
    "set": "change threshold or action of a probe on a running server",
    "list": "the probes of a running server",
    "status": "what a running server monitors, and how well",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``probewatch``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(arguments)
    args, rest = parser.parse_known_args(arguments)
    if rest and args.command not in ("serve", *_ENGINES):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status = _run(args, rest)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the pipe has had enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not _is_ours(error):
            raise
        print(f"probewatch {args.command}: {error}", file=sys.stderr)
        return _status(error)


def _status(error: Exception) -> int:
    from probes import ProbeError
    from probes.cli import status_of

    if isinstance(error, ProbeError):
        return status_of(error)
    return 2 if type(error).__name__ == "ConfigurationError" else 1


def _is_ours(error: Exception) -> bool:
    from monitor.errors import MonitorError
    from probes import ProbeError

    return isinstance(error, MonitorError | ProbeError)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """All commands, with the arguments of the chosen one alone: importing every room takes seconds."""
    command = arguments[0] if arguments else None
    parser = argparse.ArgumentParser(prog="probewatch", description="Activation probes inside vLLM.")
    parser.add_argument("--version", action="version", version=f"probewatch {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser(
        "serve",
        help="`vllm serve` with the monitor on; refuses to start with a dead tap",
        allow_abbrev=False,
        epilog="example: probewatch serve ./model --probe deception.safetensors --port 8000",
    )
    if command == "serve":
        if len(arguments) > 1 and arguments[1].startswith("-") and arguments[1] not in ("-h", "--help"):
            serve.error(f"MODEL comes first: probewatch serve MODEL {arguments[1]} ...")
        importlib.import_module("monitor.launch").add_arguments(serve)
    for name, (module, summary) in _COMMANDS.items():
        sub = commands.add_parser(name, help=summary)
        if command == name:
            importlib.import_module(module).add_arguments(sub)
    for name, (module, summary) in _ENGINES.items():
        sub = commands.add_parser(name, help=summary, allow_abbrev=False)
        if command == name:
            importlib.import_module(module).add_arguments(sub)
    for name, summary in _REMOTE.items():
        sub = commands.add_parser(name, help=summary)
        if command == name:
            importlib.import_module("monitor.remote").add_arguments(sub, name)
    commands.add_parser("paths", help="where the shipped model, probes, dashboards and rules lie, as JSON")
    if command not in (*_COMMANDS, *_ENGINES, *_REMOTE, "serve", "paths"):
        importlib.import_module("probes.cli").add_commands(commands)
    return parser


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    if args.command == "serve":
        return int(importlib.import_module("monitor.launch").main(args, rest))
    if args.command == "paths":
        print(json.dumps(importlib.import_module("monitor.shipped").paths(), indent=2))
        return 0
    if args.command in _REMOTE:
        return int(importlib.import_module("monitor.remote").main(args))
    if args.command in _ENGINES:
        return int(importlib.import_module(_ENGINES[args.command][0]).main(args, rest))
    if args.command in _COMMANDS:
        return int(importlib.import_module(_COMMANDS[args.command][0]).main(args))
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
