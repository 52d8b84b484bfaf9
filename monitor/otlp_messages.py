"""A judged sequence in OpenTelemetry's own messages: an event for each probe, and a span with the verdict.

The event is ``gen_ai.evaluation.result`` of OpenTelemetry's semantic conventions for generative AI (name, score value
and label, explanation, response id); what the conventions do not know has the prefix ``probewatch.``. No text, no
token.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from monitor import __version__
from monitor.events import ProbeVerdict
from monitor.records import Record, headline
from monitor.verdict import of_probe

EVENT, SPAN = "gen_ai.evaluation.result", "probewatch.verdict"

Value = str | bool | int | float | Sequence[str]

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


_SALT = secrets.token_bytes(16)


class Place(NamedTuple):
    """Where in a trace a verdict belongs."""

    trace_id: bytes
    """[16]"""
    span_id: bytes
    """[8] the verdict's own"""
    parent: bytes
    """[8] the client's span; empty for a trace of our own."""
    flags: int


def place_of(record: Record) -> Place:
    """The place that the request's W3C ``traceparent`` names; a trace of its own where that is missing or invalid.

    Both signals tell of a record by themselves, so ids of our own are a salted hash of it and not drawn twice.
    """
    named = f"{record.response_id}/{record.choice}/{record.finished_at!r}".encode(errors="replace")
    own = hashlib.sha256(_SALT + named).digest()
    found = _TRACEPARENT.fullmatch(record.traceparent or "")
    if found is None or not int(found[1], 16) or not int(found[2], 16):
        return Place(own[:16], own[16:24], b"", 1)
    return Place(bytes.fromhex(found[1]), own[16:24], bytes.fromhex(found[2]), int(found[3], 16))


class Told(NamedTuple):
    """One sequence, as both signals tell of it."""

    events: list[LogRecord]
    span: Span


def tell(record: Record) -> Told:
    """The messages of one finished sequence."""
    place = place_of(record)
    nanoseconds = int(record.finished_at * 1e9)
    shared: dict[str, Value | None] = {
        "gen_ai.response.id": record.response_id,
        "gen_ai.request.model": record.model,
        "probewatch.choice": record.choice,
    }
    attributes = {name: {**shared, **_evaluation(record, name)} for name in record.verdicts}
    span = Span(
        trace_id=place.trace_id,
        span_id=place.span_id,
        parent_span_id=place.parent,
        name=SPAN,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=nanoseconds,
        end_time_unix_nano=nanoseconds,
        attributes=_pairs({**shared, **_verdict(record)}),
        events=[
            Span.Event(time_unix_nano=nanoseconds, name=EVENT, attributes=_pairs(one))
            for one in attributes.values()
        ],
    )
    events = [
        LogRecord(
            time_unix_nano=nanoseconds,
            observed_time_unix_nano=nanoseconds,
            severity_number=_severity(record, name),
            event_name=EVENT,
            attributes=_pairs(one),
            trace_id=place.trace_id,
            span_id=place.span_id,
            flags=place.flags,
        )
        for name, one in attributes.items()
    ]
    return Told(events, span)


def logs_message(events: Iterable[LogRecord], resource: Resource) -> bytes:
    """The body of ``POST /v1/logs``."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    scope = ScopeLogs(scope=_scope(), log_records=list(events))
    request = ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=resource, scope_logs=[scope])])
    return bytes(request.SerializeToString())


def spans_message(spans: Iterable[Span], resource: Resource) -> bytes:
    """The body of ``POST /v1/traces``."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    scope = ScopeSpans(scope=_scope(), spans=list(spans))
    request = ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=resource, scope_spans=[scope])]
    )
    return bytes(request.SerializeToString())


def resource_of(environ: Mapping[str, str]) -> Resource:
    """This process, under the name that ``OTEL_SERVICE_NAME`` gives it."""
    told: dict[str, Value | None] = {
        "service.name": environ.get("OTEL_SERVICE_NAME") or "probewatch",
        "service.version": __version__,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    return Resource(attributes=_pairs(told))


def _evaluation(record: Record, name: str) -> dict[str, Value | None]:
    verdict = record.verdicts[name]
    manifest = next(seat.probe.manifest for seat in record.bank.seats if seat.probe.manifest.name == name)
    return {
        "gen_ai.evaluation.name": name,
        "gen_ai.evaluation.score.value": verdict.score,
        "gen_ai.evaluation.score.label": of_probe(verdict),
        "gen_ai.evaluation.explanation": _explanation(verdict),
        "probewatch.threshold": verdict.threshold,
        "probewatch.peak_token": verdict.peak_token,
        "probewatch.tokens_scored": verdict.tokens_scored,
        "probewatch.action": record.bank.actions[name],
        "probewatch.sha256": manifest.tensors_sha256,
    }


def _verdict(record: Record) -> dict[str, Value | None]:
    shown = headline(record)
    return {
        "probewatch.verdict": record.verdict,
        "probewatch.flagged_by": shown["flagged_by"],
        "gen_ai.response.finish_reasons": [record.finish_reason],
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "probewatch.fed_tokens": len(record.states),
        "probewatch.coverage.prompt": shown["coverage"]["prompt"],
        "probewatch.coverage.generated": shown["coverage"]["generated"],
    }


def _explanation(verdict: ProbeVerdict) -> str:
    if verdict.score is None:
        return "no token inside the probe's mask has a score"
    compared = f"threshold {verdict.threshold:.4g}" if math.isfinite(verdict.threshold) else "no threshold"
    peak = "" if verdict.peak_token is None else f", highest at position {verdict.peak_token}"
    return f"score {verdict.score:.4g}, {compared}{peak}"


def _severity(record: Record, name: str) -> SeverityNumber.ValueType:
    acts = record.bank.actions[name] != "observe"
    alarming = record.verdicts[name].flagged and acts
    return SeverityNumber.SEVERITY_NUMBER_WARN if alarming else SeverityNumber.SEVERITY_NUMBER_INFO


def _scope() -> InstrumentationScope:
    return InstrumentationScope(name="probewatch", version=__version__)


def _pairs(values: Mapping[str, Value | None]) -> list[KeyValue]:
    """What is known of ``values``: neither None nor a number that is not finite."""
    return [KeyValue(key=key, value=_any(value)) for key, value in values.items() if _is_known(value)]


def _is_known(value: Value | None) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _any(value: Value | None) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value.encode(errors="replace").decode())
    return AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=one) for one in value or ()]))
