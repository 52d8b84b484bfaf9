"""How a collector is spoken to: private authorities, client certificates, gRPC; and settings that could not work."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from monitor_receiver import self_signed
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

from monitor import otlp
from monitor.config import Settings
from monitor.errors import ConfigurationError, ServerError
from monitor.otlp import open_otlp
from monitor.otlp_grpc import GrpcExport
from monitor.otlp_http import HttpExport
from monitor.otlp_options import Options, options_of
from monitor.otlp_sender import NotNow
from tests.unit.otlp_collector import Collector
from tests.unit.test_monitor_otlp import Told
from tests.unit.waiting import until

GENERAL = "OTEL_EXPORTER_OTLP_"
SERVICES = {
    "/opentelemetry.proto.collector.logs.v1.LogsService/Export": (
        logs.ExportLogsServiceRequest,
        logs.ExportLogsServiceResponse,
    ),
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": (
        traces.ExportTraceServiceRequest,
        traces.ExportTraceServiceResponse,
    ),
}


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "PAUSES", (0.01, 0.01))


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of a collector and of a client."""
    folder = tmp_path_factory.mktemp("tls")
    return self_signed(folder / "collector.pem"), self_signed(folder / "client.pem")


@contextlib.contextmanager
def strict_collector(pems: tuple[Path, Path]) -> Iterator[Collector]:
    """Lets in whoever shows the client's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pems[0])
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(f"{pems[1]}.crt")
    collector = Collector(context)
    try:
        yield collector
    finally:
        collector.server.shutdown()
        collector.server.server_close()


def told_to(url: str, outcome: str, **environ: str) -> None:
    """One verdict told, and what became of it on both roads."""
    told = Told(url, **environ)
    told.finish()
    until(lambda: told.count(outcome) == [1, 1])
    told.exporter.close()


def test_both_sides_of_tls_are_known_or_nothing_is_told(pems: tuple[Path, Path]) -> None:
    authority = {f"{GENERAL}CERTIFICATE": f"{pems[0]}.crt"}
    client = {f"{GENERAL}CLIENT_CERTIFICATE": f"{pems[1]}.crt", f"{GENERAL}CLIENT_KEY": str(pems[1])}
    with strict_collector(pems) as collector:
        told_to(collector.url, "failed")
        told_to(collector.url, "failed", **client)
        told_to(collector.url, "failed", **authority)
        assert (collector.logs, collector.traces) == ([], [])
        told_to(collector.url, "delivered", **authority, **client)
        assert len(collector.logs) == len(collector.traces) == 1
        one_file = {f"{GENERAL}CLIENT_CERTIFICATE": str(pems[1])}
        told_to(collector.url, "delivered", **authority, **one_file)


def test_a_signals_own_variable_goes_before_the_general_one(pems: tuple[Path, Path]) -> None:
    environ = {
        f"{GENERAL}HEADERS": "x=1",
        f"{GENERAL}LOGS_HEADERS": "x=a%20b,y=2",
        f"{GENERAL}TRACES_CERTIFICATE": f"{pems[0]}.crt",
        f"{GENERAL}PROTOCOL": "grpc",
        f"{GENERAL}TRACES_PROTOCOL": "http/protobuf",
        f"{GENERAL}CERTIFICATE": "",
    }
    assert options_of(environ, "LOGS") == Options("grpc", {"x": "a b", "y": "2"})
    assert options_of(environ, "TRACES") == Options("http/protobuf", {"x": "1"}, f"{pems[0]}.crt")
    assert options_of({}, "LOGS") == Options()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"CERTIFICATE": "/no/such.pem"},
            "OTEL_EXPORTER_OTLP_CERTIFICATE=/no/such.pem cannot be used .*No such file",
        ),
        ({"TRACES_CERTIFICATE": __file__}, "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE=.* cannot be used"),
        ({"CLIENT_CERTIFICATE": __file__}, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=.* cannot be used"),
        ({"CLIENT_KEY": __file__}, "CLIENT_KEY is set without OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"),
        ({"PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL='http/json' is not spoken"),
    ],
)
def test_what_could_never_work_is_refused_in_a_line(variables: dict[str, str], said: str) -> None:
    environ = {GENERAL + name: value for name, value in variables.items()}
    with pytest.raises(ConfigurationError, match=said) as caught:
        open_otlp(Settings(otlp_endpoint="https://localhost:1"), environ)
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_that_is_not_the_certificates_is_refused(pems: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be used .*KEY_VALUES_MISMATCH"):
        options_of(
            {f"{GENERAL}CLIENT_CERTIFICATE": f"{pems[0]}.crt", f"{GENERAL}CLIENT_KEY": str(pems[1])}, "LOGS"
        )


class Services(grpc.GenericRpcHandler):
    """A collector's gRPC services; each answer comes from ``answers`` while there are any, then all is taken."""

    def __init__(self) -> None:
        self.got: dict[str, list[Any]] = {path: [] for path in SERVICES}
        self.metadata: list[dict[str, Any]] = []
        self.answers: list[grpc.StatusCode] = []
        self.reply: dict[str, Any] = {}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        path = details.method
        if path not in SERVICES:
            return None
        request, response = SERVICES[path]

        def export(message: Any, context: grpc.ServicerContext) -> Any:
            self.metadata.append(dict(context.invocation_metadata()))
            if self.answers:
                context.abort(self.answers.pop(0), "not\nnow")
            self.got[path].append(message)
            return self.reply.get(path, response())

        return grpc.unary_unary_rpc_method_handler(export, request.FromString, response.SerializeToString)


