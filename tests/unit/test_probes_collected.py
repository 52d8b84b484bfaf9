"""Folders of collected activations: what is read is what was written, and nothing damaged is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from probes import atomic, cli, collection, dataset
from probes.collected import Collected, open_collection
from probes.collection import MANIFEST, kept_range, missing, read_manifest
from probes.dataset import Conversation
from probes.errors import CollectionInvalid, LayerMismatch
from probes.manifest import TokenMask
from probes.testing import write_collection

torch.set_num_threads(1)

ALL = TokenMask(prompt="all")
MASKS = {
    "all": ALL,
    "answer": TokenMask(),
    "tail": TokenMask(prompt="last_k", last_k=2),
    "prompt": TokenMask(prompt="last_k", last_k=1, generated=False),
}


def chat(i: int, **fields: object) -> Conversation:
    turns = [{"role": "user", "content": f"ask\u2028{i}"}, {"role": "assistant", "content": "yes"}]
    return Conversation.model_validate({"id": f"c{i}", "messages": turns, "label": i % 2, **fields})


def hidden_of(lengths: list[int], layers: int, dtype: torch.dtype, d: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randn(n, layers, d, generator=generator).to(dtype) for n in lengths]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six conversations of five tokens, three of them the prompt's, on layers 1 and 4, two in a shard."""
    write_collection(
        tmp_path,
        [chat(i) for i in range(6)],
        hidden_of([5] * 6, 2, torch.float32),
        [3] * 6,
        (1, 4),
        per_shard=2,
    )
    return tmp_path


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=9),
    kept=st.sampled_from(sorted(MASKS)),
    wanted=st.sampled_from(sorted(MASKS)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    per_shard=st.integers(1, 4),
    pick=st.randoms(use_true_random=False),
)
def test_every_row_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[tuple[int, int]],
    kept: str,
    wanted: str,
    dtype: torch.dtype,
    per_shard: int,
    pick: object,
) -> None:
    folder = tmp_path_factory.mktemp("collected")
    chats = [chat(i) for i in range(len(lengths))]
    hidden = hidden_of([prompt + answer for prompt, answer in lengths], 3, dtype)
    prompts = [prompt for prompt, _ in lengths]
    write_collection(folder, chats, hidden, prompts, (0, 2, 5), kept=MASKS[kept], per_shard=per_shard)
    collected = open_collection(folder)
    assert collected.conversations == tuple(chats)
    order = list(range(len(chats)))
    pick.shuffle(order)  # type: ignore[attr-defined]
    asked = [chats[i] for i in order]
    mask, have = MASKS[wanted], MASKS[kept]
    tail, kept_tail = mask.prompt_tail, have.prompt_tail
    enough = (have.generated or not mask.generated) and (
        kept_tail is None or (tail is not None and tail <= kept_tail)
    )
    if not enough:
        with pytest.raises(CollectionInvalid, match="--tokens all"):
            collected.activations(asked, (5, 0), mask)
        return
    found = collected.activations(asked, (5, 0), mask)
    assert len(found) == len(asked)
    for i, one in zip(order, found, strict=True):
        there = kept_range(mask, prompts[i], len(hidden[i]))
        assert one.first == there.start
        assert one.prompt_length == prompts[i]
        assert torch.equal(one.hidden, hidden[i][there.start : there.stop][:, [2, 0]].float())
        assert not one.mask(mask)[len(there) :].any()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncated, flipped, emptied, Path.unlink])
def test_a_damaged_shard_is_told_and_made_anew(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder / "shard-00001.safetensors")
    collected = open_collection(folder)
    found = collected.activations(collected.conversations, (1,), ALL)
    assert len(found[0].hidden) == 5
    with pytest.raises(CollectionInvalid, match=r"shard-00001.safetensors is truncated or damaged .*collect"):
        found[2]
    assert missing(folder, collected.manifest) == [1]


class Killed(BaseException):
    """The process ends here; nothing cleans up."""


@pytest.mark.parametrize("at", ["save_file", "_sync", "replace"])
def test_a_kill_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    def killed(*args: object) -> None:
        for given_path in args:
            if isinstance(given_path, Path) and given_path.name.startswith(atomic.PARTIAL):
                given_path.write_bytes(b"half")
        raise Killed

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    owner = {"save_file": collection, "_sync": atomic, "replace": atomic.os}[at]
    monkeypatch.setattr(owner, at, killed)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(Killed):
        collection.write_shard(folder / "shard-00000.safetensors", (1, 4), torch.zeros(2, 10, 3))
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    left = [name for name in after if name not in before]
    assert len(left) == 1
    assert left[0].startswith(atomic.PARTIAL)
    assert {name: after[name] for name in before} == before


