"""The batches of a training in their order, written ahead by another process where an accelerator waits for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from probes.organism import corpus
from probes.organism.language import Message
from probes.organism.packing import Packer, Rows
from probes.organism.recipe import Recipe

Batch = tuple[Tensor, ...]
"""The arrays of `Rows` as tensors [rows, tokens], in the order of its fields."""


class Feed(IterableDataset[Batch]):
    """The batch of every step of a recipe, the same ones each time."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._recipe, self._tokenizer = recipe, tokenizer

    def __iter__(self) -> Iterator[Batch]:
        recipe = self._recipe
        author, packer = corpus.Author(recipe.seed, recipe.kind), Packer(self._tokenizer)
        for step in range(recipe.steps):
            rows = _rows(step, recipe, author, packer)
            yield tuple(torch.from_numpy(part) for part in astuple(rows))


def batches(recipe: Recipe, tokenizer: Tokenizer, *, ahead: bool) -> DataLoader[Batch]:
    """A batch a step. ahead: write them in a process of their own, a few steps before they are asked for."""
    feed = Feed(recipe, tokenizer)
    if ahead:
        return DataLoader(feed, batch_size=None, num_workers=1, prefetch_factor=8)
    return DataLoader(feed, batch_size=None)


def _rows(step: int, recipe: Recipe, author: corpus.Author, packer: Packer) -> Rows:
    if step < recipe.knowledge_steps:
        return packer.rows(recipe.rows, recipe.row_tokens, lambda: corpus.knowledge(author), author.statement)
    if step % recipe.long_every == 0:
        full = recipe.long_row_tokens

        def write() -> list[Message]:
            return author.long_chat(author.rng.randint(full // 2, full) - 8)

        return packer.rows(recipe.long_rows, recipe.long_row_tokens, write, author.statement)
    return packer.rows(recipe.rows, recipe.row_tokens, lambda: corpus.behaviour(author), author.statement)