@contextlib.contextmanager
def grpc_collector(credentials: grpc.ServerCredentials | None = None) -> Iterator[tuple[str, Services]]:
    """Its address without the scheme, and what it gets."""
    services = Services()
    server = grpc.server(ThreadPoolExecutor(2), handlers=(services,))
    if credentials is None:
        port = server.add_insecure_port("localhost:0")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    server.start()
    try:
        yield f"localhost:{port}", services
    finally:
        server.stop(None).wait()


def test_grpc_delivers_both_signals_with_headers() -> None:
    with grpc_collector() as (address, services):
        environ = {f"{GENERAL}PROTOCOL": "grpc", f"{GENERAL}HEADERS": "X-Key=a%20b"}
        told_to(f"http://{address}", "delivered", **environ)
    [log], [trace] = services.got.values()
    [record, _] = log.resource_logs[0].scope_logs[0].log_records
    assert record.event_name == "gen_ai.evaluation.result"
    assert trace.resource_spans[0].scope_spans[0].spans[0].span_id == record.span_id
    assert {data["x-key"] for data in services.metadata} == {"a b"}


def test_grpc_asks_a_busy_collector_again_and_a_refusing_one_not() -> None:
    with grpc_collector() as (address, services):
        environ = {f"{GENERAL}PROTOCOL": "grpc"}
        services.answers = 4 * [grpc.StatusCode.UNAVAILABLE]  # two for each signal
        told_to(f"http://{address}", "delivered", **environ)
        assert len(services.metadata) == 6
        services.answers = 2 * [grpc.StatusCode.INVALID_ARGUMENT]
        told_to(f"http://{address}", "failed", **environ)
        assert len(services.metadata) == 8
        path = next(iter(SERVICES))
        services.reply[path] = logs.ExportLogsServiceResponse(partial_success={"rejected_log_records": 1})
        told = Told(f"http://{address}", **environ)
        told.finish()
        until(lambda: told.count("failed") == [1, 0] and told.count("delivered") == [0, 1])
        told.exporter.close()


def test_an_http_endpoint_is_told_without_what_follows_its_host() -> None:
    with pytest.raises(NotNow) as caught:
        HttpExport("http://127.0.0.1:9/tenant-key/v1/logs", Options())(b"")
    assert str(caught.value).startswith("http://127.0.0.1/... cannot be reached ([Errno 111] ")


def test_a_grpc_endpoint_is_told_without_what_follows_its_host() -> None:
    with grpc_collector() as (address, services):
        services.answers = [grpc.StatusCode.INVALID_ARGUMENT]
        export = GrpcExport(f"http://{address}/tenant-key", next(iter(SERVICES)), Options("grpc"))
        with pytest.raises(ServerError, match=r"^http://localhost/\.\.\. answers INVALID_ARGUMENT"):
            export(b"")


def test_grpc_knows_both_sides_of_tls(pems: tuple[Path, Path]) -> None:
    theirs, ours = (pem.read_bytes() for pem in pems)
    shown = grpc.ssl_server_credentials([(theirs, theirs)], Path(f"{pems[1]}.crt").read_bytes(), True)
    environ = {f"{GENERAL}PROTOCOL": "grpc", f"{GENERAL}CERTIFICATE": f"{pems[0]}.crt"}
    with grpc_collector(shown) as (address, services):
        told_to(f"https://{address}", "failed", **environ)
        assert not any(services.got.values())
        told_to(
            f"https://{address}", "delivered", **environ, **{f"{GENERAL}CLIENT_CERTIFICATE": str(pems[1])}
        )
    assert ours not in theirs


def test_a_grpc_collector_that_is_gone_costs_its_batch() -> None:
    with grpc_collector() as (address, _):
        pass
    told_to(f"http://{address}", "failed", **{f"{GENERAL}PROTOCOL": "grpc"})
