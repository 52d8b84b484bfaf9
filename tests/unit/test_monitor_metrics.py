"""The catalogue as a scrape shows it: names, types, labels, and children that exist before traffic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from monitor.catalogue import CATALOGUE, ERROR_STAGES, PROBE_GAUGES
from monitor.desired import bank_of, wanted
from monitor.metrics import Metrics
from monitor.unscored import Reason
from tests.unit import nursery
from tests.unit.monitor_fakes import BENIGN, MODEL, alerting, make_frontend, make_probe, value

CONTRACT: dict[str, tuple[str, tuple[str, ...]]] = {
    "probewatch_build_info": ("gauge", ("version", "vllm_version", "runner")),
    "probewatch_probe_info": ("gauge", ("probe", "kind", "layers", "sha256")),
    "probewatch_attached": ("gauge", ()),
    "probewatch_requests_total": ("counter", ("probe", "verdict")),
    "probewatch_alerts_total": ("counter", ("probe", "action")),
    "probewatch_request_margin": ("histogram", ("probe",)),
    "probewatch_threshold": ("gauge", ("probe",)),
    "probewatch_nominal_fpr": ("gauge", ("probe",)),
    "probewatch_tokens_seen_total": ("counter", ("phase",)),
    "probewatch_tokens_scored_total": ("counter", ("probe", "phase")),
    "probewatch_tokens_unscored_total": ("counter", ("probe", "phase", "reason")),
    "probewatch_score_drift": ("gauge", ("probe",)),
    "probewatch_selftest_error": ("gauge", ("probe",)),
    "probewatch_last_scored_timestamp_seconds": ("gauge", ()),
    "probewatch_step_overhead_seconds": ("histogram", ()),
    "probewatch_steered_tokens_total": ("counter", ("vector",)),
    "probewatch_stopped_requests_total": ("counter", ("probe",)),
    "probewatch_evidence_total": ("counter", ("sink", "outcome")),
    "probewatch_errors_total": ("counter", ("stage",)),
}


@pytest.mark.parametrize("name", CONTRACT)
def test_the_catalogue_is_that_of_the_contract(name: str) -> None:
    kind, labels = CONTRACT[name]
    assert (CATALOGUE[name].type, CATALOGUE[name].labels) == (kind, labels)


def test_no_metric_names_a_request_a_user_or_a_token() -> None:
    labels = {label for metric in CATALOGUE.values() for label in metric.labels}
    assert not labels & {"request", "request_id", "id", "user", "prompt", "token", "token_id", "text"}


def test_every_metric_is_scraped_under_its_own_name_with_model_and_engine() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(MODEL, "0", registry)
    for name, metric in CATALOGUE.items():
        metrics.child(name, *("x" for _ in metric.labels))
    suffix = {"counter": "", "gauge": "", "histogram": "_count"}
    for name, metric in CATALOGUE.items():
        labels = dict.fromkeys(metric.labels, "x")
        assert value(registry, name + suffix[metric.type], **labels) == 0, name


def test_every_child_of_a_probe_exists_before_traffic() -> None:
    probe = alerting(benign_quantiles=BENIGN)
    _, registry = make_frontend(probe)
    for phase in ("prompt", "generation"):
        assert value(registry, "probewatch_tokens_seen_total", phase=phase) == 0
        assert value(registry, "probewatch_tokens_scored_total", probe="lie", phase=phase) == 0
        for reason in Reason:
            labels = {"probe": "lie", "phase": phase, "reason": reason.label}
            assert value(registry, "probewatch_tokens_unscored_total", **labels) == 0
    for verdict in ("ok", "flagged", "unscored"):
        assert value(registry, "probewatch_requests_total", probe="lie", verdict=verdict) == 0
    assert value(registry, "probewatch_alerts_total", probe="lie", action="alert") == 0
    assert value(registry, "probewatch_request_margin_count", probe="lie") == 0
    assert value(registry, "probewatch_score_drift", probe="lie") == 0
    assert value(registry, "probewatch_selftest_error", probe="lie") == 0
    assert value(registry, "probewatch_step_overhead_seconds_count") == 0
    assert value(registry, "probewatch_attached") == 0
    for stage in ERROR_STAGES:
        assert value(registry, "probewatch_errors_total", stage=stage) == 0


def test_a_probe_that_stops_has_its_counters_and_one_that_observes_has_no_alerts() -> None:
    _, registry = make_frontend(alerting("stops", default_action="stop"), make_probe("watches"))
    assert value(registry, "probewatch_alerts_total", probe="stops", action="stop") == 0
    assert value(registry, "probewatch_stopped_requests_total", probe="stops") == 0
    text = generate_latest(registry).decode()
    assert not any("alerts_total{" in line and "watches" in line for line in text.splitlines())


def test_a_probe_is_described_with_its_layers_digest_threshold_and_nominal_rate() -> None:
    probe = alerting(
        threshold=1.5, layers=(1, 3), tensors_sha256="ab" * 32, calibration={"nominal_fpr": 0.01, "n": 100}
    )
    _, registry = make_frontend(probe)
    labels = {"probe": "lie", "kind": "logistic", "layers": "1,3", "sha256": "ab" * 32}
    assert value(registry, "probewatch_probe_info", **labels) == 1
    assert value(registry, "probewatch_threshold", probe="lie") == 1.5
    assert value(registry, "probewatch_nominal_fpr", probe="lie") == 0.01


def test_a_detached_probe_shows_no_gauge_of_what_was() -> None:
    probe = alerting(threshold=1.5, benign_quantiles=BENIGN, calibration={"nominal_fpr": 0.01, "n": 100})
    frontend, registry = make_frontend(probe)
    before = frontend.bank
    frontend.adopt(before.follow([]))
    assert [value(registry, name, probe="lie") for name in PROBE_GAUGES] == [None] * len(PROBE_GAUGES)
    assert value(registry, "probewatch_requests_total", probe="lie", verdict="ok") == 0, "counters stay"
    frontend.adopt(frontend.bank.follow([probe]))
    assert value(registry, "probewatch_threshold", probe="lie") == 1.5


def test_a_probe_that_is_told_to_observe_shows_it() -> None:
    frontend, registry = make_frontend(alerting())

    def actions() -> list[float | None]:
        return [
            value(registry, "probewatch_action_info", probe="lie", action=one) for one in ("alert", "observe")
        ]

    assert actions() == [1, None]
    [told] = [wanted(seat.probe, default_action="observe") for seat in frontend.bank.seats]
    frontend.adopt(bank_of(frontend.bank, [told], 1, {}))
    assert actions() == [0, 1]
    frontend.adopt(frontend.bank.follow([alerting()], 2))
    assert actions() == [1, 0]
    frontend.adopt(frontend.bank.follow([], 3))
    assert actions() == [None, None]


def test_an_uncalibrated_probe_shows_no_threshold() -> None:
    _, registry = make_frontend(make_probe("fresh"))
    assert value(registry, "probewatch_threshold", probe="fresh") is None
    assert value(registry, "probewatch_nominal_fpr", probe="fresh") is None


def test_counters_rise_from_the_child_that_was_there() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(MODEL, "0", registry)
    metrics.add_probe(alerting())
    metrics.inc("probewatch_requests_total", "lie", "flagged")
    metrics.inc("probewatch_requests_total", "lie", "flagged", by=2)
    assert value(registry, "probewatch_requests_total", probe="lie", verdict="flagged") == 3


def test_two_engines_share_a_registry_and_count_apart() -> None:
    registry = CollectorRegistry()
    one, two = Metrics(MODEL, "0", registry), Metrics(MODEL, "1", registry)
    one.inc("probewatch_tokens_scored_total", "lie", "prompt", by=3)
    one.inc("probewatch_tokens_scored_total", "lie", "generation", by=4)
    one.inc("probewatch_tokens_scored_total", "liar", "prompt", by=50)
    two.inc("probewatch_tokens_scored_total", "lie", "prompt", by=600)
    assert one.total("probewatch_tokens_scored_total", "lie") == 7
    assert one.total("probewatch_tokens_scored_total") == 57
    assert two.total("probewatch_tokens_scored_total", "lie") == 600


def test_the_margin_has_zero_among_its_bounds_and_overhead_reaches_microseconds() -> None:
    assert 0.0 in CATALOGUE["probewatch_request_margin"].buckets
    assert min(CATALOGUE["probewatch_step_overhead_seconds"].buckets) <= 1e-4


def test_a_scrape_of_everything_can_be_parsed() -> None:
    frontend, registry = make_frontend(alerting(benign_quantiles=BENIGN))
    frontend.metrics.announce("0.1", "0.32", "v1")
    found = {family.name for family in text_string_to_metric_families(generate_latest(registry).decode())}
    assert found == {name.removesuffix("_total") for name in CATALOGUE}, (
        "and nothing of when a child was made"
    )
    assert value(registry, "probewatch_build_info", version="0.1", vllm_version="0.32", runner="v1") == 1


COUNTING = """
import sys
from monitor.metrics import Metrics
from tests.unit.monitor_fakes import MODEL

