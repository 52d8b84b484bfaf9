"""Where activations come from: a model that is run now, or a folder that `probewatch collect` has written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from probes import dataset, hf
from probes.collected import open_collection
from probes.dataset import Conversation
from probes.errors import DataError
from probes.hf import Activations
from probes.identity import ModelIdentity
from probes.manifest import TokenMask


class Source(Protocol):
    """Activations of conversations."""

    @property
    def identity(self) -> ModelIdentity:
        """The model they are of."""

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks that can be asked for."""

    def activations(
        self, conversations: Sequence[Conversation], layers: Sequence[int], token_mask: TokenMask
    ) -> Sequence[Activations]:
        """The residual stream after each of `layers`, at least over the tokens that the mask counts."""


@dataclass(frozen=True)
class FromModel:
    """Activations computed by Hugging Face transformers, all held in memory."""

    loaded: hf.LoadedModel

    @property
    def identity(self) -> ModelIdentity:
        """The model they are of."""
        return self.loaded.identity

    @property
    def layers(self) -> tuple[int, ...]:
        """All blocks but the last, whose hidden state is post-norm in Hugging Face."""
        return tuple(range(self.identity.n_layers - 1))

    def activations(
        self, conversations: Sequence[Conversation], layers: Sequence[int], token_mask: TokenMask
    ) -> Sequence[Activations]:
        """See `Source`."""
        return hf.activations(self.loaded, conversations, list(layers), prompt_tail=token_mask.prompt_tail)


@dataclass(frozen=True)
class Sources:
    """What a command was given to take activations from: a model, a collected folder, or the data is one."""

    model: Path | None
    collected: Path | None

    def open(self, data: Path | None) -> tuple[Source, list[Conversation]]:
        """Where the activations of `data` come from, and its conversations.

        `data` is a JSONL or a collected folder. A JSONL beside a collected folder chooses among its conversations,
        and says their labels and splits. Raises `DataError` where something is missing.
        """
        folder = data if data is not None and data.is_dir() else self.collected
        if folder is None:
            if self.model is None or data is None:
                raise DataError(
                    "no activations: give --model and a JSONL, or --activations with a folder of `probewatch collect`"
                )
            return self._from_model, dataset.read(data)
        if self.model is not None:
            raise DataError(f"--model {self.model} is of no use beside {folder}; leave it out")
        collected = open_collection(folder)
        jsonl = None if data == folder else data
        return collected, list(collected.conversations) if jsonl is None else dataset.read(jsonl)

    @cached_property
    def _from_model(self) -> FromModel:
        assert self.model is not None
        return FromModel(hf.load(self.model))
