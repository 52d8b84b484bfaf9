"""Several engines behind one server: each counts for itself, and a client knows nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from monitor.attach import Plan
from monitor.client import ADMIN_HEADER
from monitor.config import Settings
from monitor.engines import Engines
from monitor.errors import AttachError
from monitor.events import FloatArray, StepScores
from monitor.frontend import Arrival, Frontend, Running
from monitor.http import make_router
from monitor.metrics import Metrics
from monitor.records import RecentRecords
from monitor.seam.engine import accept_report
from monitor.seam.outputs import SECONDS_HELD, STEPS_HELD, OutputTap
from monitor.server_state import HttpState
from monitor.unscored import Reason, nan_for, reasons
from monitor.wire import CARRIER, pack
from tests.unit.monitor_fakes import MODEL, alerting, column, ints, make_bank, value

SEEN, SCORED = "probewatch_tokens_seen_total", "probewatch_tokens_scored_total"


def make_engines(*indices: int) -> tuple[Engines, CollectorRegistry]:
    """Engines with one alerting probe of threshold 2.5."""
    registry, recent = CollectorRegistry(), RecentRecords(16)
    bank = make_bank(alerting(threshold=2.5))

    def make(index: int) -> Frontend:
        return Frontend(bank, Metrics(MODEL, str(index), registry), MODEL, recent)

    return Engines(make, list(indices), recent), registry


def judged(frontend: Frontend, response_id: str, *scores: float | np.float32) -> None:
    """A whole sequence with a prompt of one token."""
    running = Running(response_id, None, 0, 1, (5,))
    frontend.arrive([Arrival(running, tuple(range(len(scores))), 0, column(*scores))])
    frontend.finish(running, "stop")


def tap_of(*indices: int) -> tuple[OutputTap, CollectorRegistry]:
    engines, registry = make_engines(*indices)
    return OutputTap(engines, Plan((), (), 1, 1)), registry


def requests(*ids: str, prompt: int = 2) -> dict[str, Any]:
    """What vLLM's front end knows of them."""
    return {
        id: SimpleNamespace(
            request_id=id,
            external_req_id=id,
            parent_req=None,
            prompt_token_ids=list(range(prompt)),
            prompt_len=prompt,
            streaming_input=False,
        )
        for id in ids
    }


def outputs(*ids: str, message: dict[str, Any] | None, new: int = 1) -> list[Any]:
    """One step's outputs, ``new`` tokens each; the message rides on the first."""
    found = [
        SimpleNamespace(
            request_id=id,
            new_token_ids=[9] * new,
            trace_headers=None,
            finish_reason=None,
            kv_transfer_params=None,
            stop_reason=None,
        )
        for id in ids
    ]
    if message is not None:
        found[0].kv_transfer_params = {CARRIER: message}
    return found


def message(*shares: tuple[int, FloatArray], errors: int = 0) -> dict[str, Any]:
    """``(start, states)`` of each request."""
    step = StepScores(
        counts=ints(*(len(states) for _, states in shares)),
        starts=ints(*(start for start, _ in shares)),
        states=np.concatenate([states for _, states in shares]),
        host_seconds=(1e-4,),
        errors=errors,
    )
    return pack(step, np.arange(len(shares)))


def states_of(tap: OutputTap, response_id: str) -> FloatArray:
    (record,) = tap.engines.recent.of(response_id)
    return record.states


def test_coverage_is_that_of_all_engines_together() -> None:
    engines, _ = make_engines(0, 1)
    assert engines.coverage() == {"lie": None}
    judged(engines[0], "a", 1.0, 2.0, nan_for(Reason.NON_FINITE))
    judged(engines[1], "b", 1.0, nan_for(Reason.NON_FINITE))
    assert engines.coverage() == {"lie": 3 / 5}


def test_a_server_is_attached_only_if_all_its_engines_are() -> None:
    engines, registry = make_engines(0, 1)
    engines[1].confirm()
    assert not engines.attached
    engines[0].confirm()
    assert engines.attached
    assert [value(registry, "probewatch_attached", engine=index) for index in "01"] == [1, 1]


def test_what_any_engine_remembers_is_found() -> None:
    engines, _ = make_engines(0, 1)
    judged(engines[0], "a", 1.0)
    judged(engines[1], "b", 9.0)
    assert [record.response_id for record in engines.recent.newest(5)] == ["b", "a"]
    assert engines[0].recent is engines[1].recent is engines.recent


def test_the_last_error_of_any_engine_is_told() -> None:
    engines, _ = make_engines(0, 1)
    assert engines.last_error is None
    engines[1].error("frontend", ValueError("broken"))
    assert engines.last_error == "frontend: ValueError: broken"


