"""Model identity: what changes it, what does not, and who is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import probes
from probes import manifest
from probes.identity import adapter_digest, check_binding, model_identity
from probes.testing import fake_manifest

torch.set_num_threads(1)

CONFIG = {"hidden_size": 4, "num_hidden_layers": 4, "rope_theta": 1e4, "transformers_version": "5.0"}


def model(folder: Path, config: dict[str, object] | None = None, value: float = 0.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    save_file({"w": torch.full((100, 100), value)}, folder / "model.safetensors")
    return folder


def bound_to(folder: Path, **changes: object) -> probes.ProbeManifest:
    return manifest.revise(fake_manifest(**changes), binding=model_identity(folder).binding())


def test_volatile_keys_and_place_do_not_matter(tmp_path: Path) -> None:
    one = model_identity(model(tmp_path / "a" / "m"))
    two = model_identity(
        model(tmp_path / "b" / "m", {**CONFIG, "transformers_version": "9", "_name_or_path": "/x"})
    )
    assert one == two
    assert (one.model_id, one.d_model, one.n_layers) == ("m", 4, 4)


def test_template_file_and_inline_template_have_one_digest(tmp_path: Path) -> None:
    inline = model_identity(model(tmp_path / "m"))
    (tmp_path / "m" / "tokenizer_config.json").write_text("{}")
    assert model_identity(tmp_path / "m").chat_template_digest is None
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ messages }}")
    assert model_identity(tmp_path / "m") == inline


def test_names_of_the_hugging_face_cache_and_other_config_dialects(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name" / "snapshots" / "abc"
    found = model_identity(model(folder, {"text_config": {"n_embd": 8, "n_layer": 2}}))
    assert (found.model_id, found.d_model, found.n_layers) == ("org/name", 8, 2)


def test_the_same_model_is_accepted(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    check_binding(bound_to(folder), model_identity(folder))


def test_others_are_refused_by_name(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    identity = model_identity(folder)
    template = model(tmp_path / "template")
    (template / "chat_template.jinja").write_text("other")
    cases = [
        (fake_manifest(), identity, probes.Unbound, "bound to no model"),
        (bound_to(folder, d_model=5), identity, probes.DimensionMismatch, "d_model 5, m has 4"),
        (bound_to(folder, layers=(4,)), identity, probes.LayerMismatch, "layer 4, m has layers 0 to 3"),
        (bound_to(folder, layers=(3,)), identity, probes.LayerMismatch, "last block"),
        (bound_to(folder), model_identity(model(tmp_path / "w", value=1.0)), probes.ModelMismatch, "weights"),
        (bound_to(folder), model_identity(template), probes.ModelMismatch, "chat template"),
        (
            bound_to(folder),
            model_identity(model(tmp_path / "c", {**CONFIG, "rope_theta": 1.0})),
            probes.ModelMismatch,
            "configuration",
        ),
    ]
    for found, candidate, expected, words in cases:
        with pytest.raises(expected, match=words) as caught:
            check_binding(found, candidate)
        assert "probe 'fake'" in str(caught.value)
        assert "\n" not in str(caught.value)
    check_binding(bound_to(folder, layers=(3,), last_block_verified=True), identity)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(probes.BindingError, match=r"config\.json is unreadable"):
        model_identity(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": "big"}')
    with pytest.raises(probes.BindingError, match="hidden_size"):
        model_identity(tmp_path)


def adapter(folder: Path, value: float = 0.0, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16, **config}))
    save_file({"lora_A": torch.full((20, 20), value)}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_known_by_its_weights_and_its_configuration_and_not_by_its_place(
    tmp_path: Path,
) -> None:
    one = adapter_digest(adapter(tmp_path / "one"))
    assert adapter_digest(adapter(tmp_path / "elsewhere" / "two")) == one
    others = [
        adapter_digest(adapter(tmp_path / "weights", 1.0)),
        adapter_digest(adapter(tmp_path / "alpha", lora_alpha=32)),
        adapter_digest(adapter(tmp_path / "rank", r=4)),
    ]
    assert len({one, *others}) == 4
    assert all(len(digest) == 64 for digest in others)


def test_the_order_of_keys_in_an_adapters_configuration_does_not_matter(tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two")
    (two / "adapter_config.json").write_text('{"lora_alpha": 16, "r": 8}')
    assert adapter_digest(one) == adapter_digest(two)


def test_a_digest_fits_a_binding(tmp_path: Path) -> None:
    digest = adapter_digest(adapter(tmp_path / "a"))
    binding = {"model_id": "m", "config_digest": "0" * 64, "adapter_digest": digest}
    found = fake_manifest(binding=binding).binding
    assert found is not None
    assert found.adapter_digest == digest


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no safetensors"),
        (lambda folder: (folder / "adapter_config.json").unlink(), r"adapter_config\.json is unreadable"),
        (lambda folder: (folder / "adapter_config.json").write_text("[1]\n"), "list, not an object"),
        (lambda folder: (folder / "adapter_config.json").write_text("{\n"), "unreadable"),
        (lambda folder: (folder / "more.safetensors").symlink_to("gone"), r"more\.safetensors is unreadable"),
        (lambda folder: (folder / "more.safetensors").mkdir(), r"more\.safetensors is unreadable"),
        (
            lambda folder: os.mkfifo(folder / "more.safetensors"),
            r"more\.safetensors is unreadable \(a pipe\)",
        ),
    ],
)
def test_a_folder_without_an_adapter_is_refused_in_one_line(
    tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    folder = adapter(tmp_path / "a")
    damage(folder)
    with pytest.raises(probes.BindingError, match=rf"^[^\n]*{words}[^\n]*$") as caught:
        adapter_digest(folder)
    assert str(folder) in str(caught.value)


def test_a_probe_of_an_adapter_fits_the_model_that_carries_it(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    plain = bound_to(folder)
    assert plain.binding is not None
    digest = adapter_digest(adapter(tmp_path / "a"))
    check_binding(
        manifest.revise(plain, binding=plain.binding.model_copy(update={"adapter_digest": digest})),
        model_identity(folder),
    )