engines = [Metrics(MODEL, index) for index in "01"]
scored = float(sys.argv[1])
engines[0].inc("probewatch_tokens_scored_total", "lie", "prompt", by=scored)
engines[0].inc("probewatch_tokens_scored_total", "lie", "generation", by=2 * scored)
engines[0].inc("probewatch_tokens_scored_total", "liar", "prompt", by=1000)
engines[1].inc("probewatch_tokens_scored_total", "lie", "prompt", by=7)
print(*(engine.total("probewatch_tokens_scored_total", "lie") for engine in engines))
print(engines[0].total("probewatch_tokens_scored_total"))
"""


def api_server(folder: Path, program: str, *arguments: object) -> list[float]:
    """One of several API servers, and the numbers it prints."""
    [printed] = nursery.run(program, arguments, environment={"PROMETHEUS_MULTIPROC_DIR": str(folder)})
    return [float(number) for number in printed.split()]


def counted(folder: Path, scored: int) -> list[float]:
    """An API server counts, and then adds up what all of them have counted."""
    return api_server(folder, COUNTING, scored)


CHANGING = """
import sys
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from monitor.catalogue import PROBE_GAUGES
from tests.unit.monitor_fakes import BENIGN, MODEL, alerting, make_frontend

calibration = {"nominal_fpr": 0.01, "n": 100}
probe = alerting(threshold=float(sys.argv[1]), benign_quantiles=BENIGN, calibration=calibration)
frontend, _ = make_frontend(probe)
frontend.metrics.set("probewatch_selftest_error", "lie", to=0.5)
if "detach" in sys.argv:
    frontend.adopt(frontend.bank.follow([]))