@pytest.mark.parametrize("proven", [False, True])
def test_an_engine_that_comes_later_is_as_proven_as_the_others_and_counts_for_itself(proven: bool) -> None:
    engines, registry = make_engines(0)
    if proven:
        engines.first.confirm()
    assert value(registry, SEEN, phase="prompt", engine="3") is None
    late = engines[3]
    assert late.attached is proven
    assert value(registry, "probewatch_attached", engine="3") == proven
    assert engines.all == [engines.first, late]
    assert engines[3] is late
    judged(late, "c", 1.0, 2.0)
    assert value(registry, SCORED, probe="lie", phase="prompt", engine="3") == 1
    assert value(registry, SCORED, probe="lie", phase="prompt") == 0


def test_engines_are_listed_by_index_whatever_their_order() -> None:
    engines, _ = make_engines(4, 1)
    assert engines.all == [engines[1], engines[4]]


def report(attached: bool = True, mib: float = 0.0, **changes: Any) -> dict[str, Any]:
    found = {"attached": attached, "probes": make_bank(alerting(threshold=2.5)).contents}
    return {**found, "selftest_error": {"lie": 0.25}, "score_store_mib": mib, "epoch": 0, **changes}


def test_the_workers_proof_holds_for_every_engine_and_the_store_is_that_of_the_worker_that_has_one() -> None:
    engines, registry = make_engines(0, 1)
    facts = accept_report(engines, [report(), report(mib=3.0), report()])
    assert engines.attached
    assert facts["score_store_mib"] == 3.0
    assert [value(registry, "probewatch_selftest_error", probe="lie", engine=i) for i in "01"] == [0.25] * 2


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"epoch": 3}, "have changed since it started .change 3.*restart the whole server"),
        ({"probes": [("other", "0" * 64)]}, "give both the same files"),
    ],
)
def test_an_api_server_that_knows_other_probes_than_the_workers_does_not_start(
    changes: dict[str, Any], remedy: str
) -> None:
    engines, _ = make_engines(0)
    with pytest.raises(AttachError, match=remedy):
        accept_report(engines, [report(), report(**changes)])
    assert not engines.attached


def test_sequences_of_two_engines_are_counted_under_their_own_label() -> None:
    tap, registry = tap_of(0, 1)
    known = requests("a", "b")
    tap.comes_from(0)
    tap.take(outputs("a", message=message((0, column(1, 1)))), known)
    tap.comes_from(1)
    tap.take(outputs("b", message=message((0, column(1, 1))), new=1), known)
    tap.take(outputs("b", message=message((2, column(1, 1, 1))), new=3), known)
    tap.comes_from(0)
    tap.take(outputs("a", message=message((2, column(1)))), known)
    tap.settle()
    generated = [value(registry, SCORED, probe="lie", phase="generation", engine=i) for i in "01"]
    assert generated == [1, 3]
    assert [value(registry, SEEN, phase="prompt", engine=i) for i in "01"] == [2, 2]
    assert [value(registry, "probewatch_step_overhead_seconds_count", engine=i) for i in "01"] == [2, 2]


def test_a_sequence_that_ends_counts_for_the_engine_it_ran_on() -> None:
    tap, registry = tap_of(0, 1)
    known = requests("a", "b")
    tap.comes_from(0)
    tap.take(outputs("a", message=message((0, column(1, 9)))), known)
    tap.comes_from(1)
    tap.take(outputs("b", message=message((0, column(1, 1)))), known)
    tap.finished("a", "abort")  # while the other engine's outputs are being processed
    tap.comes_from(0)
    tap.finished("b")
    for index, verdict in (("0", "flagged"), ("1", "ok")):
        labels = {"probe": "lie", "verdict": verdict}
        assert value(registry, "probewatch_requests_total", engine=index, **labels) == 1
    assert value(registry, "probewatch_alerts_total", probe="lie", action="alert", engine="0") == 1
    assert value(registry, "probewatch_alerts_total", probe="lie", action="alert", engine="1") == 0
    assert not tap.running


def test_an_engine_is_proven_by_its_own_scores_and_told_its_own_errors() -> None:
    tap, registry = tap_of(0, 1)
    tap.comes_from(1)
    tap.take(outputs("a", message=message((0, column(1, 1)), errors=2)), requests("a"))
    assert [frontend.attached for frontend in tap.engines.all] == [False, True]
    assert [value(registry, "probewatch_errors_total", stage="worker", engine=i) for i in "01"] == [0, 2]


def test_outputs_of_an_engine_nobody_knew_are_counted_from_their_first() -> None:
    tap, registry = tap_of(0)
    tap.comes_from(2)
    tap.take(outputs("a", message=message((0, column(1, 1)))), requests("a"))
    assert value(registry, SCORED, probe="lie", phase="prompt", engine="2") == 2


