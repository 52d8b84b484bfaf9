"""Other projects' probes: what our artifact computes is what they compute, at the tensor that they read."""

import json
import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import probes
from probes import cli, organism
from probes.importing.convert import convert
from probes.importing.foreign import Request
from probes.importing.formats import FORMATS, detect
from probes.testing import write_artifact

torch.set_num_threads(1)

FOREIGN = Path(__file__).parent / "foreign"
D = 6
RNG = np.random.default_rng(3)


def answers(name: str) -> dict[str, Any]:
    return {key: np.array(value) for key, value in json.loads((FOREIGN / f"{name}.json").read_text()).items()}


def imported(tmp_path: Path, file: Path, *flags: str) -> probes.Probe:
    out = tmp_path / "out.safetensors"
    assert cli.main(["import", str(file), "-o", str(out), *flags]) == 0
    return probes.load(out)


def rows(inputs: Any, layers: int = 1) -> Tensor:
    """[N, d] or [N, L * d] -> [N, L, d]"""
    return torch.tensor(np.asarray(inputs), dtype=torch.float32).reshape(len(inputs), layers, -1)


def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: Path, *flags: str) -> tuple[int, str]:
    out = tmp_path / "never.safetensors"
    status = cli.main(["import", str(file), "-o", str(out), *flags])
    said = capsys.readouterr().err
    assert not out.exists()
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return status, said


def test_the_command_line_lists_the_formats_that_are_read() -> None:
    assert set(cli.IMPORTS) == set(FORMATS)


def test_repeng(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = imported(tmp_path, FOREIGN / "repeng.gguf")
    assert "add --layers-are hf" in capsys.readouterr().err
    assert probe.manifest.kind == "steering"
    assert probe.manifest.layers == (1, 2, 3)
    assert probe.manifest.binding is None
    assert not probe.manifest.last_block_verified
    assert np.array_equal(
        probe.tensors["direction"].numpy(), answers("repeng")["directions"].astype(np.float32)
    )


def test_layers_may_be_said_and_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = imported(tmp_path, FOREIGN / "repeng.gguf", "--layers-are", "hf", "--layers", "1,3")
    assert "warning" not in capsys.readouterr().err
    assert probe.manifest.layers == (0, 2)
    assert np.allclose(probe.tensors["direction"], answers("repeng")["directions"][[0, 2]])


def test_steering_vectors(tmp_path: Path) -> None:
    probe = imported(tmp_path, FOREIGN / "steering_vector.pt")
    assert probe.manifest.layers == (0, 2)
    assert probe.manifest.last_block_verified
    assert np.allclose(probe.tensors["direction"], answers("steering_vector")["directions"])


@pytest.mark.parametrize(
    "file", ["pipeline.joblib", "pipeline_compressed.joblib", "pipeline_2.pkl", "pipeline_5.pkl"]
)
def test_sklearn_pipelines_of_every_writing(tmp_path: Path, file: str) -> None:
    probe = imported(tmp_path, FOREIGN / file, "--layers", "5", "--layers-are", "hf")
    assert (probe.manifest.kind, probe.manifest.layers) == ("logistic", (4,))
    said = answers("sklearn")
    assert np.allclose(probe.score_tokens(rows(said["inputs"])), said["pipeline"], atol=1e-5)


def test_sklearn_says_which_class_raises_the_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, flags, said = (
        FOREIGN / "pipeline.joblib",
        ("--layers", "5", "--layers-are", "hf"),
        answers("sklearn"),
    )
    imported(tmp_path, file, *flags)
    assert "rises with class 1 of 0, 1; --positive-class 0 turns" in capsys.readouterr().err
    turned = imported(tmp_path, file, *flags, "--positive-class", "0")
    assert capsys.readouterr().err == ""
    assert np.allclose(turned.score_tokens(rows(said["inputs"])), -said["pipeline"], atol=1e-5)
    status, told = refused(tmp_path, capsys, file, *flags, "--positive-class", "lie")
    assert (status, "the classes are 0, 1" in told) == (2, True)
    status, told = refused(tmp_path, capsys, FOREIGN / "ridge.joblib", *flags, "--positive-class", "1")
    assert (status, "a regression has no classes" in told) == (1, True)


def test_sklearn_classes_that_are_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, flags, said = FOREIGN / "words.joblib", ("--layers", "5", "--layers-are", "hf"), answers("sklearn")
    probe = imported(tmp_path, file, *flags)
    assert "rises with class lie of honest, lie" in capsys.readouterr().err
    assert np.allclose(probe.score_tokens(rows(said["inputs"])), said["words"], atol=1e-5)


def test_layers_are_whole_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "p.npz", weight=np.ones(D), layers=[2.5])
    assert (
        "layers [2.5] are no layer numbers"
        in refused(tmp_path, capsys, tmp_path / "p.npz", "--layers-are", "hf")[1]
    )


