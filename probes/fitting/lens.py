"""Lenses: rows of the unembedding as they are, and a low-rank translator that makes a layer imitate the last one."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div, layer_norm, rms_norm

from probes.errors import DataError
from probes.fitting.descent import descend
from probes.fitting.rows import Labels, TokenRows
from probes.fitting.types import LensSource, Options

MOST_ROWS = 4096
"""Tokens among tracked and others: each is a column of the tap."""
BATCH = 512


def fit_logit_lens(rows: TokenRows, _labels: Labels, options: Options, _seed: int) -> dict[str, Tensor]:
    """tracked [L, d, A], others [L, d, B], their biases and epsilon (nostalgebraist 2020)."""
    return _rows_of(_source(options, rows), rows.hidden.shape[1])


def fit_tuned_lens(rows: TokenRows, _labels: Labels, options: Options, seed: int) -> dict[str, Tensor]:
    """As the logit lens, and up, down [L, d, r], shift [L, d]: the Kullback-Leibler distance of its distribution over
    all of the vocabulary from the model's own is least (2303.08112, with a translator of rank r)."""
    source = _source(options, rows)
    if source.final is None or tuple(source.final.shape) != (len(rows.hidden), rows.hidden.shape[2]):
        found = None if source.final is None else list(source.final.shape)
        raise DataError(
            f"final hidden states {found}; give {[len(rows.hidden), rows.hidden.shape[2]]} for the same rows"
        )
    target = source.final @ source.unembedding.T + _or_zero(source.bias)
    parts = [
        _translator(rows.hidden[:, layer], target.log_softmax(-1), source, options, seed)
        for layer in range(rows.hidden.shape[1])
    ]
    up, down, shift = (torch.stack(part) for part in zip(*parts, strict=True))
    return {**_rows_of(source, len(parts)), "up": up, "down": down, "shift": shift}


def lens_logits(x: Tensor, source: LensSource) -> Tensor:
    """[n, V] of the residual x [n, d] through the final norm and the unembedding."""
    size = x.shape[-1:]
    normed = layer_norm if source.norm == "layer_norm" else rms_norm
    y = normed(x, size, eps=source.epsilon) * source.gain + _or_zero(source.norm_bias)
    return y @ source.unembedding.T + _or_zero(source.bias)


def _translator(
    x: Tensor, target: Tensor, source: LensSource, options: Options, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(up, down [d, r], shift [d]) for the rows x [n, d] of one layer and log-probabilities target [n, V]."""
    size = x.square().mean().sqrt()  # the norm takes it out again: learn in rows of size 1
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(x.shape[1], options.rank, generator=generator) * x.shape[1] ** -0.5
    parameters = [
        up.requires_grad_(),
        torch.zeros_like(up).requires_grad_(),
        torch.zeros(x.shape[1]).requires_grad_(),
    ]

    def loss(chosen: Tensor) -> Tensor:
        up, down, shift = parameters
        row = x[chosen]
        found = lens_logits(row + (row @ up) @ down.T + size * shift, source).log_softmax(-1)
        return kl_div(found, target[chosen], log_target=True, reduction="batchmean")

    drawn = np.random.default_rng(seed).permutation(len(x))[: options.max_rows]
    split = round(options.held_out * len(drawn))
    descend(parameters, loss, drawn[split:], drawn[:split], options, seed, BATCH)
    up, down, shift = (p.detach() for p in parameters)
    return up, down, size * shift


def _source(options: Options, rows: TokenRows) -> LensSource:
    source = options.lens
    if source is None:
        raise DataError("a lens needs the model's unembedding and final norm; give Options.lens")
    vocabulary, width = source.unembedding.shape
    if width != rows.hidden.shape[2]:
        raise DataError(
            f"the unembedding reads {width} dimensions, the rows have {rows.hidden.shape[2]}; give one model's"
        )
    tokens = (*source.tracked, *_others(source))
    if (
        not source.tracked
        or len(set(tokens)) != len(tokens)
        or not 0 <= min(tokens) <= max(tokens) < vocabulary
    ):
        raise DataError(
            f"tracked and other tokens overlap, are none, or lie outside 0 .. {vocabulary - 1}; mend the lists"
        )
    if len(tokens) > MOST_ROWS:
        raise DataError(
            f"{len(tokens)} tokens in the lens, at most {MOST_ROWS} can be; give `others`, a sample of the rest"
        )
    return source


def _others(source: LensSource) -> tuple[int, ...]:
    if source.others is not None:
        return source.others
    tracked = set(source.tracked)
    return tuple(token for token in range(len(source.unembedding)) if token not in tracked)


def _rows_of(source: LensSource, n_layers: int) -> dict[str, Tensor]:
    bias = source.unembedding @ _or_zero(source.norm_bias).expand(source.unembedding.shape[1]) + _or_zero(
        source.bias
    )
    found = {"epsilon": torch.tensor(source.epsilon, dtype=torch.float32)}
    for name, tokens in (("tracked", source.tracked), ("others", _others(source))):
        rows = (source.unembedding[list(tokens)] * source.gain).T  # [d, V']
        found[name] = rows.float().expand(n_layers, -1, -1).contiguous()
        found[f"{name}_bias"] = bias[list(tokens)].float()
    return found


def _or_zero(vector: Tensor | None) -> Tensor:
    return torch.zeros(()) if vector is None else vector
