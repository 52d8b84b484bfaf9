"""Activations that `probewatch collect` has left in a folder, read without a model.

    collected = open_collection(folder)                       # digests of manifest and conversations checked
    fit = dataset.of_split(collected.conversations, "train")  # labels, groups and splits as in the JSONL
    found = collected.activations(fit, layers=(3, 5), token_mask=TokenMask())

`found` is a sequence as long as `fit`, in its order, of the same `Activations` that `probes.hf.activations` returns;
each is read from disk, and turned into float32, when it is asked for. So what is held in memory is up to the
caller, and asking for few layers reads few bytes: a sweep asks for one layer at a time. `collected.identity` is the
model's, for `binding()` and `check_binding`. `probes.sources` gives the same two from a loaded model.

The SHA-256 of a shard is checked when it is first opened; a damaged one raises `CollectionInvalid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from safetensors import SafetensorError, safe_open

from probes import dataset
from probes.collection import (
    CONVERSATIONS,
    MANIFEST,
    Collection,
    Shard,
    Span,
    intact,
    kept_range,
    layer_name,
    read_manifest,
)
from probes.dataset import Conversation
from probes.errors import CollectionInvalid, LayerMismatch
from probes.hf import Activations
from probes.identity import ModelIdentity
from probes.manifest import TokenMask


@dataclass(frozen=True)
class Collected:
    """A finished collection."""

    folder: Path
    manifest: Collection
    conversations: tuple[Conversation, ...]
    _shards: _Shards

    @property
    def identity(self) -> ModelIdentity:
        """The model they are of."""
        return self.manifest.identity

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks whose residual stream was collected."""
        return self.manifest.layers

    def activations(
        self, conversations: Sequence[Conversation], layers: Sequence[int], token_mask: TokenMask
    ) -> Sequence[Activations]:
        """Those of each conversation, at least over the tokens that the mask counts; read from disk on access.

        Raises `LayerMismatch` for a layer, `CollectionInvalid` for tokens or a conversation that were not collected.
        """
        missing = [layer for layer in layers if layer not in self.manifest.layers]
        if missing:
            have = ", ".join(map(str, self.manifest.layers))
            raise LayerMismatch(
                f"{self.folder} holds layers {have} and not {missing[0]}; choose among them, or collect again"
            )
        _check_covered(self.folder, self.manifest.kept, token_mask)
        places = [self._place(conversation) for conversation in conversations]
        return _OnDisk(self._shards, places, tuple(layers), token_mask)

    def _place(self, conversation: Conversation) -> _Place:
        own = self._by_id.get(conversation.id)
        if own is None:
            raise CollectionInvalid(f"{self.folder} holds no conversation {conversation.id!r}; collect it")
        if (own.messages, own.answer_ids) != (conversation.messages, conversation.answer_ids):
            raise CollectionInvalid(
                f"{self.folder} holds another conversation under the id {conversation.id!r}; collect this one"
            )
        return self._shards.places[conversation.id]

    @cached_property
    def _by_id(self) -> dict[str, Conversation]:
        return {conversation.id: conversation for conversation in self.conversations}


def open_collection(folder: Path) -> Collected:
    """The collection in a folder. Raises `CollectionInvalid` where it is none, unfinished, or does not fit together."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise CollectionInvalid(f"{folder} has no {MANIFEST}; give a folder that `probewatch collect` wrote")
    if len(manifest.shards) < manifest.n_shards:
        raise CollectionInvalid(
            f"{folder} holds {len(manifest.shards)} of {manifest.n_shards} shards; run the same "
            "`probewatch collect` again, it goes on where it stopped"
        )
    conversations = tuple(dataset.read(folder / CONVERSATIONS))
    spans = [span.id for shard in manifest.shards for span in shard.spans]
    if spans != [c.id for c in conversations] or dataset.digest(conversations) != manifest.data_digest:
        raise CollectionInvalid(
            f"{folder / CONVERSATIONS} is not what was collected (other ids or digest); collect again"
        )
    return Collected(folder, manifest, conversations, _Shards(folder, manifest))


@dataclass(frozen=True)
class _Place:
    shard: Shard
    start: int
    """Row in the shard."""
    span: Span


class _Shards:
    """The open files; each is checked when it is first asked for."""

    def __init__(self, folder: Path, manifest: Collection) -> None:
        self._folder = folder
        self._manifest = manifest
        self._open: dict[int, Any] = {}
        self.places: dict[str, _Place] = {}
        for shard in manifest.shards:
            row = 0
            for span in shard.spans:
                self.places[span.id] = _Place(shard, row, span)
                row += span.rows

    def read(self, place: _Place, layers: Sequence[int], rows: range) -> torch.Tensor:
        """[len(rows), len(layers), d] float32; `rows` counted within the conversation."""
        start, stop = place.start + rows.start, place.start + rows.stop
        file = self._file(place.shard)
        try:
            parts = [file.get_slice(layer_name(layer))[start:stop] for layer in layers]
        except (SafetensorError, IndexError) as error:
            raise self._damaged(place.shard, str(error)) from None
        found = torch.stack(parts, dim=1).float()
        if found.shape != (len(rows), len(layers), self._manifest.d_model):
            raise self._damaged(place.shard, f"rows of shape {list(found.shape)}")
        return found

    def _file(self, shard: Shard) -> Any:
        if shard.index not in self._open:
            if not intact(self._folder, shard):
                raise self._damaged(shard, "its digest is not the manifest's")
            try:
                self._open[shard.index] = safe_open(self._folder / shard.file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise self._damaged(shard, str(error)) from None
        return self._open[shard.index]

    def _damaged(self, shard: Shard, reason: str) -> CollectionInvalid:
        reason = " ".join(reason.split())[:120]
        return CollectionInvalid(
            f"{self._folder / shard.file} is truncated or damaged ({reason}); run the same `probewatch collect` "
            "again, it makes that shard anew"
        )


@dataclass(frozen=True)
class _OnDisk(Sequence[Activations]):
    _shards: _Shards
    _places: list[_Place]
    _layers: tuple[int, ...]
    _token_mask: TokenMask
    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, index: int) -> Activations: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Activations]: ...
    def __getitem__(self, index: int | slice) -> Activations | Sequence[Activations]:
        if isinstance(index, slice):
            return _OnDisk(self._shards, self._places[index], self._layers, self._token_mask)
        place = self._places[index]
        span = place.span
        wanted = kept_range(self._token_mask, span.prompt_length, span.first + span.rows)
        rows = range(wanted.start - span.first, wanted.stop - span.first)
        hidden = self._shards.read(place, self._layers, rows)
        return Activations(self._layers, hidden, wanted.start, span.prompt_length)

    def __len__(self) -> int:
        return len(self._places)


def _check_covered(folder: Path, kept: TokenMask, wanted: TokenMask) -> None:
    tail, asked = kept.prompt_tail, wanted.prompt_tail
    if wanted.generated and not kept.generated:
        lacking = "tokens of the answer"
    elif tail is not None and (asked is None or asked > tail):
        lacking = (
            f"{'all' if asked is None else asked} tokens of the prompt, of which {tail} at its end are there"
        )
    else:
        return
    raise CollectionInvalid(f"{folder} lacks {lacking}; collect again with --tokens all")
