"""A real Prometheus with our rules and a real Alertmanager beside a server, and what tests ask them."""

from __future__ import annotations

import http.server
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml
from programs import program
from serving import free_port

from grafana.__main__ import flat
from monitor.shipped import paths

Series = list[dict[str, Any]]

JOB = "vllm"
BUILT_IN = {"__rate_interval": "20s", "__range": "5m", "window": "5m"}
"""What Grafana, and our variable, would put in; scrapes are a second apart."""


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    url: str

    def query(self, expression: str) -> Series:
        """The result of an instant query; a scalar counts as one series without labels."""
        reply = requests.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30)
        assert reply.status_code == 200, f"{expression}: {reply.text}"
        data = reply.json()["data"]
        return [{"metric": {}, "value": data["result"]}] if data["resultType"] == "scalar" else data["result"]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its health and state."""
        found = requests.get(f"{self.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return [rule for group in found for rule in group["rules"]]

    def states(self) -> dict[str, str]:
        """inactive, pending or firing, by alert."""
        return {rule["name"]: rule["state"] for rule in self.rules() if rule["type"] == "alerting"}


@dataclass(frozen=True)
class Alertmanager:
    """A running one."""

    url: str

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """Those it holds for active."""
        params = {"filter": f'alertname="{name}"'}
        found: list[dict[str, Any]] = requests.get(
            f"{self.url}/api/v2/alerts", params=params, timeout=30
        ).json()
        return found


def until(said: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true answer. Fails with ``what`` if none comes."""
    deadline = time.monotonic() + seconds
    while not (found := said()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.3)
    return found


@contextmanager
def alertmanager(folder: Path, webhook: str) -> Iterator[Alertmanager]:
    """Sends every alert to ``webhook`` within seconds; grouped as docs/operation.md says."""
    folder.mkdir()
    route = {
        "receiver": "all",
        "group_by": ["alertname", "model_name", "probe"],
        "group_wait": "1s",
        "group_interval": "1s",
        "repeat_interval": "1h",
    }
    receivers = [{"name": "all", "webhook_configs": [{"url": webhook, "send_resolved": False}]}]
    config = folder / "alertmanager.yml"
    config.write_text(yaml.safe_dump({"route": route, "receivers": receivers}))
    subprocess.run([program("amtool"), "check-config", str(config)], check=True, capture_output=True)
    port = free_port()
    command = [program("alertmanager", "prometheus-alertmanager"), f"--config.file={config}"]
    command += [f"--storage.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
    with _running([*command, "--cluster.listen-address="], f"http://127.0.0.1:{port}", folder) as url:
        yield Alertmanager(url)


@contextmanager
def prometheus(folder: Path, targets: Sequence[str], alerts_to: str) -> Iterator[Prometheus]:
    """Scrapes ``targets`` (HOST:PORT) and evaluates our rules, both every second."""
    folder.mkdir()
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": list(paths()["rules"]),  # type: ignore[call-overload]
        "scrape_configs": [{"job_name": JOB, "static_configs": [{"targets": list(targets)}]}],
        "alerting": {
            "alertmanagers": [{"static_configs": [{"targets": [alerts_to.removeprefix("http://")]}]}]
        },
    }
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    subprocess.run([program("promtool"), "check", "config", str(file)], check=True, capture_output=True)
    port = free_port()
    command = [program("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with _running(command, f"http://127.0.0.1:{port}", folder) as url:
        yield Prometheus(url)


@contextmanager
def _running(command: Sequence[str], url: str, folder: Path) -> Iterator[str]:
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder)

    def ready() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            return requests.get(f"{url}/-/ready", timeout=1).status_code == 200
        except requests.RequestException:
            return False

    try:
        until(ready, 30, f"{command[0]} is not ready")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


UNMONITORED = """\
vllm:num_requests_running{model_name="plain",engine="0"} 0
vllm:generation_tokens_total{model_name="plain",engine="0"} 1
"""


@contextmanager
def unmonitored_server() -> Iterator[str]:
    """What Prometheus sees of a vLLM without the plugin; gives HOST:PORT."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(UNMONITORED.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a scrape that did not wait is no error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def panel_queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(title of the panel, query as Grafana would send it with everything selected)."""
    for panel in flat(dashboard["panels"]):
        for target in panel.get("targets", []):
            yield panel["title"], re.sub(r"\$(\w+)", lambda m: BUILT_IN.get(m[1], ".*"), target["expr"])


def has_data(series: Series) -> bool:
    """At least one series with a number."""
    return any(found["value"][1] != "NaN" for found in series)
