"""``make compat``: looks for everything the monitor touches in the released wheels of vLLM, and prints a table.

Status 1 if something the monitor needs is missing from a version, 2 if the wheels cannot be read.
"""

from __future__ import annotations

import argparse
import functools
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.compat.page import Column, page, summary
from deploy.compat.wheels import UnreadableIndex, Wheel, number, releases, source
from monitor.seam.symbols import Reader, examine, installed
from monitor.seam.touched import TOUCHED
from monitor.versions import NEWEST, OLDEST

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the page; see ``--help``."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.write and (args.installed or args.versions):
        parser.error("--write is for all supported versions at once; leave out --installed and --versions")
    try:
        columns = {"installed": look(installed)} if args.installed else _released(args.index, args.versions)
    except (UnreadableIndex, zipfile.BadZipFile, SyntaxError) as error:
        print(f"compat: {error}", file=sys.stderr)
        return 2
    print(page(columns))
    if args.write:
        PAGE.write_text(page(columns), encoding="utf-8")
    print(summary(columns), file=sys.stderr)
    return int(
        any(finding.broken for column in columns.values() for each in column.values() for finding in each)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make compat", description=__doc__)
    parser.add_argument(
        "--versions",
        nargs="+",
        metavar="VERSION",
        help="releases, or minor versions whose newest patch is meant (default: each supported minor version)",
    )
    parser.add_argument(
        "--index", default="https://pypi.org/simple/vllm/", help="the project's page on a package index"
    )
    parser.add_argument("--installed", action="store_true", help="look at the installed vLLM instead")
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name} as well")
    return parser


def look(read: Reader) -> Column:
    """The findings in the vLLM whose modules ``read`` gives."""
    return {runner: examine(rows, read) for runner, rows in TOUCHED.items()}


def _released(index: str, versions: Sequence[str] | None) -> Mapping[str, Column]:
    columns = {}
    for wheel in choose(releases(index), versions):
        print(f"compat: reading vLLM {wheel.version}", file=sys.stderr)
        with wheel.open() as members:
            columns[wheel.version] = look(functools.partial(source, members))
    return columns


def choose(found: Mapping[str, Wheel], versions: Sequence[str] | None) -> list[Wheel]:
    """The newest wheel of each version asked for. Raises ``UnreadableIndex`` for one that is not there."""
    if versions is None:
        versions = [f"{OLDEST[0]}.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1)]
    chosen = []
    for asked in versions:
        matching = [version for version in found if f"{version}.".startswith(f"{asked}.")]
        if not matching:
            raise UnreadableIndex(
                f"the index has no wheel of vLLM {asked}, the newest is {max(found, key=number)}; give other --versions"
            )
        chosen.append(found[matching[-1]])
    return chosen


if __name__ == "__main__":
    sys.exit(main())
