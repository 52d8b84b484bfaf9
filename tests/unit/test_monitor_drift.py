"""PSI and KS against the benign quantiles: planted answers come back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monitor.drift import MINIMUM, STRIDE, WINDOW, Drift, Shift, ks
from probes.manifest import Quantiles
from tests.unit.monitor_fakes import BENIGN


def shift_of(statistics: list[float]) -> Shift | None:
    drift = Drift(Quantiles(**BENIGN))  # type: ignore[arg-type]
    drift.extend(statistics)
    return drift.shift()


def psi_of(statistics: list[float]) -> float | None:
    found = shift_of(statistics)
    return None if found is None else found.psi


def ks_of(statistics: list[float]) -> float:
    found = shift_of(statistics)
    assert found is not None
    return found.ks


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


def test_the_smallest_window_rarely_takes_benign_traffic_for_shifted() -> None:
    rng = np.random.default_rng(0)
    found = [psi_of(list(rng.uniform(0, 10, MINIMUM))) or 0.0 for _ in range(200)]
    assert np.mean(np.array(found) > 0.25) <= 0.05


@pytest.mark.parametrize("shift", [-11.0, -2.0, 0.0, 0.5, 3.0, 11.0])
def test_ks_of_a_shifted_uniform_distribution_is_the_shift(shift: float) -> None:
    assert ks_of(even(WINDOW, shift)) == pytest.approx(min(1.0, abs(shift) / 10), abs=2 / WINDOW)


def test_ks_of_a_point_is_the_larger_part_beside_it() -> None:
    assert ks_of([3.5] * WINDOW) == pytest.approx(0.65)
    assert ks_of([8.0] * WINDOW) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        (1.0, 0.4),  # below it 0.2 against nothing, up to it 0.6 against everything
        (0.5, 0.9),
        (1.5, 0.8),
        (-1.0, 1.0),
        (9.0, 1.0),
    ],
)
def test_ks_against_a_point_mass(point: float, expected: float) -> None:
    benign = Quantiles(probabilities=(0.0, 0.2, 0.6, 1.0), values=(0.0, 1.0, 1.0, 2.0))
    assert ks(np.array([point] * 100), benign) == pytest.approx(expected)


def test_ks_claims_nothing_beyond_the_outermost_quantiles() -> None:
    benign = Quantiles(probabilities=(0.1, 0.9), values=(0.0, 8.0))
    among = list(np.arange(80) / 10 + 0.05)
    assert ks(np.sort([*[-5.0] * 10, *among, *[30.0] * 10]), benign) == pytest.approx(0.0, abs=0.01)
    assert ks(np.sort([*[-5.0] * 30, *among]), benign) == pytest.approx(30 / 110 - 0.1, abs=0.01)


def test_ks_agrees_with_scipy_on_random_traffic() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    levels = np.linspace(0, 1, 101)
    values = np.quantile(rng.normal(size=5000), levels)
    benign = Quantiles(probabilities=tuple(levels), values=tuple(values))
    for shift in (0.0, 0.1, 1.0, -2.0):
        found = np.sort(rng.normal(shift, 1.2, WINDOW))
        reference = stats.kstest(found, lambda x: np.interp(x, values, levels)).statistic
        assert ks(found, benign) == pytest.approx(reference, abs=1e-12)


def test_benign_traffic_rarely_exceeds_the_distance_of_chance() -> None:
    """1.36 / sqrt(512) is the 95% point of Kolmogorov's distribution."""
    rng = np.random.default_rng(0)
    benign = Quantiles(**BENIGN)  # type: ignore[arg-type]
    found = [ks(np.sort(rng.uniform(0, 10, WINDOW)), benign) for _ in range(400)]
    assert 0.02 < np.mean(np.array(found) > 1.36 / WINDOW**0.5) < 0.09


def test_whoever_reads_often_gets_a_comparison_at_every_stride() -> None:
    drift, said = Drift(Quantiles(**BENIGN)), []  # type: ignore[arg-type]
    for i in range(1, WINDOW + 1):
        drift.extend([3.5])
        if drift.shift() is not None:
            said.append(i)
    assert said == list(range(MINIMUM, WINDOW + 1, STRIDE))
