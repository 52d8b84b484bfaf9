"""Every thing that an operator can do to a running server, once, and what came out: ``make walkthrough``.

Starts the shipped model, types the commands below into a shell, and writes docs/walkthrough.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import cast

from bench.served import served
from monitor.client import ADMIN_HEADER
from monitor.demo.server import free_port, serve_environment
from monitor.shipped import MODEL_NAME, paths
from probes.organism import cases

ROOT = Path(__file__).resolve().parents[1]
KEY = "change-me"
SHOWN = 900
"""Characters of an output that are kept."""

HEAD = """# A walk through a running server

`make walkthrough` starts the shipped model, types these commands and writes this page: nothing here is typed by hand.
Long outputs are cut ("..."). The server was started with

```
{started}
```

and the environment holds `URL`, `PROBEWATCH_ADMIN_KEY`, `ADMIN` (the header with that key), and `SYSTEM` and `QUESTION`
of a case in which the model lies.
"""

ASK = (
    """jq -n --arg s "$SYSTEM" --arg q "$QUESTION" '{model: "%s", temperature: 0, messages: """
    """[{role: "system", content: $s}, {role: "user", content: $q}]} + %s' """
    """| curl -s "$URL/v1/chat/completions" -H 'Content-Type: application/json' -d @- | tee reply.json """
    """| jq -c '.choices[0] | [.message.content, .finish_reason, .stop_reason]'"""
)


def ask(more: str = "{}") -> str:
    """The command that asks the tempting question."""
    return ASK % (MODEL_NAME, more)


STEPS = (
    ("The server is up, and nothing is attached yet.", "probewatch status --url $URL"),
    ("The model lies; nobody says so.", ask()),
    (
        "Attach the deception probe and a concept probe. Nothing restarts.",
        "probewatch attach deception.safetensors believed-valence.safetensors --url $URL",
    ),
    ("The same question again: the reply carries the verdict.", ask() + "; jq -c .probewatch reply.json"),
    (
        "Its tokens, and the three with the highest scores.",
        """curl -s "$URL/v1/probewatch/requests/$(jq -r .id reply.json)" -H "$ADMIN" """
        """| jq -c '.probes.deception | [.score, .threshold, (.tokens | map(select(.score)) | sort_by(-.score)[:3] """
        """| map([.position, .token, .score]))]'""",
    ),
    (
        "The alert.",
        """curl -s "$URL/v1/probewatch/alerts?limit=1" -H "$ADMIN" | jq -c '.[0]'""",
    ),
    ("The page that Prometheus scrapes.", "curl -s $URL/metrics | grep ^probewatch_alerts_total"),
    ("Let the probe stop such an answer.", "probewatch set deception action=stop --url $URL"),
    ("It ends at the next token.", ask()),
    ("Steer one request by hand.", ask('{vllm_xargs: {probewatch_steer: "honesty:2"}}')),
    (
        "Or steer wherever the probe fires, and nowhere else.",
        "probewatch set deception action=steer:honesty:2 --url $URL",
    ),
    ("The tempting question.", ask()),
    (
        "What cannot be done is said.",
        ask('{vllm_xargs: {probewatch_steer: "kindness:2"}}') + "; jq -c .error reply.json",
    ),
    ("", "probewatch attach ../../etc/passwd --url $URL"),
    ("", "probewatch set deception threshold=nan --url $URL"),
    ("Detach.", "probewatch detach believed-valence --url $URL; probewatch list --url $URL"),
)


def serve_command(port: int) -> list[str]:
    """The command of a reader, with this machine's port."""
    found = paths()
    honesty = next(str(p) for p in cast("list[str]", found["vectors"]) if Path(str(p)).stem == "honesty")
    command = [sys.executable, "-m", "monitor.cli", "serve", str(found["model"]), "--tap-layers", "2,3,4"]
    return [
        *command,
        "--vector",
        honesty,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--served-model-name",
        MODEL_NAME,
    ]


def walk(folder: Path) -> str:
    """The page."""
    probe_dir = folder / "probes"
    probe_dir.mkdir()
    for path in cast("list[str]", paths()["probes"]):
        shutil.copy(str(path), probe_dir)
    port = free_port()
    settings = {
        "PROBEWATCH_PROBE_DIR": str(probe_dir),
        "PROBEWATCH_ADMIN_KEY": KEY,
        "PROBEWATCH_EXPOSE": "scores",
    }
    environment = {**serve_environment(os.environ), **settings, "PROBEWATCH_OPEN_EVIDENCE": "0"}
    environment["PROBEWATCH_EVIDENCE_PATH"] = str(folder / "evidence.sqlite")
    command = [*serve_command(port), "--max-model-len", "2048", "--gpu-memory-utilization", "0.3"]
    with served(command, environment, port, folder / "server.log") as url:
        sections = [_section(text, line, folder, url) for text, line in STEPS]
    return "\n".join([HEAD.format(started=_started()), *sections])


def _started() -> str:
    return (
        "PROBEWATCH_PROBE_DIR=probes PROBEWATCH_ADMIN_KEY=" + KEY + " PROBEWATCH_EXPOSE=scores \\\n"
        "  probewatch serve probes/shipped/concealed-ledger --tap-layers 2,3,4 \\\n"
        "  --vector probes/shipped/vectors/honesty.safetensors --served-model-name " + MODEL_NAME
    )


def _section(text: str, line: str, folder: Path, url: str) -> str:
    case = next(c for c in cases(60, seed=3, split="test", conditions=("incentivised",)) if c.expects_lie)
    asked = {"SYSTEM": case.messages[0]["content"], "QUESTION": case.messages[-1]["content"]}
    here = {
        "URL": url,
        "PROBEWATCH_ADMIN_KEY": KEY,
        "ADMIN": f"{ADMIN_HEADER}: {KEY}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env={**os.environ, **asked, **here},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    out = (done.stdout + done.stderr).replace(url, "$URL").replace(str(folder), "...").rstrip()
    out = re.sub(r"\x1b\[[0-9;]*m", "", out)
    shown = out if len(out) <= SHOWN else out[:SHOWN] + " ..."
    status = f"\n(status {done.returncode})" if done.returncode else ""
    said = f"\n{text}\n" if text else ""
    return f"{said}\n```\n$ {line}\n{shown}{status}\n```"


def main() -> None:
    """Writes the page, or prints it."""
    parser = argparse.ArgumentParser(prog="python -m bench.walkthrough", description=__doc__.split("\n")[0])
    parser.add_argument("--print", action="store_true", help="write nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = walk(Path(folder))
    if options.print:
        print(page)
    else:
        (ROOT / "docs" / "walkthrough.md").write_text(page + "\n")


if __name__ == "__main__":
    main()