page = CollectorRegistry()
MultiProcessCollector(page)
labels = {"model_name": MODEL, "engine": "0", "probe": "lie"}
print(*(page.get_sample_value(name, labels) or 0.0 for name in PROBE_GAUGES))
"""


def test_where_several_processes_share_the_page_a_detached_probe_shows_nan(tmp_path: Path) -> None:
    assert api_server(tmp_path, CHANGING, 1.5) == [1.5, 0.01, 0.0, 0.0, 0.5]
    found = api_server(tmp_path, CHANGING, 1.5, "detach")
    assert [number != number for number in found] == [True] * len(PROBE_GAUGES)
    assert api_server(tmp_path, CHANGING, 2.5)[0] == 2.5, "attached again"


def test_a_total_is_that_of_all_api_servers(tmp_path: Path) -> None:
    assert counted(tmp_path, 10) == [30, 7, 1030]
    assert counted(tmp_path, 100) == [330, 14, 2330]


def test_many_values_at_once_are_observed_as_one_by_one() -> None:
    values = np.array([[-9.0, 1.0], [-0.5, np.nan], [-0.5, 8.0], [0.0, np.inf], [0.1, 8.1], [1e9, -1e9]])
    pages = []
    for at_once in (True, False):
        registry = CollectorRegistry()
        metrics = Metrics("m", "0", registry)
        if at_once:
            metrics.observe_all("probewatch_request_margin", [("a",), ("b",)], values)
            metrics.observe_all("probewatch_request_margin", [("a",), ("b",)], values[:0])
        else:
            for name, column in zip("ab", values.T.tolist(), strict=True):
                for one in column:
                    if np.isfinite(one):
                        metrics.observe("probewatch_request_margin", name, value=one)
        page = generate_latest(registry).decode().splitlines()
        wanted = ("probewatch_request_margin_bucket", "probewatch_request_margin_sum")
        pages.append([line for line in page if line.startswith(wanted)])
    assert pages[0] == pages[1]
    assert len(pages[0]) > 20
