"""The aggregations of `probes.aggregation` in a form that gradients pass through.

B: conversations, T: tokens of the longest, K: state numbers a token. Tokens beyond a conversation's length are not
there: they weigh nothing and are no maximum.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from probes.method import Aggregation

Pooling = Callable[[Tensor, Tensor, Aggregation], Tensor]
"""states [B, T, K], lengths [B] -> values [B]"""


def _there(states: Tensor, lengths: Tensor) -> Tensor:
    return torch.arange(states.shape[1]).unsqueeze(0) < lengths.unsqueeze(1)  # [B, T]


def _only(states: Tensor, lengths: Tensor) -> Tensor:
    """[B, T, K], -inf where no token is."""
    return states.masked_fill(~_there(states, lengths).unsqueeze(-1), -torch.inf)


def _weighted(logits: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """[B, T, H] and [B, T, H] -> [B, H]"""
    return (_only(logits, lengths).softmax(dim=1) * values).sum(dim=1)


def mean(states: Tensor, lengths: Tensor, _: Aggregation) -> Tensor:
    """sum_t z_t / n"""
    return _weighted(torch.zeros_like(states), states, lengths)[:, 0]


def maximum(states: Tensor, lengths: Tensor, _: Aggregation) -> Tensor:
    """max_t z_t"""
    return _only(states, lengths)[..., 0].amax(dim=1)


def last(states: Tensor, lengths: Tensor, _: Aggregation) -> Tensor:
    """z_n"""
    return states[torch.arange(len(states)), lengths - 1, 0]


def ema(states: Tensor, lengths: Tensor, rule: Aggregation) -> Tensor:
    """sum_t a (1-a)^(n-t) z_t, the first token with the remaining weight."""
    alpha, at = rule.alpha or 1.0, torch.arange(states.shape[1]).unsqueeze(0)
    back = (lengths.unsqueeze(1) - 1 - at).clamp_min(0)
    first = torch.where(at == 0, states.new_tensor(1.0), states.new_tensor(alpha))
    weights = states.new_tensor(1.0 - alpha) ** back * first * _there(states, lengths)
    return (weights * states[..., 0]).sum(dim=1)


def cusum(states: Tensor, lengths: Tensor, rule: Aggregation) -> Tensor:
    """The largest sum of z_t - k over tokens at the end, the empty one included."""
    steps = (states[..., 0] - (rule.reference or 0.0)) * _there(states, lengths)
    sums = steps.flip(1).cumsum(dim=1)  # padding adds 0 in front
    return sums.amax(dim=1).clamp_min(0.0)


def softmax(states: Tensor, lengths: Tensor, rule: Aggregation) -> Tensor:
    """sum_t z_t softmax_t(z / T)"""
    return _weighted(states / (rule.temperature or 1.0), states, lengths)[:, 0]


def attention(states: Tensor, lengths: Tensor, _: Aggregation) -> Tensor:
    """sum_h sum_t softmax_t(q_h) v_h"""
    logits, values = states.chunk(2, dim=-1)
    return _weighted(logits, values, lengths).sum(dim=1)


def multimax(states: Tensor, lengths: Tensor, rule: Aggregation) -> Tensor:
    """sum_h max_t v_h, or max_t sum_h v_h"""
    heads = states if rule.heads == "max_then_sum" else states.sum(-1, keepdim=True)
    return _only(heads, lengths).amax(dim=1).sum(dim=1)


def rolling_mean(states: Tensor, lengths: Tensor, rule: Aggregation) -> Tensor:
    """The highest mean of any window."""
    return _rolling(torch.zeros_like(states), states, lengths, rule)


def rolling_attention(states: Tensor, lengths: Tensor, rule: Aggregation) -> Tensor:
    """The highest attention of any window, of each head or of their sum."""
    logits, values = states.chunk(2, dim=-1)
    return _rolling(logits, values, lengths, rule)


def _rolling(logits: Tensor, values: Tensor, lengths: Tensor, rule: Aggregation) -> Tensor:
    window = rule.window or 1
    pad = (0, 0, window - 1, 0)  # in front of the tokens
    logits = torch.nn.functional.pad(_only(logits, lengths), pad, value=-torch.inf).unfold(1, window, 1)
    values = torch.nn.functional.pad(values, pad).unfold(
        1, window, 1
    )  # [B, T, H, w], a window ends at each token
    at, n = torch.arange(logits.shape[1]).unsqueeze(0), lengths.unsqueeze(1)
    whole = (at < n) & ((at >= window - 1) | (at == n - 1))  # a short conversation is one window
    logits = torch.where(
        whole[..., None, None], logits, 0.0
    )  # softmax of nothing is NaN, and so is its gradient
    found = (logits.softmax(-1) * values).sum(-1)  # [B, T, H]
    if rule.heads != "max_then_sum":
        found = found.sum(-1, keepdim=True)
    return found.masked_fill(~whole.unsqueeze(-1), -torch.inf).amax(dim=1).sum(dim=1)


POOLINGS: Final[Mapping[str, Pooling]] = MappingProxyType(
    {
        "mean": mean,
        "max": maximum,
        "last": last,
        "ema": ema,
        "cusum": cusum,
        "softmax": softmax,
        "attention": attention,
        "multimax": multimax,
        "rolling_mean": rolling_mean,
        "rolling_attention": rolling_attention,
    }
)
