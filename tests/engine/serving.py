"""A real ``probewatch serve`` of the shipped model, and what tests ask it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import openai
import requests

from monitor.demo.patience import patient
from monitor.shipped import paths

MODEL = "concealed-ledger"
ENVIRONMENT = {
    "PROBEWATCH_OPEN_EVIDENCE": "1",
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


@dataclass(frozen=True)
class Server:
    """A running ``probewatch serve``."""

    url: str
    log: Path

    def get(self, route: str, **params: Any) -> Any:
        """The body of a route under /v1/probewatch."""
        reply = requests.get(f"{self.url}/v1/probewatch/{route}", params=params, timeout=30)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def metrics(self) -> str:
        """The page that Prometheus would scrape."""
        return requests.get(f"{self.url}/metrics", timeout=30).text

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        found = 0.0
        for labels_text, value in re.findall(
            rf"^{re.escape(name)}{{(.*)}} (\S+)$", self.metrics(), re.MULTILINE
        ):
            if all(f'{key}="{wanted}"' in labels_text for key, wanted in labels.items()):
                found += float(value)
        return found

    def client(self) -> openai.OpenAI:
        """The official client; never tries twice."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def ask(self, text: str, **options: Any) -> Any:
        """One chat turn, greedy."""
        message: Any = {"role": "user", "content": text}
        return self.client().chat.completions.create(
            model=MODEL, messages=[message], temperature=0, **options
        )

    def settle(self) -> None:
        """Waits until every request has ended and been judged."""
        for _ in range(100):
            if self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting") == 0:
                break
            time.sleep(0.2)
        time.sleep(0.5)

    def check_reconciled(self, *names: str) -> dict[str, float]:
        """The rule at the end of the contract, exactly; returns the unscored tokens of each probe.

        ``names``: of probes that were attached throughout; all of them if none is given.
        """
        self.settle()
        names = names or tuple(probe["name"] for probe in self.get("probes"))
        sequences = self.metric("probewatch_requests_total", probe=names[0])
        seen = {
            phase: self.metric("probewatch_tokens_seen_total", phase=phase)
            for phase in ("prompt", "generation")
        }
        assert seen["prompt"] == self.metric("vllm:prompt_tokens_total")
        assert seen["generation"] == self.metric("vllm:generation_tokens_total") - sequences
        lost = {name: self.metric("probewatch_tokens_unscored_total", probe=name) for name in names}
        for name in names:
            scored = self.metric("probewatch_tokens_scored_total", probe=name)
            assert scored + lost[name] == sum(seen.values())
        return lost


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    folder: Path,
    options: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    artifacts: Sequence[Path] | None = None,
) -> Iterator[Server]:
    """Serves the shipped model, with all shipped artifacts unless some are given, until the block ends."""
    found = paths()
    if artifacts is None:
        artifacts = [Path(str(path)) for path in (*found["probes"], *found["vectors"])]  # type: ignore[misc]
    port, log = free_port(), folder / "log"
    evidence = {"PROBEWATCH_EVIDENCE_PATH": str(folder / "evidence.sqlite")}
    command = [sys.executable, "-m", "monitor.cli", "serve", str(found["model"])]
    command += [part for path in artifacts for part in ("--probe", str(path))]
    command += ["--port", str(port), "--host", "127.0.0.1", "--served-model-name", MODEL]
    command += ["--max-model-len", "2048", "--max-num-seqs", "32", "--block-size", "32"]
    command += ["--max-num-batched-tokens", "512", *machine.options(machine.MEMORY), *options]
    with log.open("w") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=patient({**os.environ, **ENVIRONMENT, **evidence, **(environment or {})}),
            start_new_session=True,
        )
    running = Server(f"http://127.0.0.1:{port}", log)
    try:
        for _ in range(300):
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                requests.get(f"{running.url}/health", timeout=1).raise_for_status()
                break
            except requests.RequestException:
                time.sleep(1)
        yield running
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def probewatch(
    *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command of ours to its end."""
    return subprocess.run(
        [sys.executable, "-m", "monitor.cli", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
