"""A threshold for every stratum: planted mixtures whose hard part is known, and what is refused."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import probes
from probes import benign, calibration, cli, recorded, strata, testing
from probes.benign import Benign
from probes.dataset import Conversation
from probes.recorded import Finished, Header

FPR = 0.02
LEVELS = {"chat": 0.0, "audit": 1.5, "tempted": 3.0}
SIZES = {"chat": 600, "audit": 200, "tempted": 100}


def mixture(seed: int, scale: int = 1) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Each part is normal around its level; `tempted` is the hard one, and a ninth of the whole."""
    rng = np.random.default_rng(seed)
    names = [name for name, n in SIZES.items() for _ in range(n * scale)]
    order = rng.permutation(len(names))
    scores = np.array([LEVELS[name] for name in names]) + rng.normal(size=len(names))
    return scores[order], tuple(names[i] for i in order)


def as_benign(name: str, scores: NDArray[np.float64], parts: tuple[str, ...]) -> Benign:
    n = len(scores)
    return Benign(
        name, scores, np.ones(n, np.int64), tuple(f"{name}{i}" for i in range(n)), "0" * 64, None, parts
    )


def test_the_hard_part_of_a_mixture_sets_the_threshold_and_keeps_the_rate() -> None:
    hard: dict[str, list[float]] = {"mix": [], "by": []}
    for seed in range(60):
        scores, parts = mixture(seed)
        found = calibration.thresholds_at(scores, parts, FPR)
        assert list(found) == ["tempted", "audit", "chat"]
        alone = scores[np.array(parts) == "tempted"]
        assert found["tempted"] == calibration.threshold_at(alone, FPR)
        later, names = mixture(1000 + seed, scale=10)
        tempted = later[np.array(names) == "tempted"]
        hard["mix"].append(float((tempted > calibration.threshold_at(scores, FPR)).mean()))
        hard["by"].append(float((tempted > found["tempted"]).mean()))
        assert (later > found["tempted"]).mean() < FPR  # the mix pays nothing
    assert np.mean(hard["mix"]) > 5 * FPR
    assert np.mean(hard["by"]) == pytest.approx(FPR, abs=0.006)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.sampled_from("abc")), min_size=1, max_size=80),
    fpr=st.sampled_from([0.1, 0.25, 1 / 3, 0.5]),
)
def test_the_highest_is_never_below_that_of_the_mix(rows: list[tuple[int, str]], fpr: float) -> None:
    scores, names = [score for score, _ in rows], [name for _, name in rows]
    sizes = [names.count(name) for name in set(names)]
    if min(sizes) < calibration.required_n(fpr):
        with pytest.raises(probes.CalibrationError, match=f"needs {calibration.required_n(fpr)} in each"):
            calibration.thresholds_at(scores, names, fpr)
        return
    highest = next(iter(calibration.thresholds_at(scores, names, fpr).values()))
    assert highest >= calibration.threshold_at(scores, fpr)
    for name in set(names):
        own = [score for score, part in rows if part == name]
        assert sum(score > highest for score in own) <= fpr * (len(own) + 1)


def test_small_strata_are_named_with_what_they_need() -> None:
    names = ["big"] * 120 + ["few"] * 7 + ["fewer"] * 3
    with pytest.raises(probes.CalibrationError) as caught:
        calibration.thresholds_at(np.arange(130.0), names, 0.01)
    assert str(caught.value) == (
        "2 of 3 strata cannot support an FPR of 0.01, which needs 99 in each: 'fewer' has 3, 'few' has 7; give more of "
        "them, or one value to several"
    )
    with pytest.raises(probes.CalibrationError, match="'s14' has 1 and 15 more have too few"):
        calibration.thresholds_at(np.arange(20.0), [f"s{i}" for i in range(10, 30)], 0.4)


def test_both_sets_are_told_by_stratum() -> None:
    scores, parts = mixture(1)
    later, names = mixture(2)
    names = tuple("new" if name == "chat" else name for name in names)
    found = benign.by_stratum("condition", as_benign("a", scores, parts), as_benign("b", later, names), FPR)
    threshold = calibration.thresholds_at(scores, parts, FPR)["tempted"]
    assert [(part.name, part.n, part.realised_n) for part in found.parts] == [
        ("tempted", 100, 100), ("audit", 200, 200), ("chat", 600, 0), ("new", 0, 600),
    ]  # fmt: skip
    assert found.hardest.flagged == int((later[np.array(names) == "tempted"] > threshold).sum())
    text = "\n".join(found.lines())
    assert "that of condition 'tempted', the hardest of 3" in text
    assert "chat: 600, alone" in text
    assert "not in the second set" in text
    assert any("1 strata are in the second set alone (first: 'new')" in line for line in found.warnings())
    assert probes.manifest.revise(testing.fake_manifest(), metrics={"benign_strata": found.figures()})


