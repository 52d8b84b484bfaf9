"""AdamW with early stopping on held-out groups: what every fit by gradient shares."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probes.fitting.rows import Labels, TokenRows
from probes.fitting.types import Options

Loss = Callable[[Tensor], Tensor]
"""indices of what is learnt from [b] -> mean loss []"""


def held_out(
    rows: TokenRows, labels: Labels, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(conversations to learn from, conversations to stop by), whole groups on either side.

    Nothing is held out where either side would lack a class.
    """
    everything = np.arange(rows.conversations)
    groups = np.asarray(rows.groups) if rows.groups else everything
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    held = np.isin(groups, names[: round(share * len(names))])
    classes = set(labels.tolist())
    if set(labels[held].tolist()) != classes or set(labels[~held].tolist()) != classes:
        return everything, everything[:0]
    return everything[~held], everything[held]


def descend(
    parameters: Sequence[Tensor],
    loss: Loss,
    train: NDArray[np.int64],
    held: NDArray[np.int64],
    options: Options,
    seed: int,
    batch: int,
) -> None:
    """Minimise `loss` over `train` in place, and keep the parameters that were best on `held` (empty: the last)."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
    learnt, judged = torch.from_numpy(train), torch.from_numpy(held)
    best, kept, waited = float("inf"), [p.detach().clone() for p in parameters], 0
    for _ in range(options.epochs):
        for chosen in learnt[torch.randperm(len(learnt), generator=generator)].split(batch):
            optimiser.zero_grad()
            loss(chosen).backward()
            optimiser.step()
        if not len(judged):
            continue
        with torch.no_grad():
            found = float(loss(judged))
        if found < best:
            best, kept, waited = found, [p.detach().clone() for p in parameters], 0
        elif (waited := waited + 1) >= options.patience:
            break
    if len(judged):
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def balanced(labels: Labels) -> Tensor:
    """[c] float32 weights with which every class weighs the same, their mean 1."""
    counts = np.bincount(labels)
    return torch.from_numpy(len(labels) / (np.count_nonzero(counts) * counts[labels])).float()
