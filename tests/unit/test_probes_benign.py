"""Calibration on benign traffic: coverage on planted exchangeable data, stopping, recordings, and what is refused."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import probes
from probes import benign, calibration, recorded, training
from probes.benign import Benign, Outlook
from probes.hf import Activations
from probes.probe import Probe
from probes.recorded import Finished, Header
from probes.testing import fake_manifest

torch.set_num_threads(1)
TOKENS = 24


def first_coordinate(**changes: object) -> Probe:
    """Scores a token by its first coordinate."""
    found = fake_manifest(layers=(0,), d_model=1, **changes)
    tensors = {"weight": torch.tensor([[1.0]]), "bias": torch.tensor(0.0)}
    return training.assemble(found, tensors, torch.zeros(1, 1, 1))


def conversation(scores: Sequence[float]) -> Activations:
    """One prompt token, then an answer with these scores."""
    return Activations((0,), torch.tensor([0.0, *scores]).reshape(-1, 1, 1), 0, 1)


def traffic(probe: Probe, n: int, seed: int) -> Benign:
    """Exchangeable conversations: each with a level of its own and tokens around it."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, 1)) * 0.3 + rng.normal(size=(n, TOKENS))
    names = [f"g{seed}-{i}" for i in range(n)]
    return benign.of_activations(probe, f"set {seed}", map(conversation, scores), names, "0" * 64)


@pytest.mark.thorough
def test_realised_rates_keep_their_promise_on_the_running_supremum() -> None:
    pool = traffic(first_coordinate(), 4000, 0).scores
    rng, nominal, n = np.random.default_rng(1), 0.05, 199
    low, high = calibration.true_rate(n, nominal)
    rates, within, covered = [], 0, 0
    for _ in range(400):
        drawn = rng.permutation(pool)
        threshold = calibration.threshold_at(drawn[:n], nominal)
        rates.append(float((drawn[n:] > threshold).mean()))
        hits = int((drawn[n : n + 500] > threshold).sum())
        least, most = calibration.clopper_pearson(hits, 500)
        within += low <= rates[-1] <= high
        covered += least <= rates[-1] <= most
    assert np.mean(rates) == pytest.approx(nominal, abs=0.004)
    assert 0.92 <= within / 400 <= 0.98
    assert covered / 400 >= 0.94


@pytest.mark.thorough
def test_a_threshold_of_the_final_score_would_flag_far_more() -> None:
    # Why the statistic that is deployed must be the one that is calibrated: a live alert looks after every token.
    at_the_end = traffic(first_coordinate(statistic="final"), 2000, 0)
    live = traffic(first_coordinate(), 2000, 1)
    naive = calibration.threshold_at(at_the_end.scores, 0.05)
    honest = calibration.threshold_at(traffic(first_coordinate(), 2000, 0).scores, 0.05)
    assert (live.scores > naive).mean() > 0.3
    assert (live.scores > honest).mean() < 0.08


def test_what_is_flagged_is_what_a_stream_would_have_stopped_and_where() -> None:
    probe = first_coordinate(aggregation={"method": "mean", "min_tokens": 3}, threshold=0.5)
    found = traffic(probe, 300, 2)
    assert found.tracks is not None
    stops = [benign.crossed_after(probe, track) for track in found.tracks]
    assert [stop is not None for stop in stops] == (found.scores > 0.5).tolist()
    assert all(stop is None or 3 <= stop <= TOKENS for stop in stops)
    late = benign.of_activations(probe, "late", [conversation([0, 0, 0, 9, 0])], ["a"], "0" * 64)
    assert late.tracks is not None
    assert benign.crossed_after(probe, late.tracks[0]) == 4