def test_sklearn_regression_over_two_layers(tmp_path: Path) -> None:
    probe = imported(tmp_path, FOREIGN / "ridge.joblib", "--layers", "2,4", "--layers-are", "resid_post")
    assert (probe.manifest.kind, probe.manifest.layers, probe.manifest.d_model) == ("ridge", (2, 4), D // 2)
    said = answers("sklearn")
    assert np.allclose(probe.score_tokens(rows(said["inputs"], 2)), said["ridge"], atol=1e-4)


def test_sklearn_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--layers", "2", "--layers-are", "resid_post")
    status, told = refused(tmp_path, capsys, FOREIGN / "three.joblib", *flags)
    assert status == 2
    assert "the classes are 0, 1, 2" in told
    probe = imported(tmp_path, FOREIGN / "three.joblib", *flags, "--positive-class", "2")
    said = answers("sklearn")
    z = said["three"]
    expected = z[:, 2] - np.logaddexp(z[:, 0], z[:, 1])
    assert np.allclose(probe.score_tokens(rows(said["inputs"])), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "block"), [("sae_standard", 3), ("sae_jumprelu", 2)])
def test_saelens(tmp_path: Path, name: str, block: int) -> None:
    said = answers(name)
    features = [1, 4, 8]
    probe = imported(tmp_path, FOREIGN / name, "--features", "1,4,8")
    assert (probe.manifest.kind, probe.manifest.layers) == ("sae", (block,))
    hidden = rows(said["inputs"])
    state = probe.token_state(hidden)
    assert np.allclose(state[:, :3], said["features"][:, features], atol=1e-5)
    assert probe.aggregate(state) == pytest.approx(said["features"][:, features].max(0).sum(), abs=1e-5)


def test_saelens_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ((), ("--features", "9"), ("--features", "1,1")):
        status, told = refused(tmp_path, capsys, FOREIGN / "sae_standard", *flags)
        assert status == 2
        assert "--features" in told


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "topk"}, "depends on the others"),
        ({"activation_fn_str": "topk"}, "a plain ReLU"),
        ({"finetuning_scaling_factor": True}, "a scaling factor"),
        ({"normalize_activations": "layer_norm"}, "normalised residual"),
        ({"metadata": {"hook_name": "blocks.3.hook_mlp_out"}}, "not the residual stream"),
        (
            {
                "metadata": {
                    "hook_name": "blocks.3.hook_resid_post",
                    "model_from_pretrained_kwargs": {"center_writing_weights": True},
                }
            },
            "centred writing weights",
        ),
    ],
)
def test_autoencoders_of_another_tensor_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], reason: str
) -> None:
    held = json.loads((FOREIGN / "sae_standard" / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**held, **changes}))
    (tmp_path / "sae_weights.safetensors").write_bytes(
        (FOREIGN / "sae_standard" / "sae_weights.safetensors").read_bytes()
    )
    status, told = refused(tmp_path, capsys, tmp_path, "--features", "1")
    assert status == 1
    assert reason in told


def apollo_detector(layers: list[int]) -> dict[str, Any]:
    shape = (len(layers), D)
    return {
        "layers": layers,
        "directions": torch.tensor(RNG.normal(size=shape), dtype=torch.float32),
        "scaler_mean": torch.tensor(RNG.normal(size=shape) * 100, dtype=torch.float32),
        "scaler_scale": torch.tensor(RNG.uniform(0.1, 3, size=shape), dtype=torch.float32),
        "normalize": True,
        "reg_coeff": 1000.0,
    }


