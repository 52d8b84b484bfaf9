"""Increments that wait are there for whoever looks."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from monitor.metrics import Metrics
from monitor.tally import Tally

NAME = "probewatch_tokens_seen_total"


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


def test_what_arrives_soon_after_another_waits_and_is_added_up() -> None:
    seen: list[tuple[object, ...]] = []
    tally = Tally(lambda name, *labels, by: seen.append((name, *labels, by)), at_once=False)
    children = [("a",)]
    tally.add("x", children, 1)
    tally.add("x", children, 2)
    tally.add("x", children, 3)
    tally.flush()
    assert seen == [("x", "a", 1), ("x", "a", 5)]
    tally.flush()
    assert len(seen) == 2


def test_single_increments_are_counted_by_their_labels() -> None:
    registry = CollectorRegistry()
    metrics = Metrics("m", "0", registry)
    name = "probewatch_requests_total"
    metrics.inc_each(name, [("a", "ok"), ("b", "flagged")])
    metrics.inc_each(name, [("a", "ok"), ("b", "ok")])
    page = generate_latest(registry).decode()
    assert f'{name}{{engine="0",model_name="m",probe="a",verdict="ok"}} 2.0' in page
    assert f'{name}{{engine="0",model_name="m",probe="b",verdict="ok"}} 1.0' in page
    assert f'{name}{{engine="0",model_name="m",probe="b",verdict="flagged"}} 1.0' in page
