"""The model of costs: planted sizes and constants come out as arithmetic by hand says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import fit
from bench.points import FinishPoint, HostPoint, StepPoint, TapPoint
from monitor.cost import Device, Host, Load, Taps, constants, cost, forward_work, tap_work
from monitor.errors import ConfigurationError
from monitor.shape import Shape

LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
MIXTRAL = {
    **LLAMA_8B,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
DEVICE = Device("planted", "", "", False, 1e-3, 2e12, 1e11, 3e-6, 5e11, 8e10)


def test_sizes_of_a_dense_model() -> None:
    shape = Shape.of(LLAMA_8B)
    assert shape.parameters == pytest.approx(8.03e9, rel=1e-3)
    assert shape.parameters - shape.read == 128256 * 4096, "input embeddings are looked up, not multiplied"
    assert shape.active == shape.read
    assert shape.kv_bytes == 2 * 32 * 8 * 128 * 2
    assert Shape.of({**LLAMA_8B, "tie_word_embeddings": True}).parameters == shape.read


def test_a_mixture_reads_all_experts_and_multiplies_by_two() -> None:
    shape = Shape.of(MIXTRAL)
    assert shape.parameters == pytest.approx(46.7e9, rel=1e-3)
    assert shape.active == pytest.approx(12.8e9, rel=1e-2)


def test_names_of_gpt2_nested_text_and_quantized_weights() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
    assert Shape.of({**gpt2, "tie_word_embeddings": True}).parameters == pytest.approx(124e6, rel=0.01)
    assert Shape.of({"text_config": LLAMA_8B}) == Shape.of(LLAMA_8B)
    assert Shape.of({**LLAMA_8B, "quantization_config": {"quant_method": "fp8"}}).weight_bytes == 1
    assert Shape.of({**LLAMA_8B, "quantization_config": {"bits": 4}}).weight_bytes == 0.5


@pytest.mark.parametrize("bad", [{}, {**LLAMA_8B, "hidden_size": 0}, {**LLAMA_8B, "hidden_size": "wide"}])
def test_what_is_no_decoder_is_refused_in_one_line(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"^[^\n]*hidden_size[^\n]*config\.json[^\n]*$"):
        Shape.of(bad)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("intermediate_size", [16384] * 30),
        ("num_key_value_heads", [8, 4]),
        ("hidden_size", "wide"),
        ("num_hidden_layers", -1),
        ("vocab_size", 10**400),
        ("quantization_config", {"bits": "int4"}),
        ("quantization_config", "awq"),
        ("quantization_config", {"config_groups": ["first"]}),
        ("text_config", "llama"),
    ],
)
def test_what_the_arithmetic_does_not_know_is_named_with_its_value(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Shape.of({**LLAMA_8B, name: value})
    said = str(refused.value)
    assert "\n" not in said
    assert len(said) < 300
    assert said.endswith("config.json")
    assert name in said or "bits is 'int4'" in said or "config_groups is ['first']" in said


def test_more_heads_than_the_stream_is_wide_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="64 attention heads in a hidden_size of 32"):
        Shape.of({**LLAMA_8B, "hidden_size": 32, "num_attention_heads": 64})
    assert Shape.of({**LLAMA_8B, "hidden_size": 32, "num_attention_heads": 64, "head_dim": 8}).kv_bytes > 0


def test_weights_of_four_bits_by_every_name() -> None:
    groups = {"group_0": {"weights": {"num_bits": 4}}, "group_1": {"weights": None}}
    for settings in (
        {"quant_method": "compressed-tensors", "config_groups": groups},
        {"quant_method": "mxfp4"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ):
        assert Shape.of({**LLAMA_8B, "quantization_config": settings}).weight_bytes == 0.5


def test_latent_attention_keeps_one_vector_and_one_key_a_token() -> None:
    lite = {  # DeepSeek-V2-Lite: 15.7 billion parameters; its first block alone is dense
        "hidden_size": 2048,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "vocab_size": 102400,
    }
    shape = Shape.of(lite)
    assert shape.kv_bytes == 27 * (512 + 64) * 2
    assert shape.parameters == pytest.approx(15.7e9, rel=0.04)
    assert shape.attention == 16 * (512 + 576) // 2
    assert Shape.of({**lite, "q_lora_rank": 1536}).read != shape.read


def test_work_of_a_step_by_hand() -> None:
    shape = Shape(10, 3, 1000, 900, 800, 20, 12, 2, 2)
    load = Load(requests=2, context=7, rows=5)
    work = forward_work(shape, load)
    assert work.flops == 2 * 5 * 800 + 4 * 5 * 7 * 20 * 3
    assert work.bytes == 900 * 2 + 2 * 7 * 12
    tap = tap_work(shape, columns=4, rows=5)
    assert tap.flops == 2 * 5 * 10 * 4
    assert tap.bytes == 2 * 5 * 10 * 2 + 4 * 10 * 4 + 4 * 5 * 4
    assert DEVICE.forward_seconds(shape, load) == pytest.approx(1e-3 + work.flops / 2e12 + work.bytes / 1e11)
    assert DEVICE.tap_seconds(shape, 4, 5) == pytest.approx(3e-6 + tap.flops / 5e11 + tap.bytes / 8e10)
    overlapping = replace(DEVICE, overlaps=True)
    assert overlapping.tap_seconds(shape, 4, 5) == pytest.approx(
        3e-6 + max(tap.flops / 5e11, tap.bytes / 8e10)
    )


def test_the_ratio_counts_taps_and_the_engines_host_work() -> None:
    shape, host = Shape.of(LLAMA_8B), Host("", (1e-5, 1e-6, 1e-9), (1.0, 0.0, 0.0), (1e-4, 3e-6, 2e-9))
    assert host.finish_seconds(100, 8) == pytest.approx(1e-4 + 24e-6 + 1.6e-6)
    found = cost(shape, Taps(3, 16, 8), Load.decoding(32, 512), DEVICE, host)
    assert found.engine == pytest.approx(1e-5 + 32e-6 + 32 * 8e-9)
    assert found.server == 1.0
    assert found.taps == pytest.approx(3 * DEVICE.tap_seconds(shape, 16, 32))
    assert found.ratio == pytest.approx(found.forward / (found.forward + found.taps + found.engine))
    assert found.ratio < found.ratio_hidden < 1
    assert cost(shape, Taps(0, 16, 0), Load.decoding(1, 1), DEVICE, host).ratio_hidden == 1


def test_more_of_anything_costs_more() -> None:
    shape = Shape.of(LLAMA_8B)
    for device in constants()[0]:
        host = constants()[1]
        base = cost(shape, Taps(3, 16, 8), Load.decoding(32, 512), device, host)
        wider = cost(shape, Taps(3, 1000, 1000), Load.decoding(32, 512), device, host)
        deeper = cost(shape, Taps(31, 16, 8), Load.decoding(32, 512), device, host)
        longer = cost(shape, Taps(3, 16, 8), Load.decoding(32, 8192), device, host)
        assert wider.taps > base.taps
        assert wider.engine >= base.engine
        assert deeper.taps > base.taps
        assert longer.forward > base.forward, "attention reads what is held"


def test_planted_constants_are_found_again() -> None:
    taps = [
        TapPoint(d, n, c, DEVICE.tap_seconds(fit.tap_shape(d), c, n))
        for d in (256, 4096)
        for n in (1, 32, 2048)
        for c in (16, 1000)
    ]
    shape = Shape.of(LLAMA_8B)
    steps = [
        StepPoint(r, t, r, 0, DEVICE.forward_seconds(shape, Load.decoding(r, t)))
        for r in (1, 8, 64, 256)
        for t in (16, 512, 8192)
    ]
    blank = Device("planted", "", "", False, 1, 1, 1, 1, 1, 1)
    found = fit.fit_forward(fit.fit_taps(blank, taps), shape, steps)
    for name in ("step_seconds", "flops", "bytes", "launch_seconds", "tap_flops", "tap_bytes"):
        assert getattr(found, name) == pytest.approx(getattr(DEVICE, name), rel=0.02), name
    host = [HostPoint(r, k, 1e-5 + 2e-6 * r + 3e-9 * r * k, 4e-5) for r in (1, 32, 256) for k in (8, 1000)]
    engine, server = fit.fit_host(host)
    assert engine == pytest.approx([1e-5, 2e-6, 3e-9])
    assert server == pytest.approx([4e-5, 0, 0], abs=1e-12)
    ended = [FinishPoint(t, k, 1e-4 + 3e-6 * k + 2e-9 * t * k) for t in (64, 512) for k in (8, 1000)]
    assert fit.fit_finish(ended) == pytest.approx([1e-4, 3e-6, 2e-9])


def test_measured_taps_go_to_all_that_borrow_them_and_to_no_lender() -> None:
    own = replace(DEVICE, name="H100", tap_source="H100; once")
    borrower = replace(own, name="H200", bytes=2e11)
    other = replace(own, name="CPU core", tap_source="once")
    truth = replace(DEVICE, launch_seconds=9e-6)
    taps = [
        TapPoint(64, n, c, truth.tap_seconds(fit.tap_shape(64), c, n)) for n in (1, 999) for c in (16, 99)
    ]
    found = fit.with_taps([other, own, borrower], "H100", taps, "H100; again")
    assert [one.name for one in found] == ["H100", "H200"]
    assert {one.tap_source for one in found} == {"H100; again"}
    assert {one.launch_seconds for one in found} == {found[0].launch_seconds}
    assert found[0].launch_seconds == pytest.approx(9e-6, rel=0.05)
    assert found[1].bytes == 2e11
    [alone] = fit.with_taps([other, own, borrower], "H200", taps, "H200; once")
    assert alone.name == "H200"


def test_the_model_needs_no_torch() -> None:
    code = "import sys, monitor.cost; monitor.cost.constants(); sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode
        == 0
    )
