"""``make fleet-bench``: what a fleet of monitored servers costs one Prometheus.

Exporters with the real catalogue (``monitor.metrics``), each with its own registry, counters that move and every child
that a probe can need, are scraped by one real Prometheus with the real rules. Nothing of vLLM runs, and its own series
are not simulated. Two runs: the whole fleet at an ordinary interval for series, time and memory; a few nodes scraped so
often that chunks fill up, for the bytes a sample takes on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import requests
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from monitor.catalogue import PHASES
from monitor.demo.server import free_port
from monitor.metrics import Metrics
from monitor.shipped import paths
from probes import Probe
from probes.artifact import split_golden
from probes.testing import fake_manifest, fake_tensors

BENIGN = {"probabilities": tuple(i / 10 for i in range(11)), "values": tuple(float(i) for i in range(11))}
DENSE_NODES, FULL_CHUNK = 4, 120
"""Prometheus closes a chunk after 120 samples."""
SINKS = ("sqlite", "alertmanager")


class Exporter:
    """One server: an engine with some probes, and its page."""

    def __init__(self, index: int, probes: list[Probe]) -> None:
        self.registry = CollectorRegistry()
        self._metrics = Metrics("llama-3.1-8b", "0", self.registry)
        self._names = [probe.manifest.name for probe in probes]
        self._random = random.Random(index)
        self._metrics.announce("0.1.0", "0.32.0", "v1")
        self._metrics.set("probewatch_attached", to=1)
        for probe in probes:
            self._metrics.add_probe(probe)
        for sink in SINKS:
            for outcome in ("stored", "dropped", "failed"):
                self._metrics.child("probewatch_evidence_total", sink, outcome)

    def page(self) -> bytes:
        """A scrape, after some traffic: tens of requests, thousands of tokens."""
        metrics, draw = self._metrics, self._random
        for phase in PHASES:
            tokens = draw.randint(500, 5000)
            metrics.inc("probewatch_tokens_seen_total", phase, by=tokens)
            for name in self._names:
                metrics.inc("probewatch_tokens_scored_total", name, phase, by=tokens)
        for name in self._names:
            metrics.inc("probewatch_requests_total", name, "ok", by=draw.randint(5, 50))
            metrics.inc("probewatch_requests_total", name, "flagged", by=int(draw.random() < 0.02))
            metrics.observe("probewatch_request_margin", name, value=draw.gauss(-1, 1))
            metrics.set("probewatch_score_drift", name, to=draw.random() / 10)
        metrics.inc("probewatch_evidence_total", "sqlite", "stored", by=draw.randint(5, 50))
        metrics.observe("probewatch_step_overhead_seconds", value=draw.expovariate(10_000))
        metrics.set("probewatch_last_scored_timestamp_seconds", to=time.time())
        return bytes(generate_latest(self.registry))


def fleet(size: int, probes: int) -> list[Exporter]:
    """Servers that are watched alike: every second probe acts."""
    made = [_probe(f"probe-{i}", "alert" if i % 2 else "observe", i) for i in range(probes)]
    return [Exporter(index, made) for index in range(size)]


def series(probes: int) -> int:
    """How many one server exports with that many probes."""
    page = fleet(1, probes)[0].page().decode()
    return sum(1 for line in page.splitlines() if line and not line.startswith("#"))


def _probe(name: str, action: str, seed: int) -> Probe:
    manifest = fake_manifest(
        name=name,
        threshold=1.0,
        default_action=action,
        benign_quantiles=BENIGN,
        calibration={"nominal_fpr": 0.01, "n": 1000},
    )
    tensors, inputs, scores = split_golden(fake_tensors(manifest, seed))
    return Probe(manifest, tensors, inputs, scores)


def serve(exporters: list[Exporter]) -> http.server.ThreadingHTTPServer:
    """All of them behind one port: ``/INDEX/metrics``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = exporters[int(self.path.split("/")[1])].page()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(page)

        def log_message(self, *_: Any) -> None:
            """Nothing on the screen."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class Prometheus:
    """A real one, with the real rules, in a folder of its own."""

    def __init__(self, folder: Path, port: int, targets: int, interval: float) -> None:
        jobs = [
            {
                "targets": [f"127.0.0.1:{port}"],
                "labels": {"__metrics_path__": f"/{i}/metrics", "instance": f"node-{i:03d}:8000"},
            }
            for i in range(targets)
        ]
        every = f"{round(interval * 1000)}ms"
        content = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": paths()["rules"],
            "scrape_configs": [{"job_name": "vllm", "static_configs": jobs}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(content))
        self.folder, self.url = folder, f"http://127.0.0.1:{free_port()}"
        program = shutil.which("prometheus")
        if program is None:
            sys.exit("fleet-bench: no prometheus on the path; run deploy/local/test-tools")
        self.process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--web.enable-admin-api",
                "--log.level=warn",
            ]
        )

    def ask(self, query: str) -> float:
        """The value of a query that has one."""
        reply = requests.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=30).json()
        found = reply["data"]["result"]
        return float(found[0]["value"][1]) if found else float("nan")

    def own(self, name: str) -> float:
        """A metric of Prometheus itself, without labels."""
        page = requests.get(f"{self.url}/metrics", timeout=30).text
        return next(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name + " "))

    def wait_ready(self) -> None:
        """Until it answers."""
        for _ in range(300):
            try:
                if requests.get(f"{self.url}/-/ready", timeout=2).status_code == 200:
                    return
            except requests.ConnectionError:
                time.sleep(0.1)
        sys.exit("fleet-bench: prometheus does not start; see its messages above")

    def blocks(self) -> dict[str, float]:
        """Bytes a sample on disk, measured on a snapshot of everything so far."""
        reply = requests.post(f"{self.url}/api/v1/admin/tsdb/snapshot", timeout=120).json()
        folder = self.folder / "data" / "snapshots" / reply["data"]["name"]
        metas = [json.loads(path.read_text())["stats"] for path in folder.glob("*/meta.json")]
        samples = sum(stats["numSamples"] for stats in metas)
        chunks = sum(path.stat().st_size for path in folder.glob("*/chunks/*"))
        index = sum(path.stat().st_size for path in folder.glob("*/index"))
        return {"samples": samples, "chunk_bytes": chunks / samples, "index_bytes": index}


def measure(size: int, probes: int, interval: float, seconds: float) -> dict[str, float]:
    """One run: figures by name."""
    exporters = fleet(size, probes)
    page = exporters[0].page()
    server = serve(exporters)
    with tempfile.TemporaryDirectory(prefix="probewatch-fleet-") as scratch:
        prometheus = Prometheus(Path(scratch), server.server_port, size, interval)
        try:
            prometheus.wait_ready()
            empty = prometheus.own("process_resident_memory_bytes")
            busy, started = prometheus.own("process_cpu_seconds_total"), time.monotonic()
            time.sleep(seconds)
            used = (prometheus.own("process_cpu_seconds_total") - busy) / (time.monotonic() - started)
            found = {
                "nodes": size,
                "probes": probes,
                "series a node": prometheus.ask("max(scrape_samples_post_metric_relabeling)"),
                "page, KiB": len(page) / 1024,
                "series in all": prometheus.own("prometheus_tsdb_head_series"),
                "targets up": prometheus.ask("sum(up)"),
                "scrape, median, ms": 1e3 * prometheus.ask("quantile(0.5, scrape_duration_seconds)"),
                "scrape, 99%, ms": 1e3 * prometheus.ask("quantile(0.99, scrape_duration_seconds)"),
                "rules, one round, ms": 1e3 * _rule_seconds(prometheus),
                "Prometheus, cores": used,
                "memory before, MiB": empty / 2**20,
                "memory, MiB": prometheus.own("process_resident_memory_bytes") / 2**20,
            }
            blocks = prometheus.blocks()
        finally:
            prometheus.process.send_signal(signal.SIGTERM)
            prometheus.process.wait(60)
            server.shutdown()
    found["samples a series"] = blocks["samples"] / found["series in all"]
    found["bytes a sample"] = blocks["chunk_bytes"]
    found["index, bytes a series"] = blocks["index_bytes"] / found["series in all"]
    return found


def _rule_seconds(prometheus: Prometheus) -> float:
    """How long one evaluation of all groups takes."""
    groups = requests.get(f"{prometheus.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
    return float(sum(group["evaluationTime"] for group in groups))


def main() -> None:
    """Prints one line for each figure."""
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--probes", type=int, default=8)
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between scrapes of the fleet")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each run takes")
    args = parser.parse_args()
    print(
        "series a node, by probes: " + ", ".join(f"{n}: {series(n)}" for n in (1, 4, 8, 16, 1000)), flush=True
    )
    found = measure(args.nodes, args.probes, args.interval, args.seconds)
    dense = measure(DENSE_NODES, args.probes, args.seconds / FULL_CHUNK, args.seconds + 5)
    found |= {name: dense[name] for name in ("samples a series", "bytes a sample")}
    for name, value in found.items():
        print(f"{name:>22}  {value:,.4g}" if value < 1000 else f"{name:>22}  {value:,.0f}", flush=True)
    print(f"{'cores':>22}  {os.cpu_count()}, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
