"""Heads trained through their aggregation: the loss sees one value a conversation, as the server will.

Binary cross-entropy of that value as a logit, classes balanced, on standardised rows; the scaling is folded away.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from probes.errors import DataError
from probes.fitting.descent import balanced, descend, held_out
from probes.fitting.linear import class_means, rows_of, standardisation
from probes.fitting.pooling import POOLINGS
from probes.fitting.rows import Floats, Labels, TokenRows
from probes.fitting.types import Fit, Options
from probes.kinds import fold_scaling
from probes.method import Aggregation


@dataclass(frozen=True)
class Padded:
    """Standardised token rows of conversations, taken out in batches."""

    x: Tensor
    """[n, L * d] float32"""
    starts: Tensor
    """[c]"""
    lengths: Tensor
    """[c]"""

    def batch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """(rows [B, T, L * d], lengths [B]); rows beyond a length repeat its last one."""
        lengths = self.lengths[chosen]
        steps = torch.minimum(torch.arange(int(lengths.max())), lengths.unsqueeze(1) - 1)
        return self.x[self.starts[chosen].unsqueeze(1) + steps], lengths


def padded(rows: TokenRows, mean: Floats, scale: Floats) -> Padded:
    """The rows as ((x - mean) / scale)."""
    x = (rows.hidden.flatten(1) - torch.from_numpy(mean).float()) / torch.from_numpy(scale).float()
    return Padded(x, torch.from_numpy(rows.offsets[:-1]), torch.from_numpy(np.diff(rows.offsets)))


@dataclass(frozen=True)
class _Learnt:
    """Parameters in the units of the residual stream."""

    columns: Tensor
    """[L, d, K]"""
    bias: Tensor
    """[], of the value columns together"""


def _learn(
    rows: TokenRows, labels: Labels, options: Options, seed: int, rule: Aggregation, queries: int, values: int
) -> _Learnt:
    """`queries` columns that only weigh, then `values` columns whose pooled value is the logit."""
    plain = rows_of(rows, labels, Options(max_rows=options.max_rows))
    mean, scale = standardisation(plain)
    data, y = padded(rows, mean, scale), torch.from_numpy(labels).float()
    weights, pool = balanced(labels), POOLINGS[rule.method]
    positive, negative = class_means(plain)
    apart = torch.from_numpy((positive - negative) / scale).float()  # where the values start
    generator = torch.Generator().manual_seed(seed)
    weight = 0.1 * torch.randn(len(apart), queries + values, generator=generator) / len(apart) ** 0.5
    weight[:, queries:] += (apart / apart.norm().clamp_min(1e-12) / values).unsqueeze(1)
    bias = torch.zeros(())
    parameters = [weight.requires_grad_(), bias.requires_grad_()]

    def loss(chosen: Tensor) -> Tensor:
        x, lengths = data.batch(chosen)
        states = x @ weight  # [B, T, K]
        states = torch.cat([states[..., :queries], states[..., queries:] + bias / values], dim=-1)
        logits = pool(states, lengths, rule)
        return binary_cross_entropy_with_logits(logits, y[chosen], weights[chosen])

    train, held = held_out(rows, labels, options.held_out, seed)
    descend(parameters, loss, train, held, options, seed, options.batch)
    return _folded(weight, bias, mean, scale, queries, rows.hidden.shape[1])


def _folded(
    weight: Tensor, bias: Tensor, mean: Floats, scale: Floats, queries: int, n_layers: int
) -> _Learnt:
    """A query's constant falls out of the softmax, so the values alone carry a bias."""
    found = weight.detach().double().numpy()
    folded = found / scale[:, None]
    _, shifted = fold_scaling(found[:, queries:].sum(1), float(bias.detach()), mean, scale)
    columns = torch.from_numpy(folded.reshape(n_layers, -1, folded.shape[1])).float()
    return _Learnt(columns, torch.tensor(shifted, dtype=torch.float32))


def _rule(options: Options, default: Aggregation, allowed: tuple[str, ...]) -> Aggregation:
    rule = options.aggregation or default
    if rule.method not in allowed:
        raise DataError(
            f"aggregation {rule.method!r} cannot be trained through here; use one of: {', '.join(allowed)}"
        )
    return rule


ONE_SCORE = ("mean", "max", "last", "ema", "cusum", "softmax", "rolling_mean")


def _affine(
    default: Aggregation, rows: TokenRows, labels: Labels, options: Options, seed: int
) -> dict[str, Tensor]:
    found = _learn(rows, labels, options, seed, _rule(options, default, ONE_SCORE), queries=0, values=1)
    return {"weight": found.columns[..., 0], "bias": found.bias}


def affine(default: Aggregation) -> Fit:
    """One score a token, trained through `Options.aggregation` or else `default` (softmax-weighted: 2502.03407)."""
    return partial(_affine, default)


def _multimax(
    default: Aggregation, rows: TokenRows, labels: Labels, options: Options, seed: int
) -> dict[str, Tensor]:
    rule = _rule(options, default, ("multimax",))
    found = _learn(rows, labels, options, seed, rule, queries=0, values=options.heads)
    return {"value": found.columns, "bias": found.bias}


def multimax(default: Aggregation) -> Fit:
    """`Options.heads` heads with a hard maximum over tokens (2601.11516)."""
    return partial(_multimax, default)


def _attention(
    default: Aggregation, rows: TokenRows, labels: Labels, options: Options, seed: int
) -> dict[str, Tensor]:
    rule = _rule(options, default, ("attention", "rolling_attention"))
    found = _learn(rows, labels, options, seed, rule, queries=options.heads, values=options.heads)
    query, value = found.columns.split(options.heads, dim=-1)
    return {"query": query, "value": value, "bias": found.bias}


def attention(default: Aggregation) -> Fit:
    """`Options.heads` attention heads over all tokens, or over windows (2506.10805, 2601.11516)."""
    return partial(_attention, default)