def test_the_outlook_counts_flags_a_day() -> None:
    probe = first_coordinate()
    first, second = traffic(probe, 999, 3), traffic(probe, 500, 4)
    manifest = calibration.calibrated(probe.manifest, first.scores, second.scores, 0.01)
    found = manifest.calibration
    assert found is not None
    outlook = Outlook(found, first, second, (4, 6), 10_000)
    assert found.realised_fpr is not None
    assert found.realised_ci is not None
    expected, low, high = outlook.flags_per_day or (0.0, 0.0, 0.0)
    assert expected == pytest.approx(10_000 * found.realised_fpr)
    assert (low, high) == pytest.approx(tuple(10_000 * x for x in found.realised_ci))
    assert outlook.true_rate == pytest.approx((0.0048, 0.0170), abs=1e-4)
    text = " ".join(outlook.lines())
    assert "10,000 requests a day" in text
    assert "after 5 answer tokens" in text
    assert f"{TOKENS} in-mask tokens" in text
    assert probes.manifest.revise(manifest, metrics={"benign_traffic": outlook.figures()})
    assert replace(outlook, requests_per_day=None).flags_per_day is None


@pytest.mark.parametrize(
    ("scores", "words"),
    [([], "1 conversations without a token"), ([math.nan], "1 with NaN"), ([1.0, math.inf], "1 with NaN")],
)
def test_conversations_that_cannot_be_scored_are_refused(scores: list[float], words: str) -> None:
    with pytest.raises(probes.CalibrationError, match=words):
        benign.of_activations(first_coordinate(), "x", [conversation(scores)], ["a"], "0" * 64)


def test_halves_keep_groups_whole_and_shared_groups_are_refused() -> None:
    whole = traffic(first_coordinate(), 40, 5)
    whole = replace(whole, groups=tuple(f"g{i // 4}" for i in range(40)))
    first, second = benign.halves(whole, 0)
    assert len(first.scores) + len(second.scores) == 40
    assert len(first.scores) == 20
    benign.check_apart(first, second)
    with pytest.raises(probes.SplitLeak, match="'g0' and 9 more"):
        benign.check_apart(whole, whole)


def recording(tmp_path: Path, probe: Probe, rows: Sequence[Finished]) -> Path:
    header = Header(probe="fake", statistic_digest=probe.manifest.statistic_digest, model="m")
    recorded.write(tmp_path / "r.jsonl", header, rows)
    return tmp_path / "r.jsonl"


def test_a_recording_comes_back_and_choices_of_one_response_are_a_group(tmp_path: Path) -> None:
    probe = first_coordinate()
    rows = [Finished(id=f"r{i // 2}", choice=i % 2, score=i / 7, tokens=i) for i in range(6)]
    path = recording(tmp_path, probe, rows)
    assert recorded.is_recording(path)
    found = benign.of_recording("r.jsonl", recorded.read(path, probe.manifest))
    assert found.scores.tolist() == [i / 7 for i in range(6)]
    assert found.groups == ("id:r0", "id:r0", "id:r1", "id:r1", "id:r2", "id:r2")
    assert found.tracks is None
    assert not recorded.is_recording(tmp_path / "absent")


def test_scores_of_another_statistic_are_refused(tmp_path: Path) -> None:
    path = recording(tmp_path, first_coordinate(), [Finished(id="r", score=1, tokens=1)])
    others = (
        first_coordinate(statistic="final"),
        first_coordinate(aggregation={"method": "max"}),
        first_coordinate(token_mask={"prompt": "all"}),
    )
    for other in others:
        with pytest.raises(probes.DatasetInvalid, match="this very artifact"):
            recorded.read(path, other.manifest)
    same = first_coordinate(threshold=3.0, name="renamed", version="2")
    assert len(recorded.read(path, same.manifest).sequences) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "r", "score": NaN, "tokens": 1}', "line 2"),
        ('{"id": "r", "score": 1}', "line 2: tokens"),
        ('{"id": "r", "score": 1, "tokens": 1}\n{"id": "r", "score": 2, "tokens": 1}', "1 of them again"),
        ("", "0 sequences"),
        ('{"id": "r", "sco', "line 2"),
    ],
)
def test_a_broken_recording_is_refused(tmp_path: Path, line: str, words: str) -> None:
    probe = first_coordinate()
    path = recording(tmp_path, probe, [])
    path.write_text(path.read_text() + line)
    with pytest.raises(probes.DatasetInvalid, match=words) as caught:
        recorded.read(path, probe.manifest)
    assert "\n" not in str(caught.value)
