"""The evidence page as it is served, and a case as one file; what they look like is in tests/browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from monitor.cli import main
from monitor.client import Server, ServerBusy
from monitor.demo.fake import FakeServer, Planted
from monitor.errors import ServerError
from monitor.ui import case_file, command
from monitor.ui.assets import Asset, assets
from monitor.ui.case_file import PLACEHOLDER, case_html, case_template, joined
from monitor.ui.routes import PAGE, make_page_router

CASE = {"id": "cmpl-1", "verdict": "ok", "probes": {}}


@pytest.fixture(scope="module")
def client() -> TestClient:
    application = FastAPI()
    application.include_router(make_page_router())
    return TestClient(application)


def test_the_shell_names_all_that_it_loads_and_all_comes_without_a_key(client: TestClient) -> None:
    """Every module is named for preloading: a browser would otherwise find them one after the other."""
    page = client.get(PAGE)
    assert page.status_code == 200
    named = set(re.findall(r'(?:src|href)="ui/([^"]+)"', page.text))
    assert named == assets().keys() - {"index.html", "standalone.js"}
    for name in named:
        assert client.get(f"{PAGE}/{name}").status_code == 200, name
    imported = {needed for name in named for needed in re.findall(r'from "\./([^"]+)"', assets()[name].text)}
    assert imported == {name for name in named if name.endswith(".js")} - {"app.js"}, (
        "a file that nothing uses"
    )


@pytest.mark.parametrize("path", ["", "/app.js", "/style.css", "/case.html"])
def test_every_file_is_sent_under_a_policy_that_lets_nothing_else_in(client: TestClient, path: str) -> None:
    headers = client.get(PAGE + path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", ["..%2Froutes.py", "%2e%2e", "app.js%00", "no.js", "routes.py", "x" * 5000])
def test_what_is_no_file_of_the_page_is_404(client: TestClient, name: str) -> None:
    reply = client.get(f"{PAGE}/{name}")
    assert reply.status_code == 404
    assert len(reply.text) < 300


def test_the_page_asks_nobody_else_and_writes_no_markup() -> None:
    for name, asset in assets().items():
        addresses = re.findall(r"\w+://[\w.-]+|[\"'(]//[\w.-]+", asset.text)
        assert set(addresses) <= {"http://www.w3.org"}, name  # the name of SVG, never asked
        if name.endswith(".js"):
            markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|new Function"
            assert re.search(markup, asset.text) is None, name


def test_a_case_file_holds_the_data_and_the_digests_of_what_may_run() -> None:
    html = case_html(CASE, [{"name": "lie"}], "http://127.0.0.1:8000", 5.0)
    assert PLACEHOLDER not in html
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    assert json.loads(data[1]) == {
        "case": CASE,
        "probes": [{"name": "lie"}],
        "source": "http://127.0.0.1:8000",
        "exported_at": 5.0,
    }
    for tag in ("style", "script"):
        found = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert found is not None
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


def test_data_cannot_leave_its_element() -> None:
    hostile = {**CASE, "id": "</script><script>alert(1)</script><!--"}
    html = case_html(hostile, [], "", 0.0)
    assert html.count("<script") == case_template().count("<script") == 2
    assert "alert(1)</script" not in html


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"a.js": 'import x from "./b.js";\n'}, "import"),
        ({"a.js": 'import * as b from "./b.js";\n'}, "import"),
        ({"a.js": "export default 1;\n"}, "export"),
        ({"a.js": 'const b = await import("./b.js");\n'}, "import"),
        ({"a.js": 'const tag = "</SCRIPT>";\n'}, "end its own script element"),
    ],
)
def test_modules_that_cannot_be_joined_are_refused(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], fault: str
) -> None:
    planted = {name: Asset(text, "") for name, text in files.items()}
    monkeypatch.setattr(case_file, "assets", lambda: planted)
    with pytest.raises(ValueError, match=fault):
        joined("a.js")


def test_modules_are_joined_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "a.js": 'import { b } from "./b.js";\nimport { c } from "./c.js";\nb(c);\n',
        "b.js": 'import {\n  c,\n} from "./c.js";\nexport function b() {}\n',
        "c.js": "export const c = 1;\n",
    }
    monkeypatch.setattr(case_file, "assets", lambda: {name: Asset(text, "") for name, text in files.items()})
    assert joined("a.js") == '(() => {\n"use strict";\nconst c = 1;\nfunction b() {}\nb(c);\n})();\n'


def test_the_command_exports_from_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "case.html"
    with FakeServer(lambda messages: Planted("Hello.", 0.9)) as fake:
        fake.post({"messages": [], "model": "m"})
        assert main(["export", "chatcmpl-0", "-o", str(target), "--url", fake.url]) == 0
        assert capsys.readouterr().out.strip() == str(target)
        assert '"chatcmpl-0"' in target.read_text(encoding="utf-8")
        assert main(["export", "chatcmpl-9", "-o", str(target), "--url", fake.url]) == 1
        assert "remembered" in capsys.readouterr().err
        assert main(["export", "chatcmpl-0", "-o", str(tmp_path), "--url", fake.url]) == 2
        assert "cannot be written" in capsys.readouterr().err


def test_words_that_are_refused_leave_the_others_and_the_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, slept = tmp_path / "case.html", list[float]()
    troubles = {"busy": [ServerBusy("replays"), ServerBusy("replays")], "gone": [ServerError("not attached")]}

    def words(server: Server, response_id: str, choice: int, probe: str) -> dict[str, Any]:
        if troubles.get(probe):
            raise troubles[probe].pop(0)
        return {"probe": probe, "marked": f"{response_id}/{choice}"}

    monkeypatch.setattr(Server, "words", words)
    monkeypatch.setattr(command.time, "sleep", slept.append)
    with FakeServer(lambda messages: Planted("Hello.", 0.9)) as fake:
        fake.post({"messages": [], "model": "m"})
        said = next(iter(fake.records["chatcmpl-0"]["probes"].values()))
        said["flagged"] = True
        fake.records["chatcmpl-0"]["probes"] = {"gone": said, "busy": said}
        assert main(["export", "chatcmpl-0", "--words", "-o", str(target), "--url", fake.url]) == 0
    assert capsys.readouterr().err.splitlines() == ["no words of gone, choice 0: not attached"]
    assert slept == [*command.PAUSES[:2]]
    assert '"0/busy"' in target.read_text(encoding="utf-8")
    assert '"0/gone"' not in target.read_text(encoding="utf-8")
