"""What cannot be scored is refused with the setting to change, and nothing else is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from monitor.errors import CompatibilityError
from monitor.seam import supported


def config(**changes: Any) -> Any:
    """vLLM's configuration as far as it is looked at: everything that is scored is on. A name with two underscores
    reaches into one of its parts."""
    found = SimpleNamespace(
        use_v2_model_runner=False,
        scheduler_config=SimpleNamespace(async_scheduling=True),
        speculative_config=None,
        parallel_config=SimpleNamespace(
            tensor_parallel_size=2,
            pipeline_parallel_size=2,
            data_parallel_size=2,
            prefill_context_parallel_size=1,
            decode_context_parallel_size=1,
            enable_dbo=False,
            use_sequence_parallel_moe=False,
            _api_process_count=4,
        ),
        compilation_config=SimpleNamespace(pass_config=SimpleNamespace(enable_sp=False)),
        lora_config=object(),
        kv_transfer_config=None,
        load_config=SimpleNamespace(load_format="auto"),
        model_config=SimpleNamespace(hf_overrides={}, runner_type="generate", is_moe=True),
    )
    for path, value in changes.items():
        *parts, name = path.split("__")
        owner = found
        for part in parts:
            owner = getattr(owner, part)
        setattr(owner, name, value)
    return found


@pytest.fixture(autouse=True)
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vLLM that has all that the seam touches; none is installed for these tests."""
    monkeypatch.setattr(supported, "vllm_version", lambda: "0.32.0")
    monkeypatch.setattr(supported, "check_capabilities", lambda *_: None)
    monkeypatch.delenv("VLLM_USE_RUST_FRONTEND", raising=False)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "drafts in flight on the V1 runner": ({"speculative_config": object()}, "--no-async-scheduling"),
    "prefill context parallelism": (
        {"parallel_config__prefill_context_parallel_size": 2},
        "context-parallel sizes of 1",
    ),
    "decode context parallelism": (
        {"parallel_config__decode_context_parallel_size": 2},
        "context-parallel sizes of 1",
    ),
    "dual-batch overlap": ({"parallel_config__enable_dbo": True}, "--enable-dbo"),
    "sequence-parallel MoE": ({"parallel_config__use_sequence_parallel_moe": True}, "--all2all-backend"),
    "sequence parallelism": ({"compilation_config__pass_config__enable_sp": True}, '"enable_sp": false'),
    "a KV connector": ({"kv_transfer_config": object()}, "--kv-transfer-config"),
    "dummy weights": ({"load_config__load_format": "dummy"}, "another --load-format"),
    "overrides": ({"model_config__hf_overrides": {"rope_theta": 5}}, "--hf-overrides"),
    "a pooling model": ({"model_config__runner_type": "pooling"}, "generating model"),
}


@pytest.mark.parametrize(("changes", "remedy"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_scored_is_refused_with_its_remedy(changes: dict[str, Any], remedy: str) -> None:
    with pytest.raises(CompatibilityError) as caught:
        supported.check(config(**changes))
    message = str(caught.value)
    assert remedy in message
    assert "is on" in message
    assert "\n" not in message


ACCEPTED: dict[str, dict[str, Any]] = {
    "parallel engines, adapters, several API servers, steps in flight": {},
    "the V2 runner": {"use_v2_model_runner": True},
    "drafts in flight on the V2 runner": {"use_v2_model_runner": True, "speculative_config": object()},
    "drafts on the V1 runner, one step at a time": {
        "speculative_config": object(),
        "scheduler_config__async_scheduling": False,
    },
    "sequence-parallel experts that the model has not": {
        "parallel_config__use_sequence_parallel_moe": True,
        "model_config__is_moe": False,
    },
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_what_can_be_scored_is_accepted(changes: dict[str, Any]) -> None:
    supported.check(config(**changes))


@pytest.mark.parametrize(("value", "refused"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_the_rust_front_end_is_refused_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, value: str, refused: bool
) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", value)
    if not refused:
        supported.check(config())
        return
    with pytest.raises(CompatibilityError, match="unset VLLM_USE_RUST_FRONTEND"):
        supported.check(config())


def test_a_vllm_that_lacks_newer_settings_is_no_refusal() -> None:
    old = config()
    old.parallel_config = SimpleNamespace()
    old.compilation_config.pass_config = SimpleNamespace()
    del old.use_v2_model_runner
    supported.check(old)
    assert supported.runner_name(old) == "v1"


@pytest.mark.parametrize(("version", "accepted"), [("0.26.0", True), ("0.33.9", True), ("0.25.3", False)])
def test_the_version_is_one_that_the_seam_was_written_against(
    monkeypatch: pytest.MonkeyPatch, version: str, accepted: bool
) -> None:
    monkeypatch.setattr(supported, "vllm_version", lambda: version)
    if accepted:
        supported.check_version()
        return
    with pytest.raises(CompatibilityError, match=rf"^vLLM {version} is not supported; install one from"):
        supported.check_version()
