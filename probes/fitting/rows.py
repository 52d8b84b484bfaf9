"""Token rows of conversations: what every fit reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.errors import DataError
from probes.hf import Activations
from probes.manifest import TokenMask

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
"""[c] one a conversation: 0 and 1, or class numbers"""


@dataclass(frozen=True)
class TokenRows:
    """The in-mask token rows of `c` conversations one after the other. n: rows, L: layers, d: d_model."""

    hidden: Tensor
    """[n, L, d] float32"""
    offsets: NDArray[np.int64]
    """[c + 1] conversation i holds the rows offsets[i] .. offsets[i + 1] - 1, one at least"""
    groups: tuple[str, ...] = ()
    """[c] what must not be on both sides of a split; empty: every conversation by itself"""
    generated: NDArray[np.bool_] | None = None
    """[n] which rows are answer tokens; None: all"""
    pairs: NDArray[np.int64] | None = None
    """[p, 2] conversations that differ in the concept alone; None: one of either class from each group"""

    def __post_init__(self) -> None:
        counts = np.diff(self.offsets)
        if self.hidden.ndim != 3 or self.offsets[0] != 0 or self.offsets[-1] != len(self.hidden):
            raise DataError(
                f"hidden {list(self.hidden.shape)} with offsets to {self.offsets[-1]}; give [n, L, d] and 0 .. n"
            )
        if (counts < 1).any():
            empty = int(np.flatnonzero(counts < 1)[0])
            raise DataError(f"conversation {empty} has no token in the mask; leave it out or widen the mask")

    @property
    def conversations(self) -> int:
        """c"""
        return len(self.offsets) - 1

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """[n] the conversation of each row"""
        return np.repeat(np.arange(self.conversations), np.diff(self.offsets))

    @cached_property
    def flat(self) -> Floats:
        """[n, L * d] float64"""
        return np.asarray(self.hidden.flatten(1).double().numpy(), np.float64)

    @cached_property
    def means(self) -> Floats:
        """[c, L * d] the mean row of each conversation"""
        sums = np.add.reduceat(self.flat, self.offsets[:-1], axis=0)
        return np.asarray(sums / np.diff(self.offsets)[:, None], np.float64)

    def row_weights(self, labels: Labels) -> Floats:
        """[n] a conversation weighs the same however long it is, and so does every class; mean 1 over conversations."""
        per_class = np.bincount(labels)
        share = self.conversations / (len(np.unique(labels)) * per_class[labels])
        return np.asarray((share / np.diff(self.offsets))[self.owner], np.float64)


def token_rows(
    found: Sequence[Activations],
    token_mask: TokenMask,
    layers: Sequence[int],
    groups: Sequence[str] = (),
    pairs: NDArray[np.int64] | None = None,
) -> TokenRows:
    """The rows of `layers` that the mask keeps. `DataError` for a conversation without any, and for NaN."""
    kept = [a.mask(token_mask) for a in found]
    hidden = torch.cat([a.at(layers)[torch.from_numpy(k)] for a, k in zip(found, kept, strict=True)]).float()
    bad = int((~torch.isfinite(hidden)).flatten(1).any(1).sum())
    if bad:
        raise DataError(f"{bad} token rows hold NaN or infinity; collect them again")
    generated = np.concatenate(
        [(a.positions >= a.prompt_length)[k] for a, k in zip(found, kept, strict=True)]
    )
    offsets = np.cumsum([0, *(int(k.sum()) for k in kept)])
    return TokenRows(hidden, offsets, tuple(groups), generated, pairs)
