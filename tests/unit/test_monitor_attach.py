"""What is refused before vLLM loads a model: every refusal is one line that names the thing."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from monitor.attach import Plan, check_model, local_model_dir, make_plan
from monitor.config import Settings
from monitor.errors import AttachError, ConfigurationError
from probes.artifact import METADATA_KEY, tensors_digest
from probes.identity import ModelIdentity, model_identity
from probes.testing import fake_manifest, fake_tensors, write_artifact

D, LAYERS = 4, 6


def model_dir(folder: Path, template: str = "{{ messages }}", **config: object) -> Path:
    """Files of a model as far as an identity is made of them."""
    folder.mkdir()
    shape = {"hidden_size": D, "num_hidden_layers": LAYERS, "model_type": "llama"}
    (folder / "config.json").write_text(json.dumps({**shape, **config}))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return model_dir(tmp_path / "organism")


def bound(path: Path, identity: ModelIdentity, **changes: object) -> Path:
    return write_artifact(path, 0, **{"binding": identity.binding().model_dump(), **changes})


def plan_of(*paths: Path, tap_layers: tuple[int, ...] = (), columns: int = 16) -> Plan:
    return make_plan(Settings(probes=paths, tap_layers=tap_layers, tap_columns=columns))


def refusal(act: Callable[[], object], *parts: str) -> str:
    """The error of ``act``: one line that holds all ``parts``."""
    with pytest.raises(AttachError) as caught:
        act()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert message.isprintable(), message
    for part in parts:
        assert part in message
    return message


def test_a_fitting_probe_is_planned_bound_and_seated(tmp_path: Path, model: Path) -> None:
    path = bound(tmp_path / "p.safetensors", model_identity(model), name="mine", layers=(1, 3))
    plan = plan_of(path, tap_layers=(0, 3))
    check_model(plan, model)
    bank = plan.bank(D, LAYERS)
    assert bank.actions == {"mine": "observe"}
    assert bank.layers == (0, 1, 3)
    assert bank.capacity == 16


def test_actions_are_those_of_the_manifests(tmp_path: Path) -> None:
    one = write_artifact(tmp_path / "a.safetensors", name="a", threshold=1.0, default_action="alert")
    two = write_artifact(tmp_path / "b.safetensors", name="b")
    assert plan_of(one, two).bank(D, LAYERS).actions == {"a": "alert", "b": "observe"}


def test_nothing_to_monitor_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="nothing to monitor"):
        make_plan(Settings())


@pytest.mark.parametrize("chosen", ["refuse", "serve_unmonitored"])
def test_the_plan_knows_whether_to_refuse(chosen: str) -> None:
    settings = Settings.model_validate({"on_attach_failure": chosen, "tap_layers": (1,)})
    assert make_plan(settings).refuse is (chosen == "refuse")


def test_a_probe_of_another_configuration_is_refused(tmp_path: Path, model: Path) -> None:
    other = model_dir(tmp_path / "sibling", rope_theta=5.0)
    path = bound(tmp_path / "p.safetensors", model_identity(other), name="mine")
    refusal(lambda: check_model(plan_of(path), model), "'mine'", "sibling", "organism", "configuration")


def test_a_probe_of_another_chat_template_is_refused(tmp_path: Path, model: Path) -> None:
    other = model_dir(tmp_path / "sibling", template="other")
    path = bound(tmp_path / "p.safetensors", model_identity(other), name="mine")
    refusal(lambda: check_model(plan_of(path), model), "'mine'", "chat template")


def test_a_probe_of_another_width_is_refused(tmp_path: Path, model: Path) -> None:
    path = bound(tmp_path / "p.safetensors", model_identity(model), name="mine", d_model=D + 1)
    refusal(lambda: check_model(plan_of(path), model), "'mine'", "d_model 5", "4")
    refusal(lambda: plan_of(path).bank(D, LAYERS), "'mine'", "d_model 5", "4")


def test_a_probe_of_a_layer_that_the_model_has_not_is_refused(tmp_path: Path, model: Path) -> None:
    path = bound(tmp_path / "p.safetensors", model_identity(model), name="mine", layers=(1, 6))
    refusal(lambda: check_model(plan_of(path), model), "'mine'", "layer 6", "0 to 5")
    refusal(lambda: plan_of(path).bank(D, LAYERS), "'mine'", "layer 6", "0 to 5")


def test_a_tapped_layer_that_the_model_has_not_is_refused_with_its_variable() -> None:
    refusal(lambda: plan_of(tap_layers=(1, 6)).bank(D, LAYERS), "PROBEWATCH_TAP_LAYERS", "6", "0 to 5")


def test_a_probe_of_the_last_block_is_refused_unless_verified(tmp_path: Path, model: Path) -> None:
    path = bound(tmp_path / "p.safetensors", model_identity(model), name="mine", layers=(5,))
    refusal(lambda: check_model(plan_of(path), model), "'mine'", "layer 5", "last block")
    verified = bound(
        tmp_path / "v.safetensors", model_identity(model), name="mine", layers=(5,), last_block_verified=True
    )
    check_model(plan_of(verified), model)


def test_an_unbound_probe_is_refused(tmp_path: Path, model: Path) -> None:
    path = write_artifact(tmp_path / "p.safetensors", name="mine")
    refusal(lambda: check_model(plan_of(path), model), "'mine'", "bound to no model")


def test_two_probes_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [write_artifact(tmp_path / f"{i}.safetensors", seed=i, name="mine") for i in range(2)]
    refusal(lambda: plan_of(*paths).bank(D, LAYERS), "mine")


def test_a_model_without_a_configuration_is_refused(tmp_path: Path, model: Path) -> None:
    path = bound(tmp_path / "p.safetensors", model_identity(model))
    (model / "config.json").unlink()
    refusal(lambda: check_model(plan_of(path), model), "config.json")


def broken(path: Path, **replaced: torch.Tensor) -> Path:
    """An artifact whose digest fits its tensors, with some tensors ``replaced``."""
    manifest = fake_manifest(name="mine")
    tensors = {**fake_tensors(manifest), **replaced}
    revised = manifest.model_copy(update={"tensors_sha256": tensors_digest(tensors)})
    path.write_bytes(save(tensors, metadata={METADATA_KEY: revised.model_dump_json()}))
    return path


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    weight = torch.ones(2, D)
    weight[1, 2] = bad
    path = broken(tmp_path / "p.safetensors", weight=weight)
    refusal(lambda: plan_of(path), str(path), "weight", "NaN")


def test_golden_scores_that_are_not_reproduced_are_refused(tmp_path: Path) -> None:
    path = broken(tmp_path / "p.safetensors", golden_scores=torch.full((3,), 50.0))
    refusal(lambda: plan_of(path), str(path), "golden")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = write_artifact(tmp_path / "p.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refusal(lambda: plan_of(path), str(path))


def test_a_changed_byte_of_a_tensor_is_refused(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "p.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    refusal(lambda: plan_of(path), str(path), "sha256")


class Bomb:
    """Fails the test if it is ever unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(Path(os.environ["PROBEWATCH_TEST_BOMB"])),))