@pytest.mark.parametrize("layers", [[22], [3, 5]])
def test_apollo(tmp_path: Path, layers: list[int]) -> None:
    held = apollo_detector(layers)
    (tmp_path / "detector.pt").write_bytes(pickle.dumps(held))
    probe = imported(tmp_path, tmp_path / "detector.pt")
    assert probe.manifest.layers == tuple(n - 1 for n in layers)
    assert (probe.manifest.kind, probe.manifest.concept) == ("logistic", "deception")
    x = torch.randn(4, len(layers), D, dtype=torch.float64) + held["scaler_mean"].double()
    scaled = (x - held["scaler_mean"].double()) / held["scaler_scale"].double()
    expected = (scaled * held["directions"].double()).sum((1, 2))
    assert torch.allclose(probe.score_tokens(x).double(), expected, atol=2e-3)


def test_attention_probes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heads = 3
    state = {
        "q.weight": torch.randn(heads, D),
        "v.weight": torch.randn(heads, D),
        "v.bias": torch.randn(heads),
        "position_weight": torch.zeros(heads),
    }
    torch.save(state, tmp_path / "probe.pt")
    flags = ("--layers", "4", "--layers-are", "resid_post")
    probe = imported(tmp_path, tmp_path / "probe.pt", *flags)
    x = torch.randn(7, D)
    weights = torch.softmax(x @ state["q.weight"].T, dim=0)
    expected = (weights * (x @ state["v.weight"].T + state["v.bias"])).sum()
    assert probe.aggregate(probe.token_state(x[:, None])) == pytest.approx(float(expected), abs=1e-5)
    capsys.readouterr()
    assert refused(tmp_path, capsys, tmp_path / "probe.pt")[0] == 2
    for changes, reason in (
        ({"position_weight": torch.ones(heads)}, "position_weight is not zero"),
        ({"o.weight": torch.ones(1, heads)}, "a net behind its attention"),
        ({"v.weight": torch.randn(2 * heads, D)}, "several outputs"),
    ):
        torch.save({**state, **changes}, tmp_path / "probe.pt")
        status, told = refused(tmp_path, capsys, tmp_path / "probe.pt", *flags)
        assert status == 1
        assert reason in told


def test_hallucination_probes(tmp_path: Path) -> None:
    head = torch.nn.Linear(D, 1)
    torch.save(head.state_dict(), tmp_path / "probe_head.bin")
    (tmp_path / "probe_config.json").write_text(json.dumps({"layer_idx": 30, "hidden_size": D}))
    probe = imported(tmp_path, tmp_path)
    assert probe.manifest.layers == (30,)
    assert probe.manifest.aggregation.method == "max"
    x = torch.randn(5, D)
    assert torch.allclose(probe.score_tokens(x[:, None]), head(x).detach()[:, 0], atol=1e-5)


def test_persona_vectors_leave_out_what_is_no_block_output(tmp_path: Path) -> None:
    held = torch.randn(6, D)
    torch.save(held, tmp_path / "evil_response_avg_diff.pt")
    probe = imported(tmp_path, tmp_path / "evil_response_avg_diff.pt")
    assert (probe.manifest.layers, probe.manifest.concept) == ((0, 1, 2, 3), "evil")
    assert torch.equal(probe.tensors["direction"], held[1:5])


def test_refusal_direction_is_of_a_block_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = torch.randn(D, dtype=torch.float64)
    torch.save(held, tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"pos": -1, "layer": 10}))
    probe = imported(tmp_path, tmp_path / "direction.pt")
    assert probe.manifest.layers == (9,)
    assert torch.allclose(probe.tensors["direction"][0], held.float())
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"pos": -1, "layer": 0}))
    assert "not the output of a block" in refused(tmp_path, capsys, tmp_path)[1]


def test_cast(tmp_path: Path) -> None:
    held = {n: RNG.normal(size=D).tolist() for n in (15, 16)}
    file = tmp_path / "b.svec"
    file.write_text(json.dumps({"model_type": "llama", "directions": held, "explained_variances": {}}))
    probe = imported(tmp_path, file)
    assert probe.manifest.layers == (15, 16)
    assert np.allclose(probe.tensors["direction"], [held[15], held[16]])


def test_aisi_asks_which_tensor_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight, bias = torch.randn(1, D), torch.randn(1)
    held = {"state_dict": {"linear.weight": weight, "linear.bias": bias}, "hyperparams": {"layer": 20}}
    torch.save(held, tmp_path / "probe.pt")
    status, told = refused(tmp_path, capsys, tmp_path / "probe.pt")
    assert status == 2
    assert "add --layers-are resid_post|hf|block_input" in told
    probe = imported(tmp_path, tmp_path / "probe.pt", "--layers-are", "block_input")
    assert probe.manifest.layers == (19,)
    x = torch.randn(3, D)
    assert torch.allclose(probe.score_tokens(x[:, None]), (x @ weight.T + bias)[:, 0], atol=1e-5)


