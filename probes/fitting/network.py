"""The MLP: one hidden layer on standardised token rows, binary cross-entropy, classes and conversations balanced."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from probes.fitting.descent import descend, held_out
from probes.fitting.linear import rows_of, standardisation
from probes.fitting.rows import Labels, TokenRows
from probes.fitting.types import Options

ROWS_A_CONVERSATION = 16
"""Times `Options.batch`: token rows in a step."""


def fit_mlp(rows: TokenRows, labels: Labels, options: Options, seed: int) -> dict[str, Tensor]:
    """weight [L, d, H], hidden_bias [H], output [H] and bias [], H = `Options.hidden`."""
    mean, scale = standardisation(rows_of(rows, labels, Options(max_rows=options.max_rows)))
    x = (rows.hidden.flatten(1) - torch.from_numpy(mean).float()) / torch.from_numpy(scale).float()
    y = torch.from_numpy(labels[rows.owner]).float()
    weights = torch.from_numpy(rows.row_weights(labels)).float()
    weights = weights / weights.mean()
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(x.shape[1], options.hidden, generator=generator) * (2 / x.shape[1]) ** 0.5
    second = torch.randn(options.hidden, generator=generator) * options.hidden**-0.5
    parameters = [p.requires_grad_() for p in (first, torch.zeros(options.hidden), second, torch.zeros(()))]

    def loss(chosen: Tensor) -> Tensor:
        weight, hidden_bias, output, bias = parameters
        logits = (x[chosen] @ weight + hidden_bias).relu() @ output + bias
        return binary_cross_entropy_with_logits(logits, y[chosen], weights[chosen])

    train, held = (
        np.flatnonzero(np.isin(rows.owner, side)) for side in held_out(rows, labels, options.held_out, seed)
    )
    drawn = np.random.default_rng(seed).permutation(train)[: options.max_rows]
    descend(parameters, loss, drawn, held, options, seed, ROWS_A_CONVERSATION * options.batch)
    weight, hidden_bias, output, bias = (p.detach().double() for p in parameters)
    folded = weight / torch.from_numpy(scale).unsqueeze(1)
    return {
        "weight": folded.reshape(rows.hidden.shape[1], -1, options.hidden).float(),
        "hidden_bias": (hidden_bias - torch.from_numpy(mean) @ folded).float(),
        "output": output.float(),
        "bias": bias.float(),
    }
