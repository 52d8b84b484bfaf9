"""SAE features: an encoder (given, or trained here), maxima over each conversation, a sparse logistic regression.

An L1 penalty picks `Options.features` of them, an L2 fit on those gives their weights.
"""

import numpy as np
import torch
from torch import Tensor

from probes.errors import DataError
from probes.fitting.descent import descend
from probes.fitting.rows import Floats, Labels, TokenRows
from probes.fitting.types import Options, SaeSource

SPARSITY = 0.03
"""Weight of the L1 norm of the features beside the reconstruction error, both a row's mean over dimensions."""
BATCH = 256


def fit_sae(rows: TokenRows, labels: Labels, options: Options, seed: int) -> dict[str, Tensor]:
    """encoder [L, d, F], encoder_bias, threshold and weight [F], bias []; F is `Options.features` at most."""
    source = options.sae or train_sae(rows, options, seed)
    activations = torch.einsum("nld,ldf->nf", rows.hidden, source.encoder) + source.encoder_bias
    features = torch.where(activations > source.threshold, activations, 0.0).double().numpy()
    maxima = np.maximum.reduceat(features, rows.offsets[:-1], axis=0)  # [c, F]
    kept = _chosen(maxima, labels, options)
    weight, bias = _weights(maxima[:, kept], labels, options)
    index = torch.from_numpy(kept)
    return {
        "encoder": source.encoder[..., index].contiguous(),
        "encoder_bias": source.encoder_bias[index],
        "threshold": source.threshold[index],
        "weight": torch.from_numpy(weight).float(),
        "bias": torch.tensor(bias, dtype=torch.float32),
    }


def train_sae(rows: TokenRows, options: Options, seed: int) -> SaeSource:
    """A ReLU autoencoder with `Options.dictionary` features and unit decoder rows, on standardised token rows."""
    flat = rows.hidden.flatten(1)
    mean, scale = flat.mean(0), flat.std(0)
    scale = torch.where(scale > 0, scale, 1.0)
    x = (flat - mean) / scale
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(x.shape[1], options.dictionary, generator=generator)
    start = start / start.norm(dim=0)
    parameters = [
        p.requires_grad_() for p in (start.clone(), torch.zeros(options.dictionary), start.T.clone())
    ]

    def loss(chosen: Tensor) -> Tensor:
        encoder, bias, decoder = parameters
        features = (x[chosen] @ encoder + bias).relu()
        unit = decoder / decoder.norm(dim=1, keepdim=True)
        error: Tensor = (features @ unit - x[chosen]).square().mean()
        sparse: Tensor = features.sum(1).mean() / x.shape[1] ** 0.5
        return error + SPARSITY * sparse

    drawn = np.random.default_rng(seed).permutation(len(x))[: options.max_rows]
    descend(parameters, loss, drawn, drawn[:0], options, seed, BATCH)
    encoder, bias, _ = (p.detach() for p in parameters)
    folded = encoder / scale.unsqueeze(1)
    shaped = folded.reshape(*rows.hidden.shape[1:], -1)
    return SaeSource(shaped, bias - mean @ folded, torch.zeros(options.dictionary))


def _chosen(maxima: Floats, labels: Labels, options: Options) -> np.ndarray:
    """Indices of the features with the largest L1 weights."""
    from sklearn.linear_model import LogisticRegression

    deviation = maxima.std(0)
    alive = np.flatnonzero(deviation > 0)
    if not len(alive):
        raise DataError(
            "no feature of the SAE fires on these conversations; give another SAE or other layers"
        )
    model = LogisticRegression(
        C=options.regularisation,
        l1_ratio=1.0,
        solver="saga",
        max_iter=2000,
        tol=1e-3,
        class_weight="balanced",
        random_state=0,
    )
    model.fit((maxima[:, alive] - maxima[:, alive].mean(0)) / deviation[alive], labels)
    order = np.argsort(-np.abs(model.coef_[0]), kind="stable")[: options.features]
    return np.sort(alive[order])


def _weights(maxima: Floats, labels: Labels, options: Options) -> tuple[Floats, float]:
    from sklearn.linear_model import LogisticRegression

    scale = maxima.std(0)
    model = LogisticRegression(C=options.regularisation, max_iter=1000, class_weight="balanced")
    model.fit(maxima / scale, labels)
    return np.asarray(model.coef_[0] / scale, np.float64), float(model.intercept_[0])
