"""Accounting: for every probe seen = scored + unscored, whatever arrives, and verdicts where they can be read."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter

from monitor.drift import Drift
from monitor.events import FloatArray
from monitor.frontend import Arrival, Frontend, Running
from monitor.publisher import WAITING
from monitor.records import Record
from monitor.unscored import Reason, nan_for, reasons
from monitor.verdict import FLAGGED, OK, UNSCORED, Verdicts
from monitor.wire import shares
from tests.unit.monitor_fake_engine import FakeEngine
from tests.unit.monitor_fake_server import FakeWorker
from tests.unit.monitor_fakes import (
    BENIGN,
    Scrape,
    alerting,
    alone,
    column,
    make_frontend,
    make_probe,
    summed,
    value,
)

SEEN = "probewatch_tokens_seen_total"
SCORED = "probewatch_tokens_scored_total"
LOST = "probewatch_tokens_unscored_total"
PHASES = ("prompt", "generation")


def running_of(prompt: int = 3, response_id: str = "r", choice: int = 0) -> Running:
    return Running(response_id, None, choice, prompt, tuple(range(prompt)))


def send(frontend: Frontend, running: Running, sampled: int, start: int, states: FloatArray | None) -> None:
    frontend.arrive([Arrival(running, tuple(range(50, 50 + sampled)), start, states)])


def tokens(registry: CollectorRegistry, probe: str = "lie") -> dict[str, tuple[float, float, float]]:
    """(seen, scored, unscored) by phase."""
    page = Scrape(registry)
    return {
        phase: (
            page.value(SEEN, phase=phase) or 0.0,
            page.value(SCORED, probe=probe, phase=phase) or 0.0,
            page.summed(LOST, probe=probe, phase=phase),
        )
        for phase in PHASES
    }


def test_a_sequence_delivered_whole_is_scored_whole() -> None:
    frontend, registry = make_frontend(alerting())
    running = running_of(3)
    send(frontend, running, 1, 0, column(1, 2, 3))
    send(frontend, running, 2, 3, column(4, 5))
    send(frontend, running, 1, 5, column(6))
    assert tokens(registry) == {"prompt": (3, 3, 0), "generation": (3, 3, 0)}
    record = frontend.finish(running, "stop")
    assert record is not None
    assert record.states[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert record.token_ids is not None
    assert record.token_ids.tolist() == [0, 1, 2, 50, 50, 51, 50]


def test_drafts_accepted_with_the_first_output_are_generated_tokens() -> None:
    frontend, registry = make_frontend(alerting())
    send(frontend, running_of(2), 3, 0, column(1, 2, 3, 4))
    assert tokens(registry) == {"prompt": (2, 2, 0), "generation": (2, 2, 0)}


def test_a_prompt_of_one_token() -> None:
    frontend, registry = make_frontend(alerting())
    running = running_of(1)
    send(frontend, running, 1, 0, column(7))
    send(frontend, running, 1, 1, column(8))
    assert tokens(registry) == {"prompt": (1, 1, 0), "generation": (1, 1, 0)}


def test_nothing_delivered_is_counted_as_not_delivered() -> None:
    frontend, registry = make_frontend(alerting())
    running = running_of(3)
    send(frontend, running, 1, 0, None)
    send(frontend, running, 1, 3, column(1))
    assert value(registry, LOST, probe="lie", phase="prompt", reason="not_delivered") == 3
    assert tokens(registry) == {"prompt": (3, 0, 3), "generation": (1, 1, 0)}


@pytest.mark.parametrize("start", [0, 2, 4, 5])
def test_states_for_another_position_are_never_taken_for_these(start: int) -> None:
    frontend, registry = make_frontend(alerting())
    running = running_of(3)
    send(frontend, running, 1, 0, column(1, 2, 3))
    send(frontend, running, 1, start, column(99))
    send(frontend, running, 1, 4, column(5))
    record = frontend.finish(running, "stop")
    assert record is not None
    assert reasons(record.states)[:, 0].tolist() == [-1, -1, -1, Reason.NOT_DELIVERED, -1]
    assert tokens(registry)["generation"] == (2, 1, 1)


def test_an_error_while_counting_leaves_no_token_neither_scored_nor_unscored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frontend, registry = make_frontend(alerting())
    first, second = running_of(3, "a"), running_of(2, "b")

    def fail(*_: object) -> None:
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr("monitor.frontend.missing", fail)
        send(frontend, first, 1, 0, column(1, 2, 3))
    with monkeypatch.context() as patch:
        patch.setattr(frontend, "_rows", fail)
        send(frontend, second, 1, 0, None)
    assert tokens(registry) == {"prompt": (5, 0, 5), "generation": (0, 0, 0)}
    assert value(registry, "probewatch_errors_total", stage="frontend") == 2
    for running in (first, second):
        send(frontend, running, 1, running.fed, column(9))
        record = frontend.finish(running, "stop")
        assert record is not None
        assert record.verdict == UNSCORED, "what was lost once never passes as scored"
    assert tokens(registry)["generation"] == (2, 2, 0)


def test_too_few_states_leave_the_rest_undelivered() -> None:
    frontend, registry = make_frontend(alerting())
    running = running_of(4)
    send(frontend, running, 1, 0, column(1, 2))
    assert tokens(registry) == {"prompt": (4, 2, 2), "generation": (0, 0, 0)}
    send(frontend, running, 1, 4, column(5))
    record = frontend.finish(running, "stop")
    assert record is not None
    assert reasons(record.states)[:, 0].tolist() == [-1, -1, *[Reason.NOT_DELIVERED] * 2, -1]


def test_too_many_states_are_cut_to_the_tokens_that_vllm_kept() -> None:
    frontend, registry = make_frontend(alerting())
    running = running_of(2)
    send(frontend, running, 1, 0, column(1, 2, 77, 78))  # a stop fell among accepted drafts
    assert tokens(registry) == {"prompt": (2, 2, 0), "generation": (0, 0, 0)}
    record = frontend.finish(running, "stop")
    assert record is not None
    assert record.states[:, 0].tolist() == [1, 2]


def test_reasons_from_the_engine_are_counted_by_probe_and_phase() -> None:
    frontend, registry = make_frontend(alerting("a"), alerting("b"))
    states = np.ones((4, 2), np.float32)
    states[0, 0] = nan_for(Reason.BEFORE_ATTACH)
    states[2, 0] = np.inf
    states[3] = nan_for(Reason.TAP_SILENT)
    running = running_of(2)
    send(frontend, running, 3, 0, states)
    assert value(registry, LOST, probe="a", phase="prompt", reason="before_attach") == 1
    assert value(registry, LOST, probe="a", phase="generation", reason="non_finite") == 1
    assert value(registry, LOST, probe="b", phase="generation", reason="tap_silent") == 1
    assert tokens(registry, "a") == {"prompt": (2, 1, 1), "generation": (2, 0, 2)}
    assert tokens(registry, "b") == {"prompt": (2, 2, 0), "generation": (2, 1, 1)}
    assert alone(frontend).coverage() == {"a": 0.25, "b": 0.75}


def test_sequences_of_one_step_are_counted_each_with_its_own_prompt() -> None:
    frontend, registry = make_frontend(alerting())
    old, new = running_of(2, "old"), running_of(3, "new")
    send(frontend, old, 1, 0, column(1, 1))
    frontend.arrive(
        [
            Arrival(old, (7,), 2, column(nan_for(Reason.NON_FINITE))),
            Arrival(new, (8,), 0, column(nan_for(Reason.BEFORE_ATTACH), 2, 3)),
            Arrival(running_of(5, "chunk"), (), 0, None),
        ]
    )
    assert tokens(registry) == {"prompt": (5, 4, 1), "generation": (1, 0, 1)}


def test_a_request_gone_before_its_first_output_leaves_no_trace() -> None:
    frontend, registry = make_frontend(alerting())
    running = running_of(3)
    send(frontend, running, 0, 0, None)
    assert frontend.finish(running, "abort") is None
    assert tokens(registry) == {"prompt": (0, 0, 0), "generation": (0, 0, 0)}
    assert summed(registry, "probewatch_requests_total") == 0
    assert len(frontend.recent) == 0


def test_a_request_gone_after_its_first_output_is_judged_on_what_was_fed() -> None:
    frontend, registry = make_frontend(alerting(threshold=2.5))
    running = running_of(3)
    send(frontend, running, 1, 0, column(1, 2, 3))
    record = frontend.finish(running, "abort")
    assert record is not None
    assert (record.verdict, record.finish_reason) == ("flagged", "abort")
    assert frontend.recent.of("r") == [record]
    assert value(registry, "probewatch_requests_total", probe="lie", verdict="flagged") == 1


def test_only_acting_probes_raise_alerts() -> None:
    watches = make_probe("watches", threshold=0.0, token_mask={"prompt": "all"}, default_action="observe")
    stops = alerting("stops", default_action="stop")
    frontend, registry = make_frontend(alerting("acts"), watches, stops)
    for choice in range(3):
        running = running_of(3, choice=choice)
        send(frontend, running, 1, 0, np.array([[1, 1, -1]] * 3, np.float32))
        frontend.finish(running, "stop")
    assert value(registry, "probewatch_alerts_total", probe="acts", action="alert") == 3
    assert value(registry, "probewatch_alerts_total", probe="stops", action="stop") == 0
    assert summed(registry, "probewatch_alerts_total", probe="watches") == 0
    assert value(registry, "probewatch_requests_total", probe="watches", verdict="flagged") == 3
    assert value(registry, "probewatch_requests_total", probe="stops", verdict="ok") == 3


def test_an_unscored_sequence_raises_no_alert() -> None:
    frontend, registry = make_frontend(alerting())
    running = running_of(2)
    send(frontend, running, 1, 0, None)
    record = frontend.finish(running, "stop")
    assert record is not None
    assert record.verdict == UNSCORED
    assert value(registry, "probewatch_requests_total", probe="lie", verdict="unscored") == 1
    assert summed(registry, "probewatch_alerts_total") == 0


def test_the_margin_is_measured_in_benign_interquartile_ranges() -> None:
    frontend, registry = make_frontend(alerting(threshold=10.0, benign_quantiles=BENIGN))
    for score in (7.6, 10.0, 12.4, 35.0):  # margins -0.48, 0, 0.48, 5
        running = running_of(1)
        send(frontend, running, 1, 0, column(score))
        frontend.finish(running, "stop")
    bucket = "probewatch_request_margin_bucket"
    counts = {le: value(registry, bucket, probe="lie", le=le) for le in ("-0.5", "0.0", "0.5", "4.0", "8.0")}
    assert counts == {"-0.5": 0, "0.0": 2, "0.5": 3, "4.0": 3, "8.0": 4}
    assert value(registry, "probewatch_request_margin_count", probe="lie") == 4


def test_a_sequence_without_a_score_has_no_margin() -> None:
    frontend, registry = make_frontend(alerting(benign_quantiles=BENIGN))
    running = running_of(2)
    send(frontend, running, 1, 0, None)
    frontend.finish(running, "stop")
    assert value(registry, "probewatch_request_margin_count", probe="lie") == 0


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.0, 0.1), (4.0, 1.0, 50.0)])
def test_a_planted_shift_of_traffic_shows_as_drift(shift: float, low: float, high: float) -> None:
    frontend, registry = make_frontend(alerting(threshold=50.0, benign_quantiles=BENIGN))
    for i in range(400):
        running = running_of(1, f"r{i}")
        send(frontend, running, 1, 0, column(i % 100 / 10 + 0.05 + shift))
        frontend.finish(running, "stop")
    drift = value(registry, "probewatch_score_drift", probe="lie")
    assert drift is not None
    assert low <= drift <= high


def test_a_probe_that_was_detached_meanwhile_judges_to_the_end_and_leaves_no_drift() -> None:
    frontend, registry = make_frontend(alerting(threshold=50.0, benign_quantiles=BENIGN))
    running = [running_of(1, f"r{i}") for i in range(300)]
    for one in running:
        send(frontend, one, 1, 0, column(99.0))
    frontend.adopt(frontend.bank.follow([]))
    for one in running:
        frontend.finish(one, "stop")
    assert value(registry, "probewatch_requests_total", probe="lie", verdict="flagged") == 300
    assert value(registry, "probewatch_score_drift", probe="lie") is None
    assert frontend._publisher._drift == {}


def test_verdicts_that_nobody_reads_do_not_pile_up_and_none_is_lost() -> None:
    frontend, registry = make_frontend(alerting(threshold=0.5), alerting("other", threshold=2.0))
    for i in range(3 * WAITING + 5):
        running = running_of(1, f"r{i}")
        send(frontend, running, 1, 0, np.array([[i % 2, 1.0]], np.float32))
        frontend.finish(running, "stop")
        assert len(frontend._publisher._waiting) < WAITING
    judged = {
        (name, verdict): value(registry, "probewatch_requests_total", probe=name, verdict=verdict)
        for name in ("lie", "other")
        for verdict in (OK, FLAGGED, UNSCORED)
    }
    n = 3 * WAITING + 5
    assert judged == {
        ("lie", OK): n - n // 2,
        ("lie", FLAGGED): n // 2,
        ("lie", UNSCORED): 0,
        ("other", OK): n,
        ("other", FLAGGED): 0,
        ("other", UNSCORED): 0,
    }


def test_while_somebody_reads_verdicts_wait_and_the_one_who_serves_does_not() -> None:
    frontend, registry = make_frontend(alerting(threshold=0.5))
    reading, done = threading.Event(), threading.Event()

    def read() -> None:
        with frontend.metrics.applying:
            reading.set()
            done.wait(10)

    reader = threading.Thread(target=read)
    reader.start()
    reading.wait(10)
    for i in range(WAITING + 3):
        running = running_of(1, f"r{i}")
        send(frontend, running, 1, 0, column(1.0))
        frontend.finish(running, "stop")
    assert reader.is_alive()
    done.set()
    reader.join()
    assert value(registry, "probewatch_requests_total", probe="lie", verdict="flagged") == WAITING + 3


@pytest.mark.parametrize("others_read", [True, False])
def test_where_another_process_may_read_no_verdict_waits(others_read: bool) -> None:
    frontend, _ = make_frontend(alerting(threshold=0.5))
    frontend.metrics.others_read = others_read
    running = running_of(1)
    send(frontend, running, 1, 0, column(1.0))
    frontend.finish(running, "stop")
    flagged = frontend.metrics.child("probewatch_requests_total", "lie", FLAGGED)
    assert isinstance(flagged, Counter)
    [total] = [one.value for one in flagged.collect()[0].samples if one.name.endswith("_total")]
    assert total == others_read


@pytest.mark.parametrize("beside", [0, 2])
def test_a_verdict_that_cannot_be_counted_is_an_error_and_costs_neither_the_page_nor_others(
    beside: int,
) -> None:
    frontend, registry = make_frontend(alerting(threshold=0.5, benign_quantiles=BENIGN))
    jury = frontend._jury(frontend.bank)
    broken = Verdicts(["one", "too", "many"], np.zeros(3))
    broken.flagged[:] = True
    for _ in range(beside):
        frontend._publisher.publish(jury.judge(column(1.0), 1), jury)
    frontend._publisher.publish(broken, jury)
    send(frontend, running_of(1), 1, 0, column(1.0))
    assert value(registry, "probewatch_tokens_seen_total", phase="prompt") == 1
    assert value(registry, "probewatch_requests_total", probe="lie", verdict="flagged") == beside
    assert value(registry, "probewatch_alerts_total", probe="lie", action="alert") == beside
    assert value(registry, "probewatch_request_margin_count", probe="lie") == beside
    assert value(registry, "probewatch_errors_total", stage="frontend") == 1
    assert "counted" in str(frontend.last_error)


def test_drift_that_cannot_be_compared_costs_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    frontend, registry = make_frontend(alerting(threshold=50.0, benign_quantiles=BENIGN))
    monkeypatch.setattr(Drift, "shift", lambda self: 1 / 0)
    send(frontend, running_of(1), 1, 0, column(1.0))
    assert value(registry, "probewatch_tokens_seen_total", phase="prompt") == 1
    assert frontend.last_error == "frontend: ZeroDivisionError: division by zero"


def test_each_probe_of_many_kinds_has_its_own_alerts_margins_and_drift() -> None:
    point = {"probabilities": (0.0, 1.0), "values": (3.0, 3.0)}
    frontend, registry = make_frontend(
        alerting("plain", threshold=0.0, default_action="observe"),
        alerting("known", threshold=2.0, benign_quantiles=BENIGN),
        alerting("open", threshold=None, default_action="observe", benign_quantiles=BENIGN),
        alerting("point", threshold=2.0, benign_quantiles=point),
        alerting("other", threshold=100.0, benign_quantiles=BENIGN),
    )
    for i in range(300):
        running = running_of(1, f"r{i}")
        scores = [1.0, i % 100 / 10 + 0.05, 5.0, 3.0, 90.0]
        send(frontend, running, 1, 0, np.array([scores], np.float32))
        frontend.finish(running, "stop")

    def of(name: str) -> list[float | None]:
        """Alerts, margins, those at the threshold or below, drift."""
        return [
            value(registry, "probewatch_alerts_total", probe=name, action="alert"),
            value(registry, "probewatch_request_margin_count", probe=name),
            value(registry, "probewatch_request_margin_bucket", probe=name, le="0.0"),
            value(registry, "probewatch_score_drift_ks", probe=name),
        ]

    assert of("plain") == [None, 0, 0, 0]
    assert of("known") == [240, 300, 60, pytest.approx(0.0, abs=0.02)]
    assert of("open") == [None, 0, 0, pytest.approx(0.5)]
    assert of("point") == [300, 0, 0, pytest.approx(0.0)]
    assert of("other") == [0, 300, 300, pytest.approx(1.0)]


def test_verdicts_that_wait_are_counted_by_the_probes_that_gave_them() -> None:
    frontend, registry = make_frontend(alerting("old", threshold=0.5))
    send(frontend, first := running_of(1, "a"), 1, 0, column(1.0))
    frontend.finish(first, "stop")
    running = running_of(1, "c")
    send(frontend, running, 1, 0, column(1.0))
    frontend.adopt(frontend.bank.follow([alerting("old", threshold=5.0)]))
    second = running_of(1, "b")
    frontend.arrive([Arrival(second, (50,), 0, column(1.0), frontend.bank.epoch)])
    for one in (second, running):
        frontend.finish(one, "stop")
    assert value(registry, "probewatch_requests_total", probe="old", verdict=OK) == 1
    assert value(registry, "probewatch_requests_total", probe="old", verdict=FLAGGED) == 2


def test_metrics_outlive_an_engine_and_hold_nothing_of_what_it_remembers() -> None:
    frontend, registry = make_frontend(alerting(threshold=0.5))
    send(frontend, running := running_of(1), 1, 0, column(1.0))
    frontend.finish(running, "stop")
    seen, recent = weakref.ref(frontend), weakref.ref(frontend.recent)
    del frontend, running
    gc.collect()
    assert seen() is None
    assert recent() is None
    assert value(registry, "probewatch_requests_total", probe="lie", verdict="flagged") == 1


def test_coverage_counts_from_the_attach_on() -> None:
    frontend, _ = make_frontend(alerting("old"))
    send(frontend, running_of(3), 1, 0, column(1, 1, 1))
    frontend.adopt(frontend.bank.follow([]))
    frontend.adopt(frontend.bank.follow([alerting()]))
    assert alone(frontend).coverage() == {"lie": None}
    one = running_of(2, "later")
    frontend.arrive([Arrival(one, (1,), 0, column(1, nan_for(Reason.NON_FINITE)), frontend.bank.epoch)])
    assert alone(frontend).coverage() == {"lie": 0.5}


def test_the_time_of_the_last_score_moves_with_scored_tokens_only() -> None:
    frontend, registry = make_frontend(alerting())
    send(frontend, running_of(2), 1, 0, None)
    assert value(registry, "probewatch_last_scored_timestamp_seconds") == 0
    send(frontend, running_of(2), 1, 0, column(1, nan_for(Reason.NON_FINITE)))
    assert (value(registry, "probewatch_last_scored_timestamp_seconds") or 0) > 1.7e9


def test_a_server_without_probes_still_counts_what_it_sees() -> None:
    frontend, registry = make_frontend()
    running = running_of(3)
    send(frontend, running, 2, 0, np.empty((4, 0), np.float32))
    record = frontend.finish(running, "stop")
    assert record is not None
    assert record.states.shape == (4, 0)
    assert record.verdict == "ok"
    assert (value(registry, SEEN, phase="prompt"), value(registry, SEEN, phase="generation")) == (3, 1)
    assert alone(frontend).coverage() == {}


def test_the_oldest_response_is_forgotten_and_its_counts_are_not() -> None:
    frontend, registry = make_frontend(alerting(), recent=2)
    for name in ("a", "b", "c"):
        running = running_of(1, name)
        send(frontend, running, 1, 0, column(-1))
        frontend.finish(running, "stop")
    assert [bool(frontend.recent.of(name)) for name in ("a", "b", "c")] == [False, True, True]
    assert value(registry, "probewatch_requests_total", probe="lie", verdict="ok") == 3


def test_listeners_hear_every_record_once() -> None:
    frontend, _ = make_frontend(alerting())
    heard: list[Record] = []
    frontend.listeners.append(heard.append)
    running = running_of(1)
    send(frontend, running, 1, 0, column(1))
    record = frontend.finish(running, "stop")
    frontend.finish(running_of(4), "abort")
    assert heard == [record]


def test_a_record_outlives_the_bytes_that_the_engine_sent() -> None:
    frontend, _ = make_frontend(alerting())
    running = running_of(2)
    sent = column(1, 2)
    send(frontend, running, 1, 0, sent)
    sent[:] = 99
    record = frontend.finish(running, "stop")
    assert record is not None
    assert record.states[:, 0].tolist() == [1, 2]


def test_an_error_is_counted_by_stage_and_told_in_one_short_line() -> None:
    frontend, registry = make_frontend(alerting())
    frontend.error("frontend", ValueError("first\nsecond " + "x" * 1000))
    assert value(registry, "probewatch_errors_total", stage="frontend") == 1
    assert frontend.last_error is not None
    assert frontend.last_error.startswith("frontend: ValueError: first second xxx")
    assert "\n" not in frontend.last_error
    assert len(frontend.last_error) < 350


def test_coverage_before_any_token_is_unknown() -> None:
    assert alone(make_frontend(alerting())[0]).coverage() == {"lie": None}


def spoiled(rng: random.Random, start: int, states: FloatArray) -> tuple[int, FloatArray | None]:
    """What may happen to a delivery on its way."""
    fate = rng.randrange(12)
    if fate == 0:
        return start, None
    if fate == 1:
        return start + rng.choice([-1, 1, 5]), states
    if fate == 2:
        return start, states[: rng.randint(0, len(states))]
    if fate == 3:
        return start, np.concatenate([states, states])
    if fate == 4:
        bad = states.copy()
        bad[rng.randrange(len(bad)), rng.randrange(2)] = rng.choice([nan_for(r) for r in Reason] + [np.inf])
        return start, bad
    return start, states


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_seen_is_scored_plus_unscored_for_each_probe_in_any_traffic(seed: int) -> None:
    engine = FakeEngine(seed)
    worker = FakeWorker(engine)
    frontend, registry = make_frontend(alerting("a"), alerting("b"), recent=3)
    running: dict[str, Running] = {}
    prompt = generation = ended = 0
    for turn in range(120):
        if turn % 3 == 0 and turn < 30:
            engine.add()
        step = engine.step()
        if step is None:
            continue
        arrivals = []
        pairs = zip(step.requests, step.new_ids, step.first_outputs, shares(worker.watch(step)), strict=True)
        for request, ids, first, (start, states) in pairs:
            if not ids:
                continue
            # vLLM's own counters, less the last token of each sequence.
            prompt += len(request.prompt) * first
            generation += len(ids) - first
            own = running.setdefault(
                request.id, Running(request.id, None, 0, len(request.prompt), tuple(request.prompt))
            )
            arrivals.append(Arrival(own, ids, *spoiled(engine.rng, start, states)))
        frontend.arrive(arrivals)
        if turn % 20 == 0 or not engine.running:
            check_balance(registry, prompt, generation)
        for request in step.requests:
            if request in engine.finished and request.id in running:
                record = frontend.finish(running.pop(request.id), "stop")
                ended += 1
                check_record(record, request.fed(2), request.tokens)
    check_balance(registry, prompt, generation)
    assert len(frontend.recent) == min(3, ended)
    for name in ("a", "b"):
        assert summed(registry, "probewatch_requests_total", probe=name) == ended


def check_balance(registry: CollectorRegistry, prompt: int, generation: int) -> None:
    """Seen is what vLLM counted, and scored + unscored is seen."""
    for name in ("a", "b"):
        found = tokens(registry, name)
        assert found["prompt"][0] == prompt == found["prompt"][1] + found["prompt"][2]
        assert found["generation"][0] == generation == found["generation"][1] + found["generation"][2]


def check_record(record: Any, right: FloatArray, ids: list[int]) -> None:
    """Right length, right ids; every score is the right one or missing."""
    assert record.token_ids.tolist() == list(ids)
    assert record.states.shape == right.shape
    scored = np.isfinite(record.states)
    np.testing.assert_array_equal(record.states[scored], right[scored])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_coverage_is_one_where_nothing_is_lost(seed: int) -> None:
    engine = FakeEngine(seed)
    worker = FakeWorker(engine)
    frontend, _ = make_frontend(alerting("a"), alerting("b"))
    running: dict[str, Running] = {}
    for _ in range(5):
        engine.add()
    for _ in range(100):
        step = engine.step()
        if step is None:
            continue
        for request, ids, share in zip(step.requests, step.new_ids, shares(worker.watch(step)), strict=True):
            own = running.setdefault(request.id, Running(request.id, None, 0, len(request.prompt), None))
            frontend.arrive([Arrival(own, ids, *share)])
    assert len(engine.finished) == 5
    assert alone(frontend).coverage() == {"a": 1.0, "b": 1.0}


def test_coverage_of_many_probes_walks_through_the_counters_once(monkeypatch: pytest.MonkeyPatch) -> None:
    frontend, _ = make_frontend(*(alerting(name=f"p{number}") for number in range(20)))
    send(frontend, running_of(), 1, 0, np.ones((3, frontend.bank.state_columns), np.float32))
    walks: list[str] = []
    families = frontend.metrics._families
    monkeypatch.setattr(frontend.metrics, "_families", lambda name: walks.append(name) or families(name))
    assert set(frontend.counts().values()) == {(3.0, 0.0)}
    assert len(walks) == 2


def test_a_sequence_that_cannot_be_judged_is_unscored_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    frontend, registry = make_frontend(alerting())
    running = running_of()
    send(frontend, running, 1, 0, column(99.0, 99.0, 99.0))

    def fails(*_: object) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr("monitor.jury.Jury.judge", fails)
    record = frontend.finish(running, "stop")
    assert record is not None
    assert record.verdict == UNSCORED
    assert frontend.recent.of("r") == [record]
    assert value(registry, "probewatch_requests_total", probe="lie", verdict=UNSCORED) == 1


def test_an_answer_of_many_steps_lies_in_few_pieces() -> None:
    frontend, _ = make_frontend(alerting())
    running = running_of()
    send(frontend, running, 1, 0, column(1.0, 2.0, 3.0))
    for position in range(3, 1000):
        send(frontend, running, 1, position, column(float(position)))
    assert len(running.states) < 256
    record = frontend.finish(running, "stop")
    assert record is not None
    assert record.states[3:, 0].tolist() == list(range(3, 1000))
