"""What the benchmark of swaps makes of planted times."""

from __future__ import annotations

import threading

import pytest

from bench.swap import CHANGES, Stream, gaps, report


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


def test_the_largest_gap_around_a_change_is_told_in_quiet_steps() -> None:
    times = [i * 0.01 for i in range(101)]
    times += [1.03 + i * 0.01 for i in range(101)]  # 30 ms where a probe is attached
    windows = [("quiet", 0.0, 0.9, 0.0), *((name, 0.95, 2.0, 0.2) for name in CHANGES)]
    found = report([stream(times)], windows)
    assert found["step_ms"] == pytest.approx(10)
    assert found["largest_during_in_steps"] == pytest.approx(3)
    assert found["largest_during_over_largest_quiet"] == pytest.approx(3)
    assert found["gaps"]["attach"]["request_ms"] == pytest.approx([200])