def test_chance_is_that_of_exchangeable_sets() -> None:
    assert calibration.chance_of(1, 1, 99, 0.01) == pytest.approx(0.01)
    assert calibration.chance_of(0, 50, 99, 0.01) == 1.0
    rng = np.random.default_rng(0)
    n, m, nominal, told, naive = 99, 2000, 0.01, 0, 0
    for _ in range(400):
        threshold = calibration.threshold_at(rng.normal(size=n), nominal)
        hits = int((rng.normal(size=m) > threshold).sum())
        told += calibration.chance_of(hits, m, n, nominal) < strata.DOUBT
        naive += calibration.clopper_pearson(hits, m)[0] > nominal
    assert told / 400 < 0.05
    assert (
        naive / 400 > 0.15
    )  # why the interval of the second set alone is no warning: the first one is small too


def test_another_kind_of_second_set_is_warned_of_by_stratum() -> None:
    scores, parts = mixture(1)
    same, names = mixture(2)
    shifted = np.where(np.array(names) == "audit", same + 4, same)
    sides = [as_benign("a", scores, parts), as_benign("b", same, names), as_benign("c", shifted, names)]
    assert benign.by_stratum("k", sides[0], sides[1], FPR).warnings() == []
    (told,) = benign.by_stratum("k", sides[0], sides[2], FPR).warnings()
    assert "k 'audit' is flagged more often than 0.02" in told


def test_groups_with_the_same_strata_are_dealt_alike() -> None:
    # Two groups hold `rare` alone: a blind deal often puts both on one side.
    groups = [f"g{i // 4}\0" for i in range(80)]
    parts = tuple("rare" if group in ("g3\0", "g11\0") else "plain" for group in groups)
    whole = Benign(
        "w", np.arange(80, dtype=np.float64), np.ones(80, np.int64), tuple(groups), "0" * 64, None, parts
    )
    for seed in range(20):
        sides = benign.halves(whole, seed)
        assert [side.strata.count("rare") for side in sides if side.strata] == [4, 4]
        assert [len(side.scores) for side in sides] == [40, 40]
        benign.check_apart(*sides)


def chat(i: int, **fields: object) -> Conversation:
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    return Conversation.model_validate({"id": f"c{i}", "messages": turns, **fields})


def test_strata_are_named_by_any_field_and_those_without_are_one() -> None:
    chats = [chat(0, condition="plain", tier=2), chat(1, tier=3), chat(2, condition="audited", tier=2)]
    assert strata.names(chats, "condition", "f") == ("plain", "without condition", "audited")
    assert strata.names(chats, "tier", "f") == ("2", "3", "2")
    assert strata.names([chat(0, tier=2), chat(1, tier=2.0), chat(2, tier=2.5)], "tier", "f") == (
        "2",
        "2",
        "2.5",
    )


def test_a_refusal_names_a_few_fields_that_can_be_named() -> None:
    fields = {"a\nb": "x", "y" * 201: "x", **{f"f{i}": "x" for i in range(100)}}
    with pytest.raises(probes.DatasetInvalid, match=r"one of f0, f1, .*, f11$") as caught:
        strata.names([chat(0, **fields)], "absent", "f")
    assert str(caught.value).isprintable()


def test_names_that_differ_in_what_numpy_drops_are_two_strata() -> None:
    parts = ["a"] * 60 + ["a\0"] * 60
    assert calibration.thresholds_at(np.arange(120.0), parts, FPR) == {"a\0": 119.0, "a": 59.0}
    for wrong in (parts[:60], [*parts, "a"]):
        with pytest.raises(probes.CalibrationError, match=f"{len(wrong)} strata for 120 benign scores"):
            calibration.thresholds_at(np.arange(120.0), wrong, FPR)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (
            "conditon",
            "f: no line has the field 'conditon'; add it to each, or give --by one of family, hostile$",
        ),
        ("prompt", "no line has the field 'prompt'"),  # a property, not a field
        ("a\nb", r"--by 'a\\nb' is no name of a field"),
        ("", "--by '' is no name of a field"),
        ("x" * 201, "1 to 200 printable characters$"),
        ("contrasts", "'contrasts' of 'c0' is not a word or number"),
        ("messages", "'messages' of 'c0' is not a word or number"),
        ("hostile", "'hostile' of 'c1' is not a word"),
        ("long", "'long' of 'c0' is not a word"),
        ("empty", "'empty' of 'c0' is not a word"),
    ],
)
def test_fields_that_name_no_strata_are_refused(field: str, words: str) -> None:
    more = {"contrasts": ["a"], "long": 201 * "x", "empty": ""}
    chats = [chat(0, family="A", hostile="ok", **more), chat(1, family="B", hostile="a\n\x1b[2J")]
    with pytest.raises(probes.DatasetInvalid, match=words) as caught:
        strata.names(chats, field, "f")
    assert "\n" not in str(caught.value)


