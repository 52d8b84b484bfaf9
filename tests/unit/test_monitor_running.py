"""Statistics of running sequences: equal to the probe library's in any chunking, and levels that mean what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from monitor.errors import AttachError
from monitor.running import RunningStatistics, statistics_of
from probes import Probe
from probes.aggregation import Stream, running
from probes.manifest import revise
from probes.testing import fake_aggregation
from tests.unit.monitor_fakes import alerting

METHODS = [
    {"method": "mean"},
    {"method": "mean", "min_tokens": 4},
    {"method": "max"},
    {"method": "last", "min_tokens": 2},
    {"method": "ema", "alpha": 0.3},
    {"method": "ema", "alpha": 0.9, "min_tokens": 3},
    {"method": "cusum", "reference": 0.25},
]
STREAMED = [
    "softmax",
    "rolling_mean",
    "multimax",
    "attention",
    "rolling_attention",
    "feature_max",
    "gap",
    "members",
]
by_method = pytest.mark.parametrize("aggregation", METHODS, ids=lambda a: "-".join(map(str, a.values())))


def probe(aggregation: dict[str, object], **changes: object) -> Probe:
    return alerting(
        threshold=0.4, statistic="running_sup", default_action="stop", aggregation=aggregation, **changes
    )


@by_method
def test_any_chunking_crosses_at_the_token_at_which_the_library_does(aggregation: dict[str, object]) -> None:
    rng = np.random.default_rng(3)
    crossed = 0
    for _ in range(200):
        guard = probe(aggregation)
        scores = rng.normal(0, 1, rng.integers(1, 12))
        stream = Stream(guard.manifest.aggregation, "running_sup")
        expected = None
        for at, score in enumerate(scores):
            stream.push(np.array([[score]]))
            if expected is None and stream.live > 0.4:
                expected = at
        followed = RunningStatistics(guard)
        followed.begin(np.array([5]))
        found, at = None, 0
        while at < len(scores) and found is None:
            n = min(int(rng.integers(1, 4)), len(scores) - at)
            if n == 1:
                found = at if followed.add(np.array([5]), scores[at : at + 1])[0] else None
            else:
                first = followed.add_many(5, scores[at : at + n])
                found = None if first is None else at + first
            at += n
        assert found == expected
        crossed += expected is not None
    assert 20 < crossed < 200


@by_method
def test_a_score_above_the_level_crosses_and_one_below_does_not(aggregation: dict[str, object]) -> None:
    rng = np.random.default_rng(4)
    decided = 0
    for _ in range(200):
        followed, slot = RunningStatistics(probe(aggregation)), np.array([0])
        followed.begin(slot)
        for score in rng.normal(-1, 1, rng.integers(0, 8)):
            followed.add(slot, np.array([score]))
        level = followed.levels(slot)
        if not np.isfinite(level[0]):
            assert not followed.add(slot, np.array([1e9]))[0]
            continue
        below, above = RunningStatistics(probe(aggregation)), followed
        below.__dict__.update({k: np.copy(v) for k, v in vars(followed).items() if isinstance(v, np.ndarray)})
        if not (aggregation["method"] == "max" and followed._value[0] > 0.4):
            assert not below.add(slot, level - 1e-6)[0]
        assert above.add(slot, level + 1e-6)[0]
        decided += 1
    assert decided > 50


@pytest.mark.parametrize("method", STREAMED)
def test_any_other_method_is_followed_by_the_librarys_own_streams(method: str) -> None:
    rng = np.random.default_rng(5)
    rule = fake_aggregation(method)
    width = {
        "multimax": 3,
        "attention": 4,
        "rolling_attention": 4,
        "feature_max": 3,
        "gap": 2,
        "members": 7,
    }.get(method, 1)
    guard = replace(
        probe({"method": "mean"}), manifest=revise(probe({"method": "mean"}).manifest, aggregation=rule)
    )
    crossed = 0
    for _ in range(40):
        states = rng.normal(0, 3, (int(rng.integers(1, 12)), width))
        given = states[:, 0] if width == 1 else states
        values = running(states, rule)
        above = [i for i, value in enumerate(values) if value > 0.4 and i + 1 >= rule.min_tokens]
        one_by_one, at_once = statistics_of(guard), statistics_of(guard)
        for followed in (one_by_one, at_once):
            followed.begin(np.array([2, 3]))
        steps = [one_by_one.add(np.array([3]), given[i : i + 1])[0] for i in range(len(states))]
        assert [i for i, found in enumerate(steps) if found] == above
        assert at_once.add_many(3, given) == (above[0] if above else None)
        assert np.isinf(at_once.levels(np.array([3])))
        crossed += bool(above)
    assert crossed > 5


def test_a_method_without_a_level_cannot_steer() -> None:
    asked = alerting(
        threshold=0.0, default_action="steer:calm", aggregation={"method": "softmax", "temperature": 1.0}
    )
    with pytest.raises(
        AttachError, match="names no level to gate by, so it cannot steer; use one of mean, ema"
    ):
        statistics_of(asked)


def test_sequences_do_not_mix() -> None:
    followed = RunningStatistics(probe({"method": "mean"}))
    followed.begin(np.array([0, 70]))
    assert followed.add(np.array([0, 70]), np.array([5.0, -5.0])).tolist() == [True, False]
    followed.begin(np.array([0]))
    assert followed.add(np.array([0]), np.array([-1.0])).tolist() == [False]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"statistic": "final"}, "known only at the end"),
        ({"threshold": None, "default_action": "observe"}, "no threshold"),
    ],
)
def test_a_probe_that_cannot_be_followed_is_refused(changes: dict[str, object], reason: str) -> None:
    settings = {"threshold": 0.0, "statistic": "running_sup", "default_action": "stop", **changes}
    with pytest.raises(AttachError, match=reason):
        statistics_of(alerting(**settings))  # type: ignore[arg-type]
    with pytest.raises(AttachError, match=reason):
        statistics_of(alerting(aggregation=fake_aggregation("softmax"), **settings))  # type: ignore[arg-type]
