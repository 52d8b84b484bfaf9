"""Belief at the question and assertion in the answer, two logistic regressions on rows of either kind."""

import numpy as np
import torch
from torch import Tensor

from probes.errors import DataError
from probes.fitting.linear import fit_logistic, rows_of
from probes.fitting.rows import Labels, TokenRows
from probes.fitting.types import Options


def fit_gap(rows: TokenRows, labels: Labels, options: Options, _seed: int) -> dict[str, Tensor]:
    """weight [L, d, 2] and bias [2]. labels: 2 * believed + asserted of one statement.

    Belief is read from prompt rows, what is asserted from answer rows. `DataError` where either is missing, or
    always the same.
    """
    if rows.generated is None or rows.generated.all() or not rows.generated.any():
        raise DataError(
            "a gap needs prompt rows and answer rows; use a mask with last_k prompt tokens and the answer"
        )
    fits = []
    for name, inside, y in (
        ("believed", ~rows.generated, labels // 2),
        ("asserted", rows.generated, labels % 2),
    ):
        if len(np.unique(y)) < 2:
            raise DataError(f"{name} is {y[0]} in every conversation; give both")
        counts = np.add.reduceat(inside.astype(np.int64), rows.offsets[:-1])
        if not counts.all():
            raise DataError(
                f"conversation {int(np.flatnonzero(counts == 0)[0])} has no row to read what is {name} from"
            )
        part = TokenRows(rows.hidden[torch.from_numpy(inside)], np.cumsum([0, *counts]), rows.groups)
        fits.append(fit_logistic(rows_of(part, y, options), options.regularisation))
    weight = np.stack([weight for weight, _ in fits], axis=1)
    return {
        "weight": torch.from_numpy(weight.reshape(rows.hidden.shape[1], -1, 2)).float(),
        "bias": torch.tensor([bias for _, bias in fits], dtype=torch.float32),
    }