def recording(path: Path, probe: probes.Probe, seed: int, field: str | None = "route") -> Path:
    """Scores of a server, to whose lines their owner has added a field."""
    header = Header(probe="fake", statistic_digest=probe.manifest.statistic_digest, model="m")
    scores, parts = mixture(seed)
    rows = [Finished(id=f"{path.stem}-{i}", score=score, tokens=9) for i, score in enumerate(scores)]
    recorded.write(path, header, rows)
    first, *lines = path.read_text().splitlines()
    added = [
        json.dumps({**json.loads(line), **({field: part} if field else {})})
        for line, part in zip(lines, parts, strict=True)
    ]
    path.write_text("\n".join([first, *added]) + "\n")
    return path


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_the_command_writes_who_set_the_threshold_and_forgets_old_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {"deployed": {"recall": 1.0}, "layer_profile": {"1": {"logistic": 0.9}}}
    artifact = testing.write_artifact(tmp_path / "p.safetensors", metrics=old)
    probe = probes.load(artifact)
    monday, tuesday = (recording(tmp_path / f"{n}.jsonl", probe, n) for n in (1, 2))
    sides = ["calibrate", artifact, "--benign", monday, "--second", tuesday, "--fpr", FPR, "-o", artifact]
    assert run(*sides, "--by", "route", "--requests-per-day", 1000) == 0
    said = capsys.readouterr().out
    assert "The threshold is that of route 'tempted', the hardest of 3" in said
    assert "The true rate of this threshold in 'tempted' is at most" in said
    manifest = probes.load(artifact).manifest
    scores, parts = mixture(1)
    assert manifest.threshold == calibration.thresholds_at(scores, parts, FPR)["tempted"]
    assert manifest.calibration is not None
    assert (manifest.calibration.n, manifest.calibration.realised_n) == (100, 900)
    assert manifest.benign_quantiles is not None
    assert manifest.benign_quantiles.at(0.5) == pytest.approx(
        float(np.median(scores))
    )  # of all traffic: drift's
    told = manifest.metrics["benign_strata"]
    assert isinstance(told, dict)
    assert (told["by"], told["threshold set by"]) == ("route", "tempted")
    assert set(told["strata"]) == set(LEVELS)  # type: ignore[arg-type]
    assert set(manifest.metrics) == {"layer_profile", "benign_traffic", "benign_strata"}
    assert run("inspect", artifact) == 0
    assert "## Benign traffic by route" in capsys.readouterr().out
    assert run(*sides) == 0
    again = probes.load(artifact).manifest
    assert "benign_strata" not in again.metrics
    assert again.threshold == calibration.threshold_at(scores, FPR)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--fpr", "0"), ("--fpr", "nan"), ("--requests-per-day", "-1"), ("--seed", "-1"), ("--action", "steer")],
)
def test_options_that_cannot_be_meant_are_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    artifact = testing.write_artifact(tmp_path / "p.safetensors")
    given_options = ["calibrate", artifact, "--benign", "absent", option, value, "-o", tmp_path / "out"]
    assert run(*given_options) == 2
    assert capsys.readouterr().err.startswith(f"error: {option} ")


def test_scores_that_lie_too_far_apart_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = testing.write_artifact(tmp_path / "p.safetensors")
    probe = probes.load(artifact)
    rows = [Finished(id=f"c{i}", score=1e308 * (-1) ** i, tokens=1) for i in range(100)]
    head = Header(probe=probe.manifest.name, statistic_digest=probe.manifest.statistic_digest, model="m")
    recorded.write(tmp_path / "r", head, rows)
    assert run("calibrate", artifact, "--benign", tmp_path / "r", "--fpr", 0.1, "-o", tmp_path / "out") == 1
    assert capsys.readouterr().err.startswith("error: benign scores from -1e+308 to 1e+308 lie too far apart")


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = testing.write_artifact(tmp_path / "p.safetensors")
    first, second = (recording(tmp_path / f"{n}.jsonl", probes.load(artifact), n) for n in (1, 2))

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "out"))

    monkeypatch.setattr(os, "fsync", full)
    assert run("calibrate", artifact, "--benign", first, "--second", second, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error == f"error: {tmp_path / 'out'}: No space left on device; check path, permissions and space\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.jsonl", "2.jsonl", "p.safetensors"]


@pytest.mark.parametrize(
    ("given_options", "status", "words"),
    [
        (["--by", "condition"], 2, "no line has the field 'condition'; add it to each, or give --by one of route"),
        (["--by", "route", "--fpr", "0.005"], 1, "which needs 199 in each: 'tempted' has 100; give more"),
        (["--by", "route", "--fpr", "0.015", "--half"], 1, "'tempted' has 50; give more of them, or one value to "
         "several (1.jsonl was dealt in half: give twice as many, or --second)"),
    ],
)  # fmt: skip
def test_the_command_refuses_in_one_line_and_writes_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given_options: Sequence[str],
    status: int,
    words: str,
) -> None:
    artifact = testing.write_artifact(tmp_path / "p.safetensors")
    first, second = (recording(tmp_path / f"{n}.jsonl", probes.load(artifact), n) for n in (1, 2))
    other = [] if "--half" in given_options else ["--second", second]
    options = [option for option in given_options if option != "--half"]
    out = tmp_path / "out.safetensors"
    assert run("calibrate", artifact, "--benign", first, *other, *options, "-o", out) == status
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not out.exists()
