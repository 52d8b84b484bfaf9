"""Figures with their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from probes.estimate import Estimate, bootstrap, hodges_lehmann, percentile


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    found = bootstrap(np.random.default_rng(0).normal(3.0, 2.0, 400), np.mean)
    assert found.low < 3.0 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 2.0 / 400**0.5, rel=0.1)


def test_without_resamples_or_with_broken_ones_there_is_no_interval() -> None:
    for resampled in ([], [0.4, math.nan]):
        found = percentile(0.5, resampled)
        assert found.value == 0.5
        assert math.isnan(found.low)
        assert math.isnan(found.high)


def test_the_interval_of_a_pseudomedian_is_that_of_published_tables() -> None:
    # Ten values: of 55 pairs' means the 9th least and the 9th greatest, for 8 is the critical sum of ranks.
    values = np.array([0.0, 1, 3, 7, 15, 31, 63, 127, 255, 511])
    means = sorted((a + b) / 2 for i, a in enumerate(values) for b in values[i:])
    assert hodges_lehmann(values) == (means[27], means[8], means[-9])


@pytest.mark.parametrize("n", [6, 7, 8, 15])
def test_the_interval_of_a_pseudomedian_of_few_holds_it_at_least_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    held = [one.low <= 0 <= one.high for one in (hodges_lehmann(rng.normal(size=n)) for _ in range(4000))]
    assert 0.94 < np.mean(held) < 0.98


def test_five_values_have_a_pseudomedian_and_no_interval() -> None:
    found = hodges_lehmann([5, 1, 4, 2, 3])
    assert (found.value, str(found)) == (3.0, "3.000 (no interval)")
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_it_prints_as_asked() -> None:
    found = Estimate(0.98765, 0.9, 1.0)
    assert (str(found), f"{found:.0%}") == ("0.988 [0.900, 1.000]", "99% [90%, 100%]")
