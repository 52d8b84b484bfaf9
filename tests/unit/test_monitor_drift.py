"""PSI against the benign deciles: planted shares give the number of the formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from monitor.drift import MINIMUM, WINDOW, Drift
from tests.unit.monitor_fakes import BENIGN, alerting


def psi_of(statistics: list[float], **changes: Any) -> float | None:
    drift = Drift(alerting(**{"benign_quantiles": BENIGN, **changes}).manifest)
    found = None
    for statistic in statistics:
        found = drift.add(statistic)
    return found


def even(n: int, shift: float = 0.0) -> list[float]:
    """``n`` benign statistics, shuffled."""
    found = (np.arange(n) + 0.5) / n * 10 + shift
    return list(np.random.default_rng(0).permutation(found))


def test_benign_traffic_has_no_drift() -> None:
    assert psi_of(even(WINDOW)) == pytest.approx(0.0, abs=1e-3)


def test_all_traffic_in_one_decile_gives_the_number_of_the_formula() -> None:
    total = WINDOW + 5  # half a count in each of ten bins
    full, empty = (WINDOW + 0.5) / total, 0.5 / total
    expected = (full - 0.1) * math.log(full / 0.1) + 9 * (empty - 0.1) * math.log(empty / 0.1)
    assert psi_of([3.5] * WINDOW) == pytest.approx(expected)


@pytest.mark.parametrize("shift", [-3.0, 3.0])
def test_a_shift_in_either_direction_shows(shift: float) -> None:
    found = psi_of(even(WINDOW, shift))
    assert found is not None
    assert found > 0.25


def test_a_larger_shift_gives_a_larger_number() -> None:
    found = [psi_of(even(WINDOW, shift)) or 0.0 for shift in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)]
    assert found == sorted(found)
    assert found[1] < 0.25 < found[3]


def test_old_traffic_leaves_the_window() -> None:
    assert psi_of([*even(WINDOW, 5.0), *even(WINDOW)]) == pytest.approx(0.0, abs=1e-3)


def test_too_little_traffic_says_nothing() -> None:
    assert psi_of([3.5] * (MINIMUM - 1)) is None
    assert psi_of([3.5] * MINIMUM) is not None


def test_without_benign_quantiles_there_is_nothing_to_compare() -> None:
    assert psi_of([3.5] * WINDOW, benign_quantiles=None) is None


def test_the_smallest_window_rarely_takes_benign_traffic_for_shifted() -> None:
    rng = np.random.default_rng(0)
    found = [psi_of(list(rng.uniform(0, 10, MINIMUM))) or 0.0 for _ in range(200)]
    assert np.mean(np.array(found) > 0.25) <= 0.05
