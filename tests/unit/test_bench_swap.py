"""What the benchmark of swaps makes of planted times."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from bench.swap import CHANGES, TAIL_SECONDS, Change, Stream, compare, gaps, printed, report


def stream(*completions: list[float]) -> Stream:
    return Stream("", 0, threading.Event(), [list(times) for times in completions])


def test_gaps_lie_within_a_completion_and_count_where_they_overlap_a_window() -> None:
    one = stream([0.0, 1.0, 2.0, 6.0], [7.0, 8.0])
    assert gaps([one], 1.5, 3.0) == [1.0, 4.0]
    assert gaps([one], 6.5, 7.5) == [1.0]


def test_what_comes_together_is_one_arrival() -> None:
    one = stream([])
    for when in (1.0, 1.0001, 1.0002, 1.01, 1.0101):
        one.arrived(when)
    assert one.chunks == [[1.0, 1.01]]


def steps(until: float, *stalls: float) -> list[float]:
    """A chunk every 10 ms, and one 20 ms late after each of ``stalls``."""
    times = [0.0]
    left = list(stalls)
    while times[-1] < until:
        late = bool(left) and times[-1] >= left[0] and left.pop(0) is not None
        times.append(times[-1] + (0.03 if late else 0.01))
    return times


def test_a_stall_around_changes_shows_and_one_of_the_machine_counts_on_both_sides() -> None:
    asked = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    changes = [Change(CHANGES[i % 3], when, when + 0.15) for i, when in enumerate(asked)]
    # Attaching stalls, the first time in the very gap in which it is asked for (at 0.995 and 4.05); around set the
    # machine stalls, during the change and before it.
    found = report([stream(steps(8.0, 0.985, 1.8, 2.1, 4.05, 4.8, 5.1))], changes)
    assert found["step_ms"] == pytest.approx(10)
    assert found["left_out"] == 0
    attach, same, detach = (found["changes"][name] for name in CHANGES)
    assert attach["during_steps"] == pytest.approx([3.0, 3.0])
    assert attach["quiet_steps"] == pytest.approx([1.0, 1.0])
    assert (attach["during_share"], attach["quiet_share"]) == (0.0, 1.0)
    assert attach["difference_interval"] == pytest.approx([2.0, 2.0])
    assert same["difference"] == pytest.approx(0)
    assert (same["during_share"], same["quiet_share"]) == (0.0, 0.0)
    assert detach["during_share"] == detach["quiet_share"] == 1.0
    assert attach["request_ms"] == pytest.approx([150, 150])
    assert "attach   2 windows: 3.00 [3.00, 3.00]   0%, quiet 1.00 [1.00, 1.00] 100%" in printed(found)


def test_a_change_without_as_long_a_quiet_time_before_it_is_left_out() -> None:
    changes = [Change(name, when, when + 0.15) for name, when in zip(CHANGES, (1.0, 2.0, 3.0), strict=True)]
    crowded = [*changes, Change("set", 3.15 + 2 * TAIL_SECONDS, 3.3 + 2 * TAIL_SECONDS)]
    found = report([stream(steps(5.0))], crowded)
    assert found["left_out"] == 1
    assert found["changes"]["set"]["windows"] == 1
    assert "1 changes are left out" in printed(found)


def test_intervals_hold_the_planted_difference() -> None:
    rng = np.random.default_rng(1)
    quiet = rng.normal(1.5, 0.2, 60)
    found = compare(quiet + rng.normal(0.7, 0.1, 60), quiet)
    low, high = found["difference_interval"]
    assert 0.6 < low < 0.7 < high < 0.8
    assert found["share_interval"][1] < 0