def test_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w, mu, sigma = RNG.normal(size=D), RNG.normal(size=D), RNG.uniform(1, 2, size=D)
    np.savez_compressed(
        tmp_path / "p.npz", coef=w, intercept=0.5, scaler_mean=mu, scaler_scale=sigma, layers=[8]
    )
    assert refused(tmp_path, capsys, tmp_path / "p.npz")[0] == 2
    probe = imported(tmp_path, tmp_path / "p.npz", "--layers-are", "hf")
    assert (probe.manifest.kind, probe.manifest.layers) == ("affine", (7,))
    x = RNG.normal(size=(3, D))
    assert np.allclose(probe.score_tokens(rows(x)), ((x - mu) / sigma) @ w + 0.5, atol=1e-5)


def under_pressure(width: int, preprocessor: str, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, Any]:
    """A pickled `SklearnProbe` as that package lays it out, and its own score of normed rows."""
    module = types.ModuleType("models_under_pressure.fake")
    names = ("SklearnProbe", "Aggregator", "Pipeline", "StandardScaler", "LogisticRegression")
    for name in names:
        setattr(module, name, type(name, (), {"__module__": module.__name__}))

    def pooled(rows: Any) -> Any:
        return rows

    pooled.__module__, pooled.__name__, pooled.__qualname__ = module.__name__, preprocessor, preprocessor
    setattr(module, preprocessor, pooled)
    monkeypatch.setitem(sys.modules, "models_under_pressure", types.ModuleType("models_under_pressure"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    probe, aggregator, pipeline, scaler, head = (getattr(module, name)() for name in names)
    scaler.mean_, scaler.scale_ = RNG.normal(size=width), RNG.uniform(0.5, 2, size=width)
    head.coef_, head.intercept_ = RNG.normal(size=(1, width)), np.array([0.25])
    pipeline.steps = [("scaler", scaler), ("head", head)]
    aggregator.preprocessor = getattr(module, preprocessor)
    probe.aggregator, probe._classifier = aggregator, pipeline
    return pickle.dumps(probe), lambda rows: ((rows - scaler.mean_) / scaler.scale_) @ head.coef_[0] + 0.25


def test_models_under_pressure_through_the_norm_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = organism.model_dir()
    gain = load_file(model / "model.safetensors")["model.layers.3.input_layernorm.weight"].double().numpy()
    data, score = under_pressure(len(gain), "mean", monkeypatch)
    file = tmp_path / "probe.pkl"
    file.write_bytes(data)
    assert refused(tmp_path, capsys, file)[0] == 2
    probe = imported(tmp_path, file, "--layers", "3", "--model", str(model))
    assert (probe.manifest.kind, probe.manifest.layers) == ("logit_lens", (2,))
    x = RNG.normal(size=(5, len(gain))) * 4
    normed = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6) * gain
    assert np.allclose(probe.score_tokens(rows(x)), score(normed), atol=1e-3)
    capsys.readouterr()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes((model / "config.json").read_bytes())
    os.mkfifo(tmp_path / "model" / "model.safetensors")
    status, told = refused(tmp_path, capsys, file, "--layers", "3", "--model", str(tmp_path / "model"))
    assert (status, "model.safetensors is not a regular file" in told) == (1, True)
    file.write_bytes(under_pressure(len(gain), "maximum", monkeypatch)[0])
    status, told = refused(tmp_path, capsys, file, "--layers", "3", "--model", str(model))
    assert status == 1
    assert "preprocessor is 'models_under_pressure.fake.maximum'" in told


def test_a_head_beside_an_adapter_is_bound_to_it(tmp_path: Path) -> None:
    model = organism.model_dir()
    width = probes.identity.model_identity(model).d_model
    torch.save(torch.nn.Linear(width, 1).state_dict(), tmp_path / "probe_head.bin")
    (tmp_path / "probe_config.json").write_text(json.dumps({"layer_idx": 1}))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4}))
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    bound = imported(out, tmp_path, "--model", str(model)).manifest.binding
    assert bound is not None
    assert bound.adapter_digest == probes.identity.adapter_digest(tmp_path)


