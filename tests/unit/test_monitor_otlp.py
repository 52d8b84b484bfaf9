"""OpenTelemetry: what a collector receives, decoded from the bytes on the wire, and what a bad one costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceResponse,
)

from monitor import otlp
from monitor.config import Settings
from monitor.errors import ConfigurationError
from monitor.frontend import Frontend
from monitor.otlp import open_otlp
from monitor.otlp_options import headers_of
from tests.unit.monitor_fakes import alerting, column, make_frontend, make_probe, summed
from tests.unit.otlp_collector import Collector, accept, plain
from tests.unit.test_monitor_records import PROMPT, SCORES, record_of
from tests.unit.waiting import until

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SINKS = ("otlp_logs", "otlp_traces")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setattr(otlp, "PAUSES", (0.01, 0.01))
    found = Collector()
    yield found
    found.server.shutdown()
    found.server.server_close()


class Told:
    """A frontend whose verdicts go to a collector."""

    def __init__(self, url: str, **environ: str) -> None:
        self.frontend, self.registry = make_frontend(alerting("lie", 2.5), make_probe("fresh"))
        exporter = open_otlp(Settings(otlp_endpoint=url), environ)
        assert exporter is not None
        self.exporter = exporter
        self.frontend.listeners.append(exporter.listener(self.frontend))

    def finish(self, response_id: str = "cmpl-1", traceparent: str | None = None) -> None:
        finish(self.frontend, response_id, traceparent)

    def count(self, outcome: str) -> list[float]:
        return [summed(self.registry, "probewatch_evidence_total", sink=s, outcome=outcome) for s in SINKS]


def finish(frontend: Frontend, response_id: str, traceparent: str | None) -> None:
    states = column(*SCORES).repeat(frontend.bank.state_columns, axis=1)
    record = record_of(frontend.bank, states, response_id=response_id)
    object.__setattr__(record, "traceparent", traceparent)
    for listener in frontend.listeners:
        listener(record)


def test_each_probe_is_an_event_of_the_convention_and_each_verdict_a_span_in_the_clients_trace(
    collector: Collector,
) -> None:
    told = Told(collector.url, OTEL_SERVICE_NAME="fleet", OTEL_EXPORTER_OTLP_HEADERS="x-key=a%20b")
    told.finish("cmpl-1", f"00-{TRACE}-{SPAN}-01")
    told.exporter.close()
    [span] = collector.spans()
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("probewatch.verdict", TRACE, SPAN)
    verdict = plain(span)
    assert (verdict["probewatch.verdict"], verdict["probewatch.flagged_by"]) == ("flagged", ["lie"])
    assert verdict["gen_ai.usage.input_tokens"] == len(PROMPT)
    by_probe = {event["gen_ai.evaluation.name"]: event for event in collector.events()}
    assert by_probe.keys() == {"lie", "fresh"}
    lie = by_probe["lie"]
    assert lie["event"] == "gen_ai.evaluation.result"
    assert (lie["trace"], lie["span"]) == (TRACE, span.span_id.hex())
    assert lie["gen_ai.evaluation.score.value"] == max(SCORES)
    assert lie["gen_ai.evaluation.score.label"] == "flagged"
    assert lie["gen_ai.evaluation.explanation"] == "score 5, threshold 2.5, highest at position 4"
    assert lie["gen_ai.response.id"] == "cmpl-1"
    assert lie["probewatch.sha256"] == told.frontend.bank.seats[0].probe.manifest.tensors_sha256
    assert by_probe["fresh"]["gen_ai.evaluation.score.label"] == "ok"
    assert by_probe["fresh"]["gen_ai.evaluation.explanation"] == (
        "score 4.5, no threshold, highest at position 4"
    )
    assert "probewatch.threshold" not in by_probe["fresh"]
    assert {event.name for event in span.events} == {"gen_ai.evaluation.result"}
    assert plain(span.events[0]) == {k: v for k, v in lie.items() if k not in ("event", "trace", "span")}
    assert plain(collector.logs[0].resource_logs[0].resource)["service.name"] == "fleet"
    assert {headers["x-key"] for headers in collector.headers} == {"a b"}
    assert told.count("delivered") == [1, 1]


@pytest.mark.parametrize(
    "header", [None, "", "00-0-0-01", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01"]
)
def test_without_a_valid_trace_the_verdict_begins_one_that_both_signals_share(
    collector: Collector, header: str | None
) -> None:
    told = Told(collector.url)
    told.finish("cmpl-1", header)
    told.finish("cmpl-2", header)
    told.exporter.close()
    spans = {(span.trace_id.hex(), span.span_id.hex()) for span in collector.spans()}
    assert len(spans) == 2
    assert all(span.parent_span_id == b"" for span in collector.spans())
    assert {(event["trace"], event["span"]) for event in collector.events()} == spans


def test_a_busy_collector_is_asked_again_and_a_refusing_one_is_not(collector: Collector) -> None:
    replies = iter([(503, b""), (429, b""), (200, b"")])
    collector.answer = lambda path: next(replies) if path == "/v1/logs" else (400, b"no")
    told = Told(collector.url)
    told.finish()
    until(lambda: told.count("delivered") == [1, 0] and told.count("failed") == [0, 1])
    assert collector.posts.count("/v1/logs") == 3
    assert collector.posts.count("/v1/traces") == 1
    told.exporter.close()


def test_what_the_collector_rejects_in_part_is_counted(collector: Collector) -> None:
    partial = ExportLogsPartialSuccess(rejected_log_records=1, error_message="too long")
    replies = {
        "/v1/logs": ExportLogsServiceResponse(partial_success=partial).SerializeToString(),
        "/v1/traces": ExportTraceServiceResponse().SerializeToString(),
    }
    collector.answer = lambda path: (200, replies[path])
    told = Told(collector.url)
    told.finish()
    told.exporter.close()
    assert (told.count("delivered"), told.count("failed")) == ([0, 1], [1, 0])


def test_no_redirect_is_followed(collector: Collector) -> None:
    collector.answer = lambda path: (307, b"")
    told = Told(collector.url)
    told.finish()
    told.exporter.close()
    assert sorted(collector.posts) == ["/v1/logs", "/v1/traces"]
    assert told.count("failed") == [1, 1]


@pytest.mark.parametrize("body", [b"\xff" * 10, b"x" * 10_000_000])
def test_an_answer_that_is_nonsense_or_huge_costs_its_batch_and_nothing_else(
    collector: Collector, body: bytes
) -> None:
    collector.answer = lambda path: (200, body)
    told = Told(collector.url)
    told.finish()
    until(lambda: told.count("failed") == [1, 1])
    collector.answer = accept
    told.finish()
    told.exporter.close()
    assert told.count("delivered") == [1, 1]


def test_a_collector_that_is_gone_or_hangs_never_holds_up_serving(collector: Collector) -> None:
    told = Told("http://127.0.0.1:9")
    started = time.monotonic()
    for n in range(50):
        told.finish(f"cmpl-{n}")
    assert time.monotonic() - started < 1
    told.exporter.close()
    assert [f + d for f, d in zip(told.count("failed"), told.count("dropped"), strict=True)] == [50, 50]
    release = threading.Event()
    collector.answer = lambda path: (release.wait(10), (200, b""))[1]
    told = Told(collector.url)
    told.finish()
    until(lambda: len(collector.posts) == 2)
    told.finish("cmpl-2")
    told.exporter.close(patience=0.1)
    assert told.count("dropped") == [2, 2], "one that waited, and the one on its way"
    release.set()


@pytest.mark.parametrize(
    "endpoint",
    [
        *("collector:4318", "ftp://c", "http://", "http://[", "http://c:70000"),
        *("http://user:pass-word@c:4318", "http://c:4318?key=1", "http://c:4318#x"),
    ],
)
def test_what_is_no_address_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match=r"PROBEWATCH_OTLP_ENDPOINT=.*http://collector:4318") as told:
        open_otlp(Settings(otlp_endpoint=endpoint), {})
    assert "pass-word" not in str(told.value)
    assert open_otlp(Settings(), {}) is None
    assert headers_of("a=1, b = 2%3D,junk") == {"a": "1", "b": "2="}
