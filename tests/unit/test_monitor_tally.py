"""Increments that wait are there for whoever looks."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from monitor.events import FloatArray
from monitor.frontend import Arrival, Frontend, Running
from monitor.metrics import Metrics
from monitor.tally import MANY, Tally
from tests.unit.monitor_fakes import alerting, column, make_frontend

NAME = "probewatch_tokens_seen_total"
SCORED, LOST = "probewatch_tokens_scored_total", "probewatch_tokens_unscored_total"


def test_a_scrape_sees_all_that_was_added() -> None:
    registry = CollectorRegistry()
    metrics, other = Metrics("m", "0", registry), Metrics("m", "1", registry)
    phases = [("prompt",), ("generation",)]
    for _ in range(3):
        metrics.inc_all(NAME, phases, by=2)
    other.inc_all(NAME, phases, by=5)
    page = generate_latest(registry).decode()
    assert f'{NAME}{{engine="0",model_name="m",phase="prompt"}} 6.0' in page
    assert f'{NAME}{{engine="0",model_name="m",phase="generation"}} 6.0' in page
    assert f'{NAME}{{engine="1",model_name="m",phase="prompt"}} 5.0' in page
    assert metrics.total(NAME) == 12


def test_nothing_waits_where_another_process_may_read() -> None:
    seen: list[tuple[object, ...]] = []
    tally = Tally(lambda name, *labels, by: seen.append((name, *labels, by)), at_once=True)
    children = [("a",), ("b",)]
    tally.add("x", children, 1)
    assert seen == [("x", "a", 1), ("x", "b", 1)]
    tally.add("x", children, 0)
    assert len(seen) == 2


def test_what_arrives_waits_for_a_reader_and_is_added_up() -> None:
    seen: list[tuple[object, ...]] = []
    tally = Tally(lambda name, *labels, by: seen.append((name, *labels, by)), at_once=False)
    children = [("a",)]
    tally.add("x", children, 1)
    tally.add("x", children, 2)
    tally.add("x", children, 3)
    assert not seen
    tally.flush()
    assert seen == [("x", "a", 6)]
    tally.flush()
    assert len(seen) == 1


def test_what_an_engine_counted_before_it_was_dropped_is_scraped() -> None:
    registry = CollectorRegistry()
    metrics = Metrics("m", "0", registry)
    metrics.inc_all(NAME, [("prompt",)], by=7)
    metrics.inc_later(SCORED, "lie", "prompt", by=7)
    del metrics
    gc.collect()
    assert totals(generate_latest(registry).decode()) == (7, 7)
    assert totals(generate_latest(registry).decode()) == (7, 7)


def test_two_engines_of_one_name_count_in_one_place() -> None:
    """One started after the other in the same process, as a script does."""
    registry = CollectorRegistry()
    first, second = Metrics("m", "0", registry), Metrics("m", "0", registry)
    first.inc_all(NAME, [("prompt",)], by=2)
    second.inc_all(NAME, [("prompt",)], by=3)
    assert second.total(NAME) == first.total(NAME) == 5


def test_what_waits_for_a_reader_who_never_comes_has_a_bound() -> None:
    """Each change of the probes brings lists of labels of its own."""
    tally = Tally(lambda name, *labels, by: added.append((name, *labels, by)), at_once=False)
    added: list[Any] = []
    for _ in range(10 * MANY):
        tally.add("x", [("a",), ("b",)], 1)
        tally.add_one("x", ("b",))
        assert len(tally._pending) <= MANY
    tally.flush()
    assert len(added) < 3 * MANY
    found = {label: sum(by for _, name, by in added if name == label) for label in "ab"}
    assert found == {"a": 10 * MANY, "b": 20 * MANY}


def test_single_increments_are_counted_by_their_labels() -> None:
    registry = CollectorRegistry()
    metrics = Metrics("m", "0", registry)
    name = "probewatch_requests_total"
    for probe, verdict in (("a", "ok"), ("b", "flagged"), ("a", "ok"), ("b", "ok")):
        metrics.inc_later(name, probe, verdict)
    page = generate_latest(registry).decode()
    assert f'{name}{{engine="0",model_name="m",probe="a",verdict="ok"}} 2.0' in page
    assert f'{name}{{engine="0",model_name="m",probe="b",verdict="ok"}} 1.0' in page
    assert f'{name}{{engine="0",model_name="m",probe="b",verdict="flagged"}} 1.0' in page


def elsewhere(work: Callable[[], None]) -> None:
    """Does ``work`` in another thread; vLLM answers a scrape in one."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it waits for the thread that waits for it"


def arrive(frontend: Frontend, states: FloatArray) -> None:
    frontend.arrive([Arrival(Running("r", None, 0, len(states), None), (7,), 0, states)])


def totals(page: str) -> tuple[float, float]:
    """Seen, and scored + unscored."""
    by_name = {
        name: sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))
        for name in (NAME, SCORED, LOST)
    }
    return by_name[NAME], by_name[SCORED] + by_name[LOST]


MIXED = [column(1, 2, 3), column(1, np.nan, 3)]


@pytest.mark.parametrize("states", MIXED)
def test_tokens_that_arrive_during_a_scrape_are_all_in_it_or_none(
    states: FloatArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    frontend, registry = make_frontend(alerting())
    real = Counter.collect

    def collect(self: Counter) -> Iterable[Any]:
        if self._name + "_total" == NAME:
            yield from real(self)
            elsewhere(functools.partial(arrive, frontend, states))
        else:
            yield from real(self)

    arrive(frontend, states)
    monkeypatch.setattr(Counter, "collect", collect)
    assert totals(generate_latest(registry).decode()) == (3, 3)
    monkeypatch.undo()
    assert totals(generate_latest(registry).decode()) == (6, 6)


def test_what_is_counted_together_is_not_seen_in_part() -> None:
    registry = CollectorRegistry()
    metrics = Metrics("m", "0", registry)
    looking = threading.Thread(target=lambda: pages.append(generate_latest(registry).decode()))
    pages: list[str] = []
    with metrics.together():
        metrics.inc_later(NAME, "prompt", by=2)
        looking.start()
        looking.join(0.05)
        metrics.inc_later(SCORED, "lie", "prompt", by=2)
    looking.join()
    assert totals(pages[0]) == (2, 2)


def test_a_scrape_of_chosen_names_sees_all_that_was_added() -> None:
    frontend, registry = make_frontend(alerting())
    for _ in range(2):
        arrive(frontend, MIXED[0])
    chosen = registry.restricted_registry([SCORED])
    assert totals(generate_latest(chosen).decode()) == (0, 6)