@pytest.mark.parametrize("torch_file", [False, True])
def test_a_pickle_is_refused_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_file: bool
) -> None:
    monkeypatch.setenv("PROBEWATCH_TEST_BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "p.safetensors"
    if torch_file:
        torch.save(Bomb(), path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    refusal(lambda: plan_of(path), str(path), "never opened", "probewatch import")
    assert not (tmp_path / "exploded").exists()


HOSTILE = {
    "missing": "none.safetensors",
    "a folder": ".",
    "a link to itself": "loop",
    "a pipe": "pipe",
    "without an end": "/dev/zero",
    "below a file": f"{__file__}/p.safetensors",
    "a zero byte": "p\0.safetensors",
    "too long": "p" * 300,
    "a second line": "p\nprobewatch: 3 probes attached",
    "a terminal code": "p\x1b[2J.safetensors",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_path_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    refusal(lambda: plan_of(tmp_path / name))


def test_a_hostile_name_in_a_manifest_is_refused(tmp_path: Path) -> None:
    manifest = fake_manifest()
    tensors = fake_tensors(manifest)
    text = manifest.model_dump_json().replace('"name":"fake"', '"name":"a\\nb"')
    assert "a\\nb" in text
    path = tmp_path / "p.safetensors"
    path.write_bytes(save(tensors, metadata={METADATA_KEY: text}))
    refusal(lambda: plan_of(path), str(path), "name")


def test_the_files_of_a_local_model_are_its_own_folder(model: Path) -> None:
    assert local_model_dir(str(model)) == model


def test_a_model_that_is_not_on_this_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refusal(lambda: local_model_dir("nobody/no-such-model"), "nobody/no-such-model")
