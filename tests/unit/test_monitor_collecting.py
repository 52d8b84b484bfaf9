"""The loop that makes shards, with a fake engine: resumed after a kill, refused where it cannot end well."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import collecting
from monitor.collecting import Fed, check_disk, make_shards, parts, resumed, sole_writer
from monitor.errors import CollectError
from probes import dataset
from probes.atomic import PARTIAL
from probes.collected import open_collection
from probes.collection import Collection, write_shard
from probes.dataset import Conversation
from probes.manifest import TokenMask

LAYERS, D = (0, 2), 3


def fed(i: int, tokens: int) -> Fed:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * tokens}]
    chat = Conversation.model_validate({"id": f"c{i}", "messages": turns, "label": i % 2})
    return Fed(chat, list(range(tokens + 2)), 2, range(2, tokens + 2))


def plan_of(shards: Sequence[Sequence[Fed]], **changes: object) -> Collection:
    fields: dict[str, object] = {
        "model_id": "fake",
        "config_digest": "0" * 64,
        "chat_template_digest": None,
        "weights_digest": None,
        "d_model": D,
        "n_layers": 4,
        "layers": LAYERS,
        "dtype": "float32",
        "kept": TokenMask(),
        "data_digest": dataset.digest([one.conversation for shard in shards for one in shard]),
        "n_shards": len(shards),
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Collection.model_validate({**fields, **changes})


class Killed(BaseException):
    """The process ends here."""


class FakeEngine:
    """Computes shards; dies in the ``dies_at``-th, before or after it has written."""

    def __init__(self, dies_at: int = -1, after_writing: bool = False) -> None:
        self.computed: list[str] = []
        self._dies_at, self._after = dies_at, after_writing

    def __call__(self, part: Sequence[Fed], path: Path) -> str:
        rows = [torch.arange(one.kept.start, one.kept.stop).float() for one in part]
        hidden = torch.cat(rows)[None, :, None].expand(len(LAYERS), -1, D)
        dies = len(self.computed) == self._dies_at
        self.computed.append(path.name)
        if dies and not self._after:
            (path.parent / f"{PARTIAL}half").write_bytes(b"half")
            raise Killed
        digest = write_shard(path, LAYERS, hidden)
        if dies:
            raise Killed
        return digest


def collect(folder: Path, shards: Sequence[Sequence[Fed]], engine: FakeEngine, told: list[str]) -> None:
    with sole_writer(folder):
        make_shards(folder, resumed(folder, plan_of(shards)), shards, engine, told.append)


SHARDS = [[fed(0, 3), fed(1, 1)], [fed(2, 4)], [fed(3, 2), fed(4, 2)]]


@pytest.mark.parametrize("after_writing", [False, True])
@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, dies_at: int, after_writing: bool
) -> None:
    with pytest.raises(Killed):
        collect(tmp_path, SHARDS, FakeEngine(dies_at, after_writing), [])
    engine, told = FakeEngine(), list[str]()
    collect(tmp_path, SHARDS, engine, told)
    assert engine.computed == [f"shard-{i:05d}.safetensors" for i in range(dies_at, 3)]
    assert len(told) == 3 - dies_at
    assert told[-1].startswith("shard 3 of 3: 2 conversations, 4 rows")
    assert not list(tmp_path.glob(f"{PARTIAL}*"))
    collected = open_collection(tmp_path)
    for one, found in zip(
        (one for shard in SHARDS for one in shard),
        collected.activations(collected.conversations, LAYERS, TokenMask()),
        strict=True,
    ):
        assert found.hidden[:, 1, 0].tolist() == list(one.kept)


def test_only_a_damaged_shard_is_made_anew(tmp_path: Path) -> None:
    collect(tmp_path, SHARDS, FakeEngine(), [])
    path = tmp_path / "shard-00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    engine = FakeEngine()
    collect(tmp_path, SHARDS, engine, [])
    assert engine.computed == [path.name]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "changes", [{"layers": (0, 1)}, {"dtype": "bfloat16"}, {"kept": TokenMask(prompt="all")}]
)
def test_another_collection_is_not_overwritten(tmp_path: Path, changes: dict[str, object]) -> None:
    collect(tmp_path, SHARDS, FakeEngine(), [])
    with pytest.raises(CollectError, match=r"holds another collection \(fake, layers 0,2"):
        resumed(tmp_path, plan_of(SHARDS, **changes))


def test_two_runs_never_write_to_one_folder(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CollectError, match="another `probewatch collect` is writing"):
            collect(tmp_path, SHARDS, FakeEngine(), [])


def test_a_worker_on_another_machine_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(CollectError, match="workers run elsewhere"):
        make_shards(tmp_path, plan_of(SHARDS), SHARDS, lambda part, path: "0" * 64, lambda _: None)


def test_a_full_disk_is_told_before_anything_starts(tmp_path: Path) -> None:
    check_disk(tmp_path, 1)
    with pytest.raises(
        CollectError, match=r"1073741824 MiB are needed under .*, \d+ are free; fewer --layers"
    ):
        check_disk(tmp_path, 2**50)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 50))
def test_parts_keep_the_order_and_the_limits(lengths: list[int], bytes_a_row: int) -> None:
    shown = [fed(i, tokens) for i, tokens in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(collecting, "SHARD_BYTES", 300)
        patched.setattr(collecting, "SHARD_CONVERSATIONS", 7)
        found = parts(shown, bytes_a_row)
    assert [one for part in found for one in part] == shown
    for part in found:
        assert 1 <= len(part) <= 7
        assert len(part) == 1 or sum(len(one.kept) for one in part) * bytes_a_row <= 300
