"""A concept as a direction: its class mean less the grand mean of all classes, at each layer by itself.

With several concepts (emotions), fit one at a time: label 1 is the concept, the other labels are the others.
"""

import numpy as np
import torch
from torch import Tensor

from probes.errors import DataError
from probes.fitting.rows import Labels, TokenRows
from probes.fitting.types import Options


def fit_concept(rows: TokenRows, labels: Labels, options: Options, _seed: int) -> dict[str, Tensor]:
    """direction [L, d], of the class `Options.positive_class`; every class weighs the same in the grand mean."""
    means = np.stack([rows.means[labels == c].mean(0) for c in np.unique(labels)])
    positive = min(options.positive_class, len(means) - 1)
    direction = torch.from_numpy((means[positive] - means.mean(0)).reshape(rows.hidden.shape[1], -1)).float()
    if not bool((direction.norm(dim=-1) > 0).all()):
        raise DataError("the class means are equal at some layer; leave that layer out")
    return {"direction": direction}
