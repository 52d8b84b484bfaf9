"""docs/compatibility.md: what is touched, why, and in which versions it is found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from monitor.seam.symbols import Finding
from monitor.seam.touched import Runner, Touched

Column = Mapping[Runner, list[Finding]]
"""The findings in one vLLM."""

_HEAD = """\
# Compatibility with vLLM

Written by `make compat` from the released wheels; do not edit. The table itself is
[monitor/seam/touched.py](../monitor/seam/touched.py).

Everything inside vLLM that the monitor touches stands here once. A plugin lives off functions and fields that vLLM does
not promise to keep, so each is looked for: in the source of the installed vLLM when an engine starts, which refuses
with the name of what is missing, and in the wheels of every supported version by this page. Nothing of vLLM is imported
for either.

| mark | meaning |
|---|---|
| yes | it is there, and takes what the monitor passes |
| **missing** | it is not there, or lacks a field: the monitor refuses this version |
| **differs** | it is there and takes other parameters: the monitor refuses this version |
| no | it is not there, and the monitor does without: the row is optional |

| the monitor | what it does |
|---|---|
| wraps | replaces it in its class or module, and calls the original |
| shadows | the same on one object |
| calls | calls it |
| answers | implements it for vLLM to call |
| reads | reads these fields of it, or the name itself |
"""

_SECTIONS: Mapping[Runner, str] = {
    "both": "Whichever model runner",
    "v1": "The V1 model runner",
    "v2": "The V2 model runner",
}

_TAIL = """\
## To support another version

1. Widen `monitor/versions.py` and run `make compat`.
2. For each **missing** or **differs**, find out what that version does instead, teach it to the seam, and add the new
   place to the row (`elsewhere`), or change the row.
3. A name may stay and change its meaning; no table sees that. `make test` with that version installed does.

The block classes of the model families are not in this table: `monitor/residual.py` declares how each spells the
residual stream, and they are verified on the loaded model.
"""


def page(columns: Mapping[str, Column]) -> str:
    """The whole page as Markdown. ``columns``: by version, in order."""
    parts = [_HEAD, summary(columns), ""]
    for runner, title in _SECTIONS.items():
        parts += [f"## {title}", "", *_table(runner, columns), ""]
    details = list(_details(columns))
    if details:
        parts += ["## What is not there", "", *details, ""]
    return "\n".join([*parts, _TAIL])


def summary(columns: Mapping[str, Column]) -> str:
    """One line: what is broken where."""
    rows = sum(len(findings) for findings in next(iter(columns.values())).values())
    broken = {
        version: count
        for version, column in columns.items()
        if (count := sum(finding.broken for finding in _all(column)))
    }
    told = ", ".join(f"{count} in {version}" for version, count in broken.items())
    return f"{rows} rows, {len(columns)} versions; missing or different: {told or 'nothing'}."


def _all(column: Column) -> Iterable[Finding]:
    return (finding for findings in column.values() for finding in findings)


def _table(runner: Runner, columns: Mapping[str, Column]) -> Iterable[str]:
    yield f"| in vLLM | the monitor | why | {' | '.join(columns)} |"
    yield "|" + "---|" * (3 + len(columns))
    for across in zip(*(column[runner] for column in columns.values()), strict=True):
        row = across[0].row
        yield f"| {what(row)} | {row.how} | {_why(row)} | {' | '.join(map(_mark, across))} |"


def what(row: Touched) -> str:
    """What is touched, and which of its fields or parameters."""
    module, _, name = row.place.partition(":")
    others = "".join(f", or in `{place.partition(':')[0]}`" for place in row.elsewhere)
    if row.how == "reads":
        names = ", ".join(f"`{each}`" for each in row.names.split(", "))
        return f"`{module}`{others} `{name}`" + (f": {names}" if row.names else "")
    more = "" if row.exact or row.how == "calls" else "..."
    parameters = ", ".join(filter(None, (row.names, row.keywords, more)))
    return f"`{module}`{others} `{name}({parameters})`"


def _why(row: Touched) -> str:
    return f"{row.why} (optional)" if row.optional else row.why


def _mark(finding: Finding) -> str:
    if finding.status == "present":
        return "yes"
    return f"**{finding.status}**" if finding.broken else "no"


def _details(columns: Mapping[str, Column]) -> Iterable[str]:
    for version, column in columns.items():
        for finding in _all(column):
            if finding.status != "present":
                needed = "" if finding.broken else " (optional)"
                yield f"- {version}: {finding.detail}{needed}"