def test_a_collection_that_is_not_finished_is_refused(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest is not None
    collection.write_manifest(folder, manifest.model_copy(update={"shards": manifest.shards[:2]}))
    with pytest.raises(CollectionInvalid, match=r"2 of 3 shards; run the same `probewatch collect` again"):
        open_collection(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{}", "Field required"), ("[1", "JSON"), ('{"schema_version": 2}', "schema_version")],
)
def test_a_broken_manifest_is_one_line(folder: Path, text: str, words: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(CollectionInvalid, match=words) as raised:
        open_collection(folder)
    assert "\n" not in str(raised.value)


def test_a_shard_cannot_lie_elsewhere(folder: Path) -> None:
    described = json.loads((folder / MANIFEST).read_text())
    described["shards"][0]["file"] = "../../etc/passwd"
    (folder / MANIFEST).write_text(json.dumps(described))
    with pytest.raises(CollectionInvalid, match="not permitted"):
        open_collection(folder)


def test_other_conversations_are_refused(folder: Path) -> None:
    collected = open_collection(folder)
    with pytest.raises(CollectionInvalid, match="no conversation 'c9'"):
        collected.activations([chat(9)], (1,), ALL)
    changed = chat(1, messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "no"}])
    with pytest.raises(CollectionInvalid, match="another conversation under the id 'c1'"):
        collected.activations([changed], (1,), ALL)
    dataset.write(folder / collection.CONVERSATIONS, [chat(i, label=1) for i in range(6)])
    with pytest.raises(CollectionInvalid, match="not what was collected"):
        open_collection(folder)


def test_a_layer_that_was_not_collected_is_refused(folder: Path) -> None:
    with pytest.raises(LayerMismatch, match=r"holds layers 1, 4 and not 2"):
        open_collection(folder).activations([chat(0)], (1, 2), ALL)


def planted(folder: Path) -> Collected:
    """Positives stand out along axis 0 of layer 4; train, validation and test splits."""
    chats = [
        chat(i, group=f"g{i}", split=("train", "validation", "test")[i % 3], label=i // 3 % 2)
        for i in range(240)
    ]
    hidden = hidden_of([5] * 240, 2, torch.float32)
    for one, conversation in zip(hidden, chats, strict=True):
        one[3:, 1, 0] += 6.0 * (conversation.label or 0)
    write_collection(folder, chats, hidden, [3] * 240, (1, 4), per_shard=50)
    return open_collection(folder)


@pytest.mark.thorough
def test_a_probe_is_trained_calibrated_and_evaluated_without_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collected, probe = planted(tmp_path / "all"), str(tmp_path / "probe.safetensors")
    named = ["--name", "p", "--concept", "deception", "--positive", "lie", "--negative", "honest"]
    folder = ["--activations", str(tmp_path / "all")]
    assert cli.main(["train", *folder, *named, "--seeds", "1", "--regularisation", "1", "-o", probe]) == 0
    assert "chosen: layer 4" in capsys.readouterr().out
    benign = [c.model_copy(update={"label": 0}) for c in collected.conversations if c.label == 0]
    dataset.write(tmp_path / "monday.jsonl", benign[:60])
    dataset.write(tmp_path / "tuesday.jsonl", benign[60:])
    sides = ["--benign", str(tmp_path / "monday.jsonl"), "--second", str(tmp_path / "tuesday.jsonl")]
    assert cli.main(["calibrate", probe, *folder, *sides, "--fpr", "0.05", "-o", probe]) == 0
    page = str(tmp_path / "card.html")
    assert cli.main(["evaluate", probe, *folder, "--min-auroc", "0.95", "--report", page]) == 0
    assert "AUROC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given_options", "words"),
    [
        ([], "give --model and a JSONL"),
        (["--activations", "nowhere"], "has no manifest.json"),
        (["--activations", "{folder}", "--model", "m"], "leave it out"),
    ],
)
def test_wrong_use_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], given_options: list[str], words: str
) -> None:
    options = [option.format(folder=folder) for option in given_options]
    named = ["--name", "p", "--concept", "c", "--positive", "y", "--negative", "n", "-o", "p.safetensors"]
    assert cli.main(["train", *options, *named]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
