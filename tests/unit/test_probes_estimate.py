"""Figures with their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from probes.estimate import Estimate, bootstrap, percentile


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


def test_it_prints_as_asked() -> None:
    found = Estimate(0.98765, 0.9, 1.0)
    assert (str(found), f"{found:.0%}") == ("0.988 [0.900, 1.000]", "99% [90%, 100%]")
