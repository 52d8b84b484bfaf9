"""Collecting activations, apart from the engine that computes them: what to feed, what it will cost, which shards are
still to be made, and the loop that makes them."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from monitor.errors import CollectError
from probes import dataset
from probes.atomic import PARTIAL
from probes.collection import (
    CONVERSATIONS,
    Collection,
    Shard,
    Span,
    kept_range,
    missing,
    read_manifest,
    shard_name,
    write_manifest,
)
from probes.dataset import Conversation
from probes.hf import ChatTokenizer, token_ids
from probes.manifest import TokenMask

SHARD_BYTES = 256 * 2**20
SHARD_CONVERSATIONS = 1024
"""A shard ends with whichever of the two comes first; a conversation is never cut."""
MIB = 2**20


@dataclass(frozen=True)
class Fed:
    """One conversation as the engine is fed it."""

    conversation: Conversation
    ids: list[int]
    prompt_length: int
    kept: range
    """Absolute positions whose rows are kept."""

    @property
    def span(self) -> Span:
        """Its rows in a shard."""
        return Span(
            id=self.conversation.id,
            first=self.kept.start,
            prompt_length=self.prompt_length,
            rows=len(self.kept),
        )


Compute = Callable[[Sequence[Fed], Path], str]
"""Feeds conversations to the engine and writes their shard to a file; returns the SHA-256 of the file."""
Tell = Callable[[str], None]


def feed(
    chats: ChatTokenizer, conversations: Sequence[Conversation], kept: TokenMask, most: int
) -> list[Fed]:
    """Every conversation in tokens. Raises ``CollectError`` for one of more than ``most``, or with none to keep."""
    found = []
    for conversation in conversations:
        ids, prompt_length = token_ids(chats, conversation)
        if len(ids) > most:
            raise CollectError(
                f"conversation {conversation.id!r} has {len(ids)} tokens, the engine takes {most}; raise "
                "--max-model-len, or leave it out"
            )
        positions = kept_range(kept, prompt_length, len(ids))
        if not positions:
            raise CollectError(
                f"conversation {conversation.id!r} has no token to keep (an empty answer?); leave it out, or give "
                "other --tokens"
            )
        found.append(Fed(conversation, ids, prompt_length, positions))
    return found


def parts(fed: Sequence[Fed], bytes_a_row: int) -> list[Sequence[Fed]]:
    """The conversations of each shard, in order."""
    cuts, size = [0], 0
    for i, one in enumerate(fed):
        own = len(one.kept) * bytes_a_row
        if i > cuts[-1] and (size + own > SHARD_BYTES or i - cuts[-1] >= SHARD_CONVERSATIONS):
            cuts.append(i)
            size = 0
        size += own
    return [fed[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(fed)], strict=True)]


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """The folder, made and locked, and without what a killed run was still writing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise CollectError(f"{folder} cannot be written ({error.strerror}); choose another -o") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CollectError(f"another `probewatch collect` is writing to {folder}; wait for it") from None
        for path in folder.glob(f"{PARTIAL}*"):
            path.unlink()
        yield


def resumed(folder: Path, plan: Collection) -> Collection:
    """What is there already of the plan, damaged shards left out. Raises ``CollectError`` for another collection."""
    found = read_manifest(folder)
    if found is None:
        return plan
    if not found.same_as(plan):
        layers = ",".join(map(str, found.layers))
        raise CollectError(
            f"{folder} holds another collection ({found.model_id}, layers {layers}, {found.source}); choose another -o"
        )
    lacking = set(missing(folder, found))
    return found.model_copy(
        update={"shards": tuple(shard for shard in found.shards if shard.index not in lacking)}
    )


def check_disk(folder: Path, needed: int) -> None:
    """Raises ``CollectError`` where the disk has no room for ``needed`` bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CollectError(
            f"{needed / MIB:.0f} MiB are needed under {folder}, {free / MIB:.0f} are free; fewer --layers or "
            "--tokens, or another -o"
        )


def make_shards(
    folder: Path, state: Collection, shards: Sequence[Sequence[Fed]], compute: Compute, tell: Tell
) -> Collection:
    """Makes what ``state`` lacks, the manifest after each shard; returns the finished collection."""
    dataset.write(folder / CONVERSATIONS, [one.conversation for shard in shards for one in shard])
    write_manifest(folder, state)
    there = {shard.index for shard in state.shards}
    todo = [index for index in range(len(shards)) if index not in there]
    left = sum(len(one.ids) for index in todo for one in shards[index])
    done, started = 0, time.perf_counter()
    for index in todo:
        fed = shards[index]
        path = folder / shard_name(index)
        digest = compute(fed, path)
        if not path.is_file():
            raise CollectError(
                f"{path} was written and is not here; the engine's workers run elsewhere: give a folder that they share"
            )
        state = state.with_shard(Shard(index=index, sha256=digest, spans=tuple(one.span for one in fed)))
        write_manifest(folder, state)
        done += sum(len(one.ids) for one in fed)
        rate = done / (time.perf_counter() - started)
        tell(
            f"shard {index + 1} of {len(shards)}: {len(fed)} conversations, {sum(len(one.kept) for one in fed)} rows; "
            f"{rate:.0f} tokens/s, {(left - done) / rate:.0f} s left"
        )
    return state
