"""From forward pass to verdict, on both model runners, with several steps in flight, and when something fails."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.monitor_fake_server import FAULTS, FakeServer, scoring_probes
from tests.unit.monitor_fakes import Scrape

SETUPS = [("v1", 1), ("v1", 2), ("v1", 3), ("v2", 1), ("v2", 2), ("v2", 4)]
"""Model runner, and steps in flight."""
IN_FLIGHT = {"overlapped", "past_end", "freed_in_flight", "freed_late", "aborted_in_flight"}
IN_FLIGHT |= {"preempted_in_flight", "heard_after_preemption", "thrown_away"}
ALWAYS = {"hit", "copied", "chunk", "recomputed", "preempted_after_output", "preempted_before_output"}
DRAFTS = {"accepted", "rejected", "cut", "drafts_after_prompt"}

seeds = st.integers(0, 2**32 - 1)
ways = pytest.mark.parametrize(("runner", "depth"), SETUPS)


def served(seed: int, runner: str, depth: int, *, aside: bool = False, faults: float = 0.0) -> FakeServer:
    probes = scoring_probes(3, linear=seed % 2 == 1)
    server = FakeServer(seed, runner, depth, aside=aside, faults=faults, probes=probes)
    server.serve(60)
    return server


@ways
@given(seed=seeds)
@settings(max_examples=12, deadline=None)
def test_every_fed_token_is_scored_once_however_vllm_runs(runner: str, depth: int, seed: int) -> None:
    server = served(seed, runner, depth)
    assert len(server.expected) > 5
    for request_id, expected in server.expected.items():
        found = server.found(request_id)
        assert len(found) == len(expected), request_id
        for right, own in zip(expected, found, strict=True):
            np.testing.assert_array_equal(own, right)
    check_counts(server)
    assert server.monitor.report()["errors"] == 0


def check_counts(server: FakeServer) -> None:
    """Tokens seen are those that vLLM counts, and nothing of a step past a request's end."""
    page = Scrape(server.registry)
    for phase in ("prompt", "generation"):
        seen = page.value("probewatch_tokens_seen_total", phase=phase)
        assert seen == server.events[phase], phase
        for seat in server.monitor.bank.seats:
            labels = {"probe": seat.probe.manifest.name, "phase": phase}
            scored = page.value("probewatch_tokens_scored_total", **labels) or 0
            assert scored + page.summed("probewatch_tokens_unscored_total", **labels) == seen
    # However many API servers a step's outputs go to, what belongs to the whole step is counted once.
    assert page.value("probewatch_step_overhead_seconds_count") == server.events["messages"]
    told = page.value("probewatch_errors_total", stage="worker") or 0
    assert told <= server.monitor.report()["errors"]
    judged = sum(bool(expected) for expected in server.expected.values())
    for seat in server.monitor.bank.seats:
        assert page.summed("probewatch_requests_total", probe=seat.probe.manifest.name) == judged


def what_vllm_does(runner: str, depth: int) -> set[str]:
    """Events that must occur in the engines of these tests, or they show little."""
    expected = set(ALWAYS)
    if depth > 1:
        expected |= IN_FLIGHT
    if runner == "v1":
        expected |= {"raw"}
    if runner == "v2" or depth == 1:
        expected |= DRAFTS
    if runner == "v2":
        expected |= {"draft_dropped"}
    if runner == "v2" and depth > 1:
        expected |= {"too_high"}
    return expected


@pytest.mark.thorough
@pytest.mark.parametrize(("runner", "depth"), [("v1", 3), ("v2", 3)])
@given(seed=seeds)
@settings(max_examples=8, deadline=None)
def test_outputs_fetched_in_a_thread_of_their_own_hold_the_same_scores(
    runner: str, depth: int, seed: int
) -> None:
    aside, inline = served(seed, runner, depth, aside=True), served(seed, runner, depth)
    assert aside.expected.keys() == inline.expected.keys()
    for request_id in inline.expected:
        for one, other in zip(aside.found(request_id), inline.found(request_id), strict=True):
            np.testing.assert_array_equal(one, other)
    check_counts(aside)


@pytest.mark.thorough
@ways
@given(seed=seeds)
@settings(max_examples=12, deadline=None)
def test_whatever_fails_no_token_is_given_anothers_score(runner: str, depth: int, seed: int) -> None:
    server = served(seed, runner, depth, faults=0.15)
    check_faulty(server)
    check_counts(server)


def check_faulty(server: FakeServer) -> tuple[int, int]:
    """Every record is complete, and every score in it is the right one or missing; (scored, missing)."""
    scored = missing = 0
    for request_id, expected in server.expected.items():
        found = server.found(request_id)
        assert [own.shape for own in found] == [right.shape for right in expected], request_id
        for right, own in zip(expected, found, strict=True):
            there = np.isfinite(own)
            np.testing.assert_array_equal(own[there], right[there])
            scored, missing = scored + int(there.sum()), missing + int((~there).sum())
    return scored, missing


@ways
def test_in_all_that_vllm_does_the_scores_come_back_after_a_fault_and_each_is_told(
    runner: str, depth: int
) -> None:
    wanted = {**dict.fromkeys(what_vllm_does(runner, depth), 5), **dict.fromkeys(FAULTS, 3)}
    events: Counter[str] = Counter()
    scored = missing = 0
    for seed in range(25):
        server = served(seed, runner, depth, faults=0.06)
        own_scored, own_missing = check_faulty(server)
        scored, missing = scored + own_scored, missing + own_missing
        events += server.events + server.engine.events
        faults = sum(server.events[fault] for fault in FAULTS if fault != "silent")
        # A step that is lost because the one before was never sampled is told with it.
        assert faults - server.events["unsampled"] <= server.monitor.report()["errors"] <= faults
        if seed >= 9 and all(events[name] >= least for name, least in wanted.items()):
            break
    assert [name for name, least in wanted.items() if events[name] < least] == []
    assert scored > missing > 0