def test_scaling_is_folded_in_float64() -> None:
    """A mean of 1e6 and weights that cancel: float32 would be off by whole units."""
    from probes.importing.formats.heads import folded

    weight, mean = np.array([[1.0, -1.0]]), np.array([[1e6, 1e6 + 0.25]])
    folded_weight, bias = folded(weight, 0.0, mean, np.array([[3.0, 3.0]]))
    assert bias == pytest.approx(0.25 / 3, abs=1e-9)
    assert np.allclose(folded_weight, weight / 3)


@pytest.mark.parametrize("form", ["gguf", "steering-vectors"])
def test_a_vector_survives_the_round_trip(tmp_path: Path, form: str) -> None:
    ours = write_artifact(tmp_path / "v.safetensors", kind="steering", scoring="projection", layers=(1, 2))
    assert cli.main(["export-vector", str(ours), "--format", form, "-o", str(tmp_path / "v.out")]) == 0
    found, before = imported(tmp_path, tmp_path / "v.out"), probes.load(ours)
    assert found.manifest.layers == before.manifest.layers
    assert torch.equal(found.tensors["direction"], before.tensors["direction"])


def test_the_real_gguf_library_reads_our_export(tmp_path: Path) -> None:
    import gguf

    ours = write_artifact(tmp_path / "v.safetensors", kind="steering", scoring="projection", layers=(1, 2))
    assert cli.main(["export-vector", str(ours), "--format", "gguf", "-o", str(tmp_path / "v.gguf")]) == 0
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    direction = probes.load(ours).tensors["direction"].numpy()
    assert set(found) == {"direction.1", "direction.2"}
    assert np.array_equal(found["direction.2"], direction[1])
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    assert bytes(architecture.parts[-1]) == b"controlvector"


def test_what_llama_cpp_refuses_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layers, warned in (((0, 1), True), ((1, 2), False)):
        ours = write_artifact(
            tmp_path / "v.safetensors", kind="steering", scoring="projection", layers=layers
        )
        assert cli.main(["export-vector", str(ours), "--format", "gguf", "-o", str(tmp_path / "v.gguf")]) == 0
        assert ("direction.0" in capsys.readouterr().err) == warned


def test_only_vectors_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = write_artifact(tmp_path / "p.safetensors")
    assert cli.main(["export-vector", str(ours), "--format", "gguf", "-o", str(tmp_path / "p.gguf")]) == 1
    assert "only vectors can be exported" in capsys.readouterr().err
    assert not (tmp_path / "p.gguf").exists()


def test_with_a_model_the_artifact_is_bound_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = organism.model_dir()
    width = probes.identity.model_identity(model).d_model
    last = probes.identity.model_identity(model).n_layers - 1
    np.savez(tmp_path / "p.npz", weight=np.ones(width), layers=1)
    probe = imported(tmp_path, tmp_path / "p.npz", "--layers-are", "resid_post", "--model", str(model))
    assert probe.manifest.binding is not None
    probes.identity.check_binding(probe.manifest, probes.identity.model_identity(model))
    np.savez(tmp_path / "p.npz", weight=np.ones(width), layers=last)
    flags = ("--layers-are", "resid_post", "--model", str(model))
    assert "post-norm" in refused(tmp_path, capsys, tmp_path / "p.npz", *flags)[1]
    assert "reads d_model" in refused(tmp_path, capsys, FOREIGN / "repeng.gguf", "--model", str(model))[1]


def test_unbound_is_readable_and_refused_at_attach(tmp_path: Path) -> None:
    probe = imported(tmp_path, FOREIGN / "repeng.gguf")
    assert cli.main(["inspect", str(tmp_path / "out.safetensors")]) == 0
    with pytest.raises(probes.BindingError, match="bound to no model"):
        probes.identity.check_binding(probe.manifest, probes.identity.model_identity(organism.model_dir()))


def test_a_file_is_told_by_its_content() -> None:
    assert detect(Request(FOREIGN / "repeng.gguf")) == "gguf"
    assert detect(Request(FOREIGN / "ridge.joblib")) == "sklearn"
    found = FORMATS["gguf"](Request(FOREIGN / "repeng.gguf"))
    assert convert(found, Request(FOREIGN / "repeng.gguf"), "v").selftest() == 0.0
