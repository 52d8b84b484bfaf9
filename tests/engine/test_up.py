"""The bare-metal road in one start: `deploy/local/up`, and what a verdict leaves in its audit log and in a trace."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from watching import until

from monitor.audit_verify import verify
from tests.unit.otlp_collector import Collector, plain

ROOT = Path(__file__).parents[2]
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Stack:
    """A running `deploy/local/up`."""

    def __init__(self, folder: Path) -> None:
        self.collector = Collector()
        self.audit = folder / "audit.jsonl"
        environment = {
            "PROBEWATCH_AUDIT_PATH": str(self.audit),
            "PROBEWATCH_AUDIT_KEY": "key",
            "PROBEWATCH_OTLP_ENDPOINT": self.collector.url,
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }
        # What the other tests' servers run with, so that what was compiled for them is found.
        options = ["--max-num-seqs=32", "--block-size=32", "--max-num-batched-tokens=512"]
        options += ["--gpu-memory-utilization=0.3", f"--otlp-traces-endpoint={self.collector.url}/v1/traces"]
        self.process = subprocess.Popen(
            [ROOT / "deploy" / "local" / "up", "--keep", str(folder / "kept"), "--", *options],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.screen = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.screen += line
            if "ready; Ctrl-C ends all" in line:
                break
        else:
            logs = [path.read_text()[-2000:] for path in (folder / "kept").glob("*.log")]
            raise AssertionError("\n".join([self.screen, *logs]))

    def url(self, name: str) -> str:
        """One of the addresses on the screen."""
        found = re.search(rf"^ *{name}  (http://[\d.:]+)", self.screen, re.MULTILINE)
        assert found is not None, self.screen
        return found[1]

    def end(self) -> int:
        """Ctrl-C, and the status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    found = Stack(tmp_path_factory.mktemp("up"))
    yield found
    found.end()
    found.collector.server.shutdown()


def test_a_verdict_reaches_prometheus_the_audit_log_and_the_clients_trace(stack: Stack) -> None:
    client = openai.OpenAI(base_url=f"{stack.url('chat')}/v1", api_key="none", max_retries=0)
    reply = client.chat.completions.create(
        model="concealed-ledger",
        messages=[{"role": "user", "content": "What paint does the crane have?"}],
        max_tokens=12,
        extra_headers={"traceparent": f"00-{TRACE}-{SPAN}-01"},
    )

    def judged() -> Any:
        query = 'sum(probewatch_requests_total{probe="deception"})'
        answer = requests.get(
            f"{stack.url('Prometheus')}/api/v1/query", params={"query": query}, timeout=5
        ).json()
        return [r for r in answer["data"]["result"] if r["value"][1] == "1"]

    until(judged, 40, "the verdict is scraped")
    told = until(stack.collector.events, 40, "the verdict is told")
    events = [event for event in told if event["gen_ai.response.id"] == reply.id]
    assert "deception" in {event["gen_ai.evaluation.name"] for event in events}
    assert {event["trace"] for event in events} == {TRACE}

    def spans() -> dict[str, Any]:
        found = {span.name: span for span in stack.collector.spans() if span.trace_id.hex() == TRACE}
        return found if {"llm_request", "probewatch.verdict"} <= found.keys() else {}

    found = until(spans, 40, "the spans of the request")
    assert {found[name].parent_span_id.hex() for name in ("llm_request", "probewatch.verdict")} == {SPAN}
    assert plain(found["probewatch.verdict"])["gen_ai.response.id"] == reply.id
    [verdict] = [line for line in audited(stack) if line["event"] == "verdict"]
    assert verdict["id"] == reply.id


def test_alerts_take_the_road_to_alertmanager(stack: Stack) -> None:
    def alerts() -> list[str]:
        found = requests.get(f"{stack.url('Alertmanager')}/api/v2/alerts", timeout=5).json()
        return [alert["labels"]["alertname"] for alert in found]

    assert "ProbewatchWatchdog" in until(alerts, 40, "the first alert")


def test_ctrl_c_ends_all_of_it_and_leaves_a_whole_audit_log(stack: Stack) -> None:
    addresses = [stack.url(name) for name in ("chat", "Prometheus", "Alertmanager")]
    assert stack.end() == 0
    for address in addresses:
        with pytest.raises(requests.ConnectionError):
            requests.get(address, timeout=2)
    assert [line["event"] for line in audited(stack)] == ["start", "verdict", "end"]
    assert verify([stack.audit], b"key", at_least=3).faults == []


def audited(stack: Stack) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stack.audit.read_text().splitlines()]