def test_what_is_left_of_a_step_is_never_taken_for_the_next() -> None:
    tap, _ = tap_of(0)
    known = requests("a", "b")
    tap.take(outputs("a", message=message((0, column(1, 1)), (0, column(7, 7)))), known)  # b's output is gone
    damaged = {**message((0, column(3, 3))), "states": b"..."}
    tap.take(outputs("b", message=damaged), known)
    tap.finished("b")
    assert (reasons(states_of(tap, "b")) == Reason.NOT_DELIVERED).all()
    tap.finished("a")
    assert states_of(tap, "a")[:, 0].tolist() == [1, 1]


def test_outputs_for_a_client_that_has_gone_are_ignored_and_their_scores_are_nobody_elses() -> None:
    tap, registry = tap_of(0)
    step = message((0, column(7, 7)), (0, column(1, 1)))
    tap.take(outputs("gone", "a", message=step), requests("a"))
    tap.finished("a")
    assert states_of(tap, "a")[:, 0].tolist() == [1, 1]
    assert value(registry, SEEN, phase="prompt") == 2


def test_a_step_in_chunks_keeps_its_shares_in_order() -> None:
    tap, _ = tap_of(0)
    known = requests("a", "b", "c")
    step = outputs("a", "b", "c", message=message(*((0, column(i, i)) for i in range(3))))
    tap.take(step[:1], known)
    tap.take(step[1:], known)
    for i, response_id in enumerate("abc"):
        tap.finished(response_id)
        assert states_of(tap, response_id)[:, 0].tolist() == [i, i]


Get = Callable[..., Any]


@pytest.fixture
def get() -> Get:
    """Routes of a server of two engines, of which one is proven."""
    engines, _ = make_engines(0, 1)
    judged(engines[0], "cmpl-a", 1.0, 2.0, 3.0)
    judged(engines[1], "cmpl-b", nan_for(Reason.NON_FINITE))
    engines[0].confirm()
    settings = Settings(admin_key=SecretStr("secret"))
    application = FastAPI()
    application.include_router(make_router(lambda: HttpState(engines, settings, str)))
    client = TestClient(application)
    return lambda path: client.get(f"/v1/probewatch{path}", headers={ADMIN_HEADER: "secret"}).json()


def test_the_status_is_that_of_all_engines(get: Get) -> None:
    found = get("/status")
    assert (found["engines"], found["attached"], found["coverage"]) == (2, False, {"lie": 0.75})
    assert [probe["name"] for probe in found["probes"]] == ["lie"]


def test_requests_of_every_engine_are_shown(get: Get) -> None:
    assert {line["id"] for line in get("/requests")} == {"cmpl-a", "cmpl-b"}
    assert [get(f"/requests/{id}")["verdict"] for id in ("cmpl-a", "cmpl-b")] == ["flagged", "unscored"]


def step_by_step(tap: OutputTap, known: dict[str, Any], first: int, steps: int, **shares: float) -> None:
    """Of each request one token a step."""
    for at in range(first, first + steps):
        parts = [(at, column(score + at)) for score in shares.values()]
        tap.take(outputs(*shares, message=message(*parts)), known)


def test_steps_that_only_go_on_are_accounted_for_together_and_none_is_forgotten() -> None:
    tap, registry = tap_of(0)
    known = requests("a", "b")
    tap.take(outputs("a", "b", message=message((0, column(1, 1)), (0, column(2, 2)))), known)
    step_by_step(tap, known, 2, STEPS_HELD, a=100, b=200)
    assert value(registry, SEEN, phase="generation") == 0  # none of them has anything to tell yet
    step_by_step(tap, known, 2 + STEPS_HELD, 3, a=100, b=200)
    told = [
        value(registry, SEEN, phase="generation"),
        value(registry, SCORED, probe="lie", phase="generation"),
    ]
    assert told == [2 * STEPS_HELD, 2 * STEPS_HELD]
    tap.finished("b", "abort")  # it has had no last output
    fed = range(2, 2 + STEPS_HELD + 3)
    assert states_of(tap, "b")[:, 0].tolist() == [2, 2, *(200 + at for at in fed)]
    assert (
        value(registry, SEEN, phase="generation")
        == value(registry, SCORED, probe="lie", phase="generation")
        == 22
    )
    tap.finished("a")
    assert states_of(tap, "a")[:, 0].tolist() == [1, 1, *(100 + at for at in fed)]
    (record,) = tap.engines.recent.of("a")
    assert record.token_ids is not None
    assert record.token_ids.tolist() == [0, 1] + [9] * (len(fed) + 1)


