"""One case as one HTML file: the page's own renderer and the data, no request to anywhere.

The scripts of the page are JavaScript modules; a file that is opened from disk cannot load modules, so those that
draw a case are joined into one script. The file's policy names the digests of that script and of the style sheet:
a browser runs nothing else in it, whatever the data says.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from typing import Any, Final

from monitor.ui.assets import assets

TEMPLATE_NAME: Final = "case.html"
PLACEHOLDER: Final = '{"case": null}'
"""Stands in the template where the data goes; the page replaces it as ``case_html`` does."""
ENTRY: Final = "standalone.js"

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async )?(function|class|const) )", re.MULTILINE)
_MODULE_SYNTAX = re.compile(r"^\s*(import|export)\b|\bimport\(", re.MULTILINE)


def case_html(case: dict[str, Any], probes: list[dict[str, Any]], source: str, exported_at: float) -> str:
    """The whole file.

    ``case``: body of ``GET /requests/{id}``; ``probes``: body of ``GET /probes``; ``source``: the server's address;
    ``exported_at``: Unix time, seconds.
    """
    data = {"case": case, "probes": probes, "source": source, "exported_at": exported_at}
    return case_template().replace(PLACEHOLDER, as_data_block(data))


def as_data_block(data: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data).replace("<", "\\u003c")


@functools.cache
def case_template() -> str:
    """The file without its data."""
    style, script = assets()["style.css"].text, joined(ENTRY)
    policy = f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; base-uri 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>probewatch case</title>\n'
        f'<style>{style}</style>\n</head>\n<body class="standalone">\n<main id="main"></main>\n'
        f'<script type="application/json" id="data">{PLACEHOLDER}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def joined(entry: str) -> str:
    """A module and all that it imports as one classic script, each once and after what it needs.

    Raises ``ValueError`` for a form of import or export that the joining does not know.
    """
    order: list[str] = []

    def visit(name: str) -> None:
        for needed in _IMPORT.findall(assets()[name].text):
            if needed not in order:
                visit(needed)
        order.append(name)

    visit(entry)
    script = "".join(_plain(name) for name in order)
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError(f"{entry} would end its own script element; write the tag in two parts")
    return f'(() => {{\n"use strict";\n{script}}})();\n'


def _plain(name: str) -> str:
    text = _EXPORT.sub("", _IMPORT.sub("", assets()[name].text))
    if found := _MODULE_SYNTAX.search(text):
        raise ValueError(
            f"{name}: {found[0]!r} cannot be joined; import and export by name, one statement a line"
        )
    return text


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
