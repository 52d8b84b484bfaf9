"""What a folder of collected activations holds, and how it is written: `probes.collected` reads it.

    manifest.json          the `Collection`: model, layers, tokens, digests, where each conversation's rows lie
    conversations.jsonl    the conversations in their order, labels and groups with them
    shard-00000.safetensors ...

A shard holds the rows of consecutive conversations: a tensor `layer.B` [rows, d] for each layer B, in the model's
own dtype. Shards and manifest are written beside their place and renamed, so no reader sees half of one; the
manifest names a shard only once it is there, and a collection that was interrupted goes on from what it names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from probes import atomic
from probes.errors import CollectionInvalid
from probes.identity import ModelIdentity
from probes.manifest import TokenMask

MANIFEST: Final = "manifest.json"
CONVERSATIONS: Final = "conversations.jsonl"
MAX_MANIFEST_BYTES: Final = 2**30

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=2**53)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Span(_Record):
    """The rows of one conversation in its shard; they follow those of the conversation before it."""

    id: str
    first: Count
    """Absolute position of the first kept token; the rows are consecutive."""
    prompt_length: Count
    """Tokens of the prompt; later positions are the answer's."""
    rows: Count


class Shard(_Record):
    """One file."""

    index: Count
    sha256: Digest
    spans: tuple[Span, ...]

    @property
    def file(self) -> str:
        """Its name in the folder: never taken from the manifest."""
        return shard_name(self.index)


class Collection(_Record):
    """The manifest."""

    schema_version: Literal[1] = 1
    model_id: str
    config_digest: Digest
    chat_template_digest: Digest | None
    weights_digest: Digest | None
    d_model: Annotated[int, Field(ge=1)]
    n_layers: Annotated[int, Field(ge=1)]
    layers: Annotated[tuple[Count, ...], Field(min_length=1)]
    """0-based blocks, ascending; the residual stream after each."""
    dtype: Literal["float32", "bfloat16", "float16"]
    kept: TokenMask
    """Tokens whose rows are kept; `skip_positions` says nothing here."""
    data_digest: Digest
    """Of the conversations (`probes.dataset.digest`)."""
    source: str = ""
    """Where the conversations come from, in a line."""
    n_shards: Annotated[int, Field(ge=1)]
    """Of the finished collection."""
    shards: tuple[Shard, ...] = ()
    """Those that are there, by index."""
    engine: str = ""
    """What computed them, e.g. `vLLM 0.32.0`."""
    created_at: datetime

    @property
    def identity(self) -> ModelIdentity:
        """The model whose activations these are."""
        return ModelIdentity(
            self.model_id,
            self.config_digest,
            self.chat_template_digest,
            self.weights_digest,
            self.d_model,
            self.n_layers,
        )

    def same_as(self, other: Collection) -> bool:
        """Whether both are of one plan, however far either has come."""
        progress = {"shards", "created_at", "source", "engine", "model_id"}
        return self.model_dump(exclude=progress) == other.model_dump(exclude=progress)

    def with_shard(self, shard: Shard) -> Collection:
        """With one more shard, in place of one of that index."""
        others = [one for one in self.shards if one.index != shard.index]
        return self.model_copy(update={"shards": tuple(sorted([*others, shard], key=lambda one: one.index))})


def shard_name(index: int) -> str:
    """The file of a shard."""
    return f"shard-{index:05d}.safetensors"


def layer_name(layer: int) -> str:
    """The tensor [rows, d] of a layer."""
    return f"layer.{layer}"


def kept_range(kept: TokenMask, prompt_length: int, length: int) -> range:
    """The absolute positions whose rows are kept, of a conversation of `length` tokens fed."""
    tail = kept.prompt_tail
    first = 0 if tail is None else max(0, prompt_length - tail)
    return range(first, length if kept.generated else prompt_length)


def write_shard(path: Path, layers: Sequence[int], rows: Tensor) -> str:
    """Write `rows` [L, n, d] in one rename; returns the SHA-256 of the file."""
    held = {layer_name(layer): rows[i].contiguous() for i, layer in enumerate(layers)}
    digest: list[str] = []

    def write(temporary: Path) -> None:
        save_file(held, temporary)
        digest.append(file_digest(temporary))

    atomic.fill(path, write)
    return digest[0]


def write_manifest(folder: Path, collection: Collection) -> None:
    """Write the manifest in one rename."""
    atomic.write_text(folder / MANIFEST, collection.model_dump_json(indent=1))


def read_manifest(folder: Path) -> Collection | None:
    """The manifest of a folder, None where it has none. Raises `CollectionInvalid`."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"more than {MAX_MANIFEST_BYTES} bytes")
        return Collection.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, fault['loc'])) or 'JSON'}: {fault['msg']}"
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
    raise CollectionInvalid(f"{path} is no manifest of a collection ({reason}); collect again")


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def missing(folder: Path, collection: Collection) -> list[int]:
    """Indices of the shards that are still to be made, or made anew because their file is not whole."""
    there = {shard.index for shard in collection.shards if intact(folder, shard)}
    return [index for index in range(collection.n_shards) if index not in there]


def intact(folder: Path, shard: Shard) -> bool:
    """Whether the file of a shard is there, whole and unchanged."""
    path = folder / shard.file
    return path.is_file() and file_digest(path) == shard.sha256