@pytest.mark.parametrize("fault", ["version", "starts", "states", "epoch"])
def test_a_damaged_step_among_those_that_wait_costs_its_own_tokens_alone(fault: str) -> None:
    tap, registry = tap_of(0)
    known = requests("a")
    tap.take(outputs("a", message=message((0, column(1, 1)))), known)
    step_by_step(tap, known, 2, 2, a=100)
    broken = message((4, column(104)))
    broken[fault] = {"version": 0, "starts": b"x", "states": b"x", "epoch": 77}[fault]
    tap.take(outputs("a", message=broken), known)
    step_by_step(tap, known, 5, 2, a=100)
    tap.finished("a")
    states = states_of(tap, "a")[:, 0]
    assert np.isnan(states).tolist() == [False] * 4 + [True] + [False] * 2
    assert states[[2, 3, 5, 6]].tolist() == [102, 103, 105, 106]
    unscored = value(
        registry, "probewatch_tokens_unscored_total", probe="lie", phase="generation", reason="not_delivered"
    )
    assert (unscored, value(registry, SCORED, probe="lie", phase="generation")) == (1, 4)
    assert value(registry, "probewatch_errors_total", stage="frontend") == 1


def test_a_step_in_chunks_that_waits_is_one_step() -> None:
    tap, registry = tap_of(0)
    known = requests("a", "b")
    tap.take(outputs("a", "b", message=message((0, column(1, 1)), (0, column(2, 2)))), known)
    for at in range(2, 6):
        first, second = outputs("a", "b", message=message((at, column(at)), (at, column(10 * at))))
        tap.take([first], known)
        tap.take([second], known)
    for name in "ab":
        tap.finished(name)
    assert states_of(tap, "a")[:, 0].tolist() == [1, 1, 2, 3, 4, 5]
    assert states_of(tap, "b")[:, 0].tolist() == [2, 2, 20, 30, 40, 50]
    assert value(registry, SCORED, probe="lie", phase="generation") == 8


def test_what_waits_belongs_to_the_engine_it_came_from() -> None:
    tap, registry = tap_of(0, 1)
    known = requests("a", "b")
    for engine, name in enumerate("ab"):
        tap.comes_from(engine)
        tap.take(outputs(name, message=message((0, column(1, 1)))), known)
    for at in range(2, 5):
        for engine, name in enumerate("ab"):
            tap.comes_from(engine)
            tap.take(outputs(name, message=message((at, column(at)), errors=engine)), known)
    tap.settle()
    assert tap.frontend is tap.engines[1]
    assert [value(registry, SCORED, probe="lie", phase="generation", engine=i) for i in "01"] == [3, 3]
    assert value(registry, "probewatch_errors_total", stage="worker", engine="1") == 3


def test_steps_that_lose_their_scores_are_told_at_once() -> None:
    tap, registry = tap_of(0)
    known = requests("a")
    tap.take(outputs("a", message=message((0, column(1, 1)))), known)
    step_by_step(tap, known, 2, 3, a=100)
    for lost in range(1, 4):
        tap.take(outputs("a", message=None), known)
        unscored = value(
            registry,
            "probewatch_tokens_unscored_total",
            probe="lie",
            phase="generation",
            reason="not_delivered",
        )
        assert unscored == lost
    assert value(registry, SCORED, probe="lie", phase="generation") == 3


def test_a_step_without_scores_is_its_own_engines() -> None:
    tap, registry = tap_of(0, 1)
    known = requests("a", "b", "c")
    tap.take(outputs("a", message=message((0, column(1, 1)))), known)
    tap.comes_from(1)
    tap.take(outputs("b", "c", message=message((0, column(1, 1)), (0, column(1, 1)))), known)
    tap.take(
        outputs("b", message=message((2, column(1)), (2, column(1)))), known
    )  # the chunk with c comes last
    tap.comes_from(0)
    tap.take(outputs("a", message=None), known)
    tap.comes_from(1)
    tap.take(outputs("c", message=None), known)
    tap.settle()
    assert [value(registry, SEEN, phase="generation", engine=i) for i in "01"] == [1, 2]


def test_what_waits_does_not_wait_long_where_steps_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    tap, registry = tap_of(0)
    known = requests("a")
    tap.take(outputs("a", message=message((0, column(1, 1)))), known)
    now = 100.0
    monkeypatch.setattr("monitor.seam.outputs.time.monotonic", lambda: now)
    step_by_step(tap, known, 2, 1, a=100)
    now += SECONDS_HELD + 0.1
    step_by_step(tap, known, 3, 1, a=100)
    assert value(registry, SCORED, probe="lie", phase="generation") == 1
