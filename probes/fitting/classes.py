"""Several classes: multinomial logistic regression, and the proportional odds model for levels in order."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from probes.fitting.linear import rows_of, standardisation
from probes.fitting.rows import Floats, Labels, TokenRows
from probes.fitting.types import Options

STEPS = 200


def fit_log_odds(rows: TokenRows, labels: Labels, options: Options, _seed: int) -> dict[str, Tensor]:
    """weight [L, d, C] and bias [C], column 0 the class `Options.positive_class`, the others behind it in order."""
    found = _multinomial(rows, labels, options)
    n = len(found["bias"])
    first = min(options.positive_class, n - 1)
    order = [first, *(c for c in range(n) if c != first)]
    return {"weight": found["weight"][..., order], "bias": found["bias"][order]}


def fit_level(rows: TokenRows, labels: Labels, options: Options, _seed: int) -> dict[str, Tensor]:
    """weight [L, d, C] and bias [C], column c for label c."""
    return _multinomial(rows, labels, options)


def _multinomial(rows: TokenRows, labels: Labels, options: Options) -> dict[str, Tensor]:
    from sklearn.linear_model import LogisticRegression

    found = rows_of(rows, labels, options)
    mean, scale = standardisation(found)
    model = LogisticRegression(C=options.regularisation, max_iter=300, tol=1e-3)
    model.fit((found.x - mean) / scale, found.y, sample_weight=found.weight)
    coefficients, intercept = model.coef_, model.intercept_
    if len(coefficients) == 1:  # two classes are given as one logit
        coefficients, intercept = (
            np.concatenate([-coefficients / 2, coefficients / 2]),
            np.array([-1, 1]) * intercept / 2,
        )
    folded = coefficients / scale
    return {
        "weight": _columns(folded.T, rows),
        "bias": torch.from_numpy(intercept - folded @ mean).float(),
    }


def fit_ordinal(rows: TokenRows, labels: Labels, options: Options, _seed: int) -> dict[str, Tensor]:
    """weight [L, d] and cuts [C - 1]: P(level > j) = sigmoid(u - cut_j), penalty |w|^2 / (2 C), by L-BFGS."""
    found = rows_of(rows, labels, options)
    mean, scale = standardisation(found)
    x, y = torch.from_numpy((found.x - mean) / scale), torch.from_numpy(found.y)
    weights, n_cuts = torch.from_numpy(found.weight), int(found.y.max())
    weight = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    steps = torch.zeros(n_cuts, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, steps], max_iter=STEPS, line_search_fn="strong_wolfe")

    def cuts() -> Tensor:
        return torch.cat([steps[:1], steps[:1] + softplus(steps[1:]).cumsum(0)])

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (weights * _surprise(x @ weight, cuts(), y)).sum() + weight.square().sum() / (
            2 * options.regularisation
        )
        loss.backward()
        return loss

    optimiser.step(closure)
    folded = weight.detach().numpy() / scale
    return {
        "weight": _columns(folded[:, None], rows)[..., 0],
        "cuts": (cuts().detach() + float(folded @ mean)).float(),
    }


def _surprise(u: Tensor, cuts: Tensor, y: Tensor) -> Tensor:
    """[n] -log P(y): log sigmoid(u - cut_(y-1)) less what lies above cut_y, in logarithms."""
    edge = cuts.new_tensor([torch.inf])
    above = u - torch.cat([-edge, cuts])[y]  # P(level >= y)
    beyond = u - torch.cat([cuts, edge])[y]  # P(level > y)
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a))
    return -(logsigmoid(above) + logsigmoid(-beyond) + torch.log1p(-torch.exp(beyond - above)))


def _columns(weight: Floats, rows: TokenRows) -> Tensor:
    return torch.from_numpy(weight.reshape(rows.hidden.shape[1], -1, weight.shape[1])).float()
