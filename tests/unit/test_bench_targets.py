"""What the benchmark says of its targets, from planted rounds."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import peers, report
from bench.arms import AGAIN, ARMS, OFFLINE, STOCK
from bench.full import PARTS, able
from bench.ratios import ratio
from bench.running import Running, engine_arguments, kv_gib
from bench.targets import TARGETS, Target, verdicts
from bench.workload import Workload
from probes.estimate import Estimate

LOAD = Workload(32, 64, 64)
QUIET = [1.0, 1.0005, 0.9995, 1.0002, 0.9998, 1.0, 1.0001, 0.9999]


def rounds(factors: list[float]) -> list[dict[str, float]]:
    return [
        {"tokens_per_second": 1000 * f, "inter_token_seconds": 0.01 / f, "first_token_seconds": 0.1 / f}
        for f in factors
    ]


def planted(loss: float, null: list[float] | None = None) -> dict[str, list[dict[str, float]]]:
    return {
        STOCK: rounds([1.0] * 8),
        AGAIN: rounds(null or QUIET),
        "8 probes": rounds([one * (1 - loss) for one in QUIET]),
    }


@pytest.mark.parametrize(
    ("loss", "null", "said"),
    [
        (0.001, None, "met"),
        (0.02, None, "missed"),
        (0.005, None, "unresolved"),
        (0.001, [1.04 * one for one in QUIET], "unresolved"),
        (0.02, [0.96 * one for one in QUIET], "unresolved"),
    ],
)
def test_a_target_is_met_only_where_a_larger_loss_is_excluded(
    loss: float, null: list[float] | None, said: str
) -> None:
    [found] = verdicts("cpu", LOAD, planted(loss, null))  # type: ignore[arg-type]
    assert found["verdict"] == said
    assert found["stock against stock"].startswith("1.0" if null is None else f"{null[0]:.2f}")


def test_of_five_pairs_nothing_can_be_said_and_the_table_says_so(tmp_path: Path) -> None:
    arms = {arm: done[:5] for arm, done in planted(0.5).items()}
    [found] = verdicts("cpu", LOAD, arms)  # type: ignore[arg-type]
    assert found["verdict"] == "unresolved"
    assert report.table([{LOAD.name: arms}], [LOAD], "cpu").count("(no interval)") == 8
    report.write_json(tmp_path / "out.json", [{LOAD.name: arms}], [LOAD], "cpu", {})
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["ratios"][LOAD.name]["8 probes"]["tokens_per_second"] == {
        "value": pytest.approx(0.5),
        "low": None,
        "high": None,
    }
    report.draw(tmp_path / "out.png", {LOAD.name: arms})


def test_starts_are_compared_by_their_medians_and_every_round_is_kept(tmp_path: Path) -> None:
    starts = [{LOAD.name: {arm: rounds([0.5 * f, f, 2 * f]) for arm in (STOCK, AGAIN)}} for f in QUIET[:6]]
    shown = report.table(starts, [LOAD], "cpu")
    assert "6 starts; stock: 1000 tokens/s" in shown
    assert "| stock against stock (noise floor) | 1.0000 [1.0000, 1.0000]" in shown
    report.write_json(tmp_path / "out.json", starts, [LOAD], "cpu", {})
    assert json.loads((tmp_path / "out.json").read_text())["starts"] == starts


def test_smaller_is_better_for_latencies() -> None:
    null = Estimate(1.0, 0.999, 1.001)
    target = Target("cuda", "8 probes", "inter_token_seconds", 1.003)
    assert target.judged(Estimate(1.001, 1.0, 1.002), null) == "met"
    assert target.judged(Estimate(1.01, 1.008, 1.02), null) == "missed"
    assert target.judged(Estimate(1.002, 1.0, 1.004), null) == "unresolved"
    idle = Target("cpu", "idle", "tokens_per_second", None)
    assert idle.judged(Estimate(0.999, 0.998, 1.0), null) == "met"
    assert idle.judged(Estimate(0.98, 0.97, 0.99), null) == "missed"


@pytest.mark.parametrize(
    ("found", "null"),
    [
        (Estimate(0.90, 0.60, 1.20), Estimate(1.0, 0.99, 1.01)),
        (Estimate(0.90, 0.89, 0.91), Estimate(0.9, 0.50, 1.50)),
        (Estimate(0.96, 0.955, 0.965), Estimate(0.96, 0.955, 0.965)),
    ],
)
def test_noise_does_not_meet_the_noise_floor(found: Estimate, null: Estimate) -> None:
    assert Target("cpu", "idle", "tokens_per_second", None).judged(found, null) == "unresolved"


def test_every_target_speaks_of_an_arm_and_of_its_loads_only() -> None:
    assert all(target.arm in ARMS for target in TARGETS)
    assert all(arm in ARMS for arms, _ in PARTS.values() for arm in arms)
    assert not list(verdicts("cpu", Workload(8, 64, 64), planted(0.5)))  # type: ignore[arg-type]


def test_the_report_prints_the_null_first_and_the_verdict(tmp_path: Path) -> None:
    found = {LOAD.name: planted(0.02)}
    shown = report.table([found], [LOAD], "cpu")
    assert "8 rounds of one start" in shown
    lines = [line for line in shown.splitlines() if line.startswith("| ")]
    assert lines[1].startswith("| stock against stock (noise floor) | 1.0")
    assert lines[2].startswith("| 8 probes | 0.98")
    assert lines[-1].endswith("| missed |")
    report.write_json(tmp_path / "out.json", [found], [LOAD], "cpu", {})
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["targets"][LOAD.name][0]["verdict"] == "missed"
    assert kept["ratios"][LOAD.name][AGAIN]["tokens_per_second"]["value"] == pytest.approx(1.0, abs=1e-3)
    report.draw(tmp_path / "out.png", found)
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_a_ratio_is_of_pairs_and_to_both_stock_arms() -> None:
    stock = [{"x": 10.0**i} for i in range(6)]
    arms = {
        STOCK: stock,
        AGAIN: [{"x": 4 * one["x"]} for one in stock],
        "arm": [{"x": 6 * one["x"]} for one in stock],
    }
    assert ratio(arms, AGAIN, "x") == pytest.approx((4.0, 4.0, 4.0))
    assert ratio(arms, "arm", "x") == pytest.approx((3.0, 3.0, 3.0))
    assert ratio({STOCK: stock, "arm": arms["arm"]}, "arm", "x") == pytest.approx((6.0, 6.0, 6.0))


def test_a_peer_that_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not installed" in str(peers.why_not("vllm-lens"))
    monkeypatch.setattr(peers.importlib.metadata, "version", lambda name: "0.32.0")
    for pin, said in (("vllm==0.30.0", "wants vllm==0.30.0, here is 0.32.0"), ("vllm>=0.30", None)):
        found = SimpleNamespace(requires=["torch", pin], version="1.3.0")
        monkeypatch.setattr(peers.importlib.metadata, "distribution", lambda name, found=found: found)
        reason = peers.why_not("vllm-lens")
        assert reason is None if said is None else said in str(reason)


def test_a_part_without_an_arm_that_can_run_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert not able(PARTS["peers"][0])
    assert capsys.readouterr().out.count("left out") == 2
    assert able(["8 probes", "vllm-lens"]) == ["8 probes"]


def test_room_is_made_for_the_largest_of_all_loads() -> None:
    asked = engine_arguments([Workload(32, 64, 64), Workload(1, 4000, 16)], {"max_num_seqs": 8})
    assert asked == {"max_model_len": 4032, "max_num_seqs": 8}


def test_an_engine_that_died_names_its_log(tmp_path: Path) -> None:
    with subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        running = Running(ARMS[STOCK], process, tmp_path / "stock.log")
        with pytest.raises(SystemExit, match=r"'stock' engine ended with status 0; see \S+stock\.log$"):
            running.answer()


def test_keys_and_values_of_all_requests_have_room() -> None:
    config = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 32000,
        "dtype": "bfloat16",
    }
    assert kv_gib(config, [Workload(1, 64, 64)]) == 1
    assert kv_gib(config, [Workload(256, 64, 64), Workload(1, 64, 64)]) == 3


def test_an_arm_says_what_its_processes_run_with(tmp_path: Path) -> None:
    model = SimpleNamespace(
        layers=12,
        write_probes=lambda folder, count, layers, gated, prompt: [folder / f"{count}{prompt}"],
        write_vector=lambda folder, layer: folder / f"vector{layer}",
    )
    assert ARMS[STOCK].plugins == "" == ARMS[AGAIN].plugins
    assert ARMS["installed"].plugins == "probewatch"
    assert ARMS["installed"].environment(model, tmp_path) == {}  # type: ignore[arg-type]
    assert ARMS["idle"].environment(model, tmp_path) == {"PROBEWATCH_TAP_LAYERS": "2,5,8"}  # type: ignore[arg-type]
    streamed = ARMS["8 probes streamed"].environment(model, tmp_path)  # type: ignore[arg-type]
    assert streamed["PROBEWATCH_EXPOSE"] == "verdict"
    counted = ARMS["8 probes prompt"].environment(model, tmp_path)  # type: ignore[arg-type]
    assert counted["PROBEWATCH_PROBES"].endswith("8True")
    assert "8 probes streamed" not in OFFLINE, "nobody reads a reply over HTTP there"
    assert ARMS["steered"].wish == {"probewatch_steer": "bench:{scale}"}
    assert ARMS["8 probes"].wish is None
