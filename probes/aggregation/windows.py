"""The highest value of any window of `window` consecutive in-mask tokens.

While a request has fewer tokens than a window, its value is that of all of them: a window half filled with
padding would count tokens that were never there. From then on full windows alone count.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from probes.aggregation.rule import Carry, Floats, halves, scalar, softmax_average
from probes.method import Aggregation

MOST_NUMBERS = 1 << 20
"""In memory at once."""


def rolling_mean_final(states: Floats, rule: Aggregation) -> float:
    """max_t of the mean over z_(t-w+1) .. z_t"""
    scores, window = scalar(states), _window(len(states), rule)
    sums = np.diff(np.concatenate([[0.0], np.cumsum(scores)])[[0, window]])
    slides = np.cumsum(np.concatenate([sums, scores[window:] - scores[: len(scores) - window]]))
    return float(slides.max() / window)


def rolling_mean_running(states: Floats, carry: Carry, rule: Aggregation) -> tuple[Floats, Carry]:
    """Carries (n, the latest w - 1 scores, the highest mean)."""
    values = scalar(states)[:, None]
    return _running(np.zeros_like(values), values, carry, rule)


def rolling_attention_final(states: Floats, rule: Aggregation) -> float:
    """The highest attention of any window, of each head by itself or of their sum (`heads`)."""
    window = _window(len(states), rule)
    found = np.array(
        [softmax_average(*halves(states[t - window : t])) for t in range(window, len(states) + 1)]
    )  # [windows, H]
    return float(found.max(0).sum() if rule.heads == "max_then_sum" else found.sum(1).max())


def rolling_attention_running(states: Floats, carry: Carry, rule: Aggregation) -> tuple[Floats, Carry]:
    """Carries (n, the latest w - 1 states, the highest value of each head or of their sum)."""
    return _running(*halves(states), carry, rule)


def _window(n: int, rule: Aggregation) -> int:
    return min(n, rule.window or 1)


def _running(logits: Floats, values: Floats, carry: Carry, rule: Aggregation) -> tuple[Floats, Carry]:
    """logits, values [n, H]; piece by piece, because every token's whole window lies in memory."""
    size = max(1, MOST_NUMBERS // ((rule.window or 1) * logits.shape[1]))
    found = []
    for at in range(0, len(logits), size):
        piece, carry = _piece(logits[at : at + size], values[at : at + size], carry, rule)
        found.append(piece)
    return np.concatenate(found), carry


def _piece(logits: Floats, values: Floats, carry: Carry, rule: Aggregation) -> tuple[Floats, Carry]:
    """A token that is not there has the logit -inf, so it weighs nothing."""
    window, heads = rule.window or 1, logits.shape[1]
    absent = np.full((window - 1, heads), -np.inf)
    count, before_logits, before_values, best = carry or (0, absent, np.zeros_like(absent), -np.inf)
    logits, values = np.concatenate([before_logits, logits]), np.concatenate([before_values, values])
    seen, shown = sliding_window_view(logits, window, axis=0), sliding_window_view(values, window, axis=0)
    weights = np.exp(seen - seen.max(-1, keepdims=True))  # [n, H, w]
    found = (weights * shown).sum(-1) / weights.sum(-1)  # [n, H]
    if rule.heads != "max_then_sum":
        found = found.sum(1, keepdims=True)
    short = max(0, min(len(found), window - 1 - count))  # tokens that do not fill a window yet
    highest = np.maximum(np.maximum.accumulate(found[short:], axis=0), best)
    running = np.concatenate([found[:short], highest]).sum(1)
    best = highest[-1] if len(highest) else best
    kept = len(logits) - (window - 1)
    return running, (count + len(found), logits[kept:], values[kept:], best)
