"""``probewatch audit``: examining an audit log."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from monitor.audit_verify import verify
from monitor.errors import ConfigurationError, printable

KEY_VARIABLE = "PROBEWATCH_AUDIT_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``audit``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "verify",
        help="find lines that were changed, removed, swapped or cut; status 1 if there are any",
        epilog="example: probewatch audit verify audit.jsonl.1 audit.jsonl --at-least 120000",
    )
    check.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the log; rotated parts first")
    check.add_argument("--key-file", type=Path, help=f"file with the log's key (default: ${KEY_VARIABLE})")
    check.add_argument(
        "--at-least", type=int, default=0, metavar="SERIAL", help="a serial known from elsewhere to exist"
    )


def main(args: argparse.Namespace) -> int:
    """Prints what was found."""
    try:
        report = verify(args.files, _key(args.key_file), args.at_least)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename}: {error.strerror}; name a log that can be read"
        ) from error
    for fault in report.faults:
        print(f"probewatch audit: {printable(fault)}", file=sys.stderr)
    if report.faults:
        return 1
    print(
        f"intact: {report.lines} lines, the last with serial {report.last.serial} and digest {report.last.digest}"
    )
    if report.lines and report.signed and _key(args.key_file) is None:
        print(f"its signatures were not checked: set {KEY_VARIABLE} or give --key-file")
    return 0


def _key(file: Path | None) -> bytes | None:
    if file is None:
        return os.environ.get(KEY_VARIABLE, "").encode() or None
    key = file.read_bytes().strip()
    if not key:
        raise ConfigurationError(f"--key-file {file} is empty; name the file that holds the log's key")
    return key
