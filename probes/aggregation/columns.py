"""Aggregations that treat each of the K state numbers by itself before they become one value."""

import numpy as np

from probes.aggregation.rule import Carry, Floats, log_sum
from probes.method import Aggregation


def multimax_final(states: Floats, rule: Aggregation) -> float:
    """sum_h max_t v_h, or max_t sum_h v_h (`heads`), of states (v_1..v_H)."""
    return float(states.max(0).sum() if rule.heads == "max_then_sum" else states.sum(1).max())


def multimax_running(states: Floats, carry: Carry, rule: Aggregation) -> tuple[Floats, Carry]:
    """Carries the maximum of each head, or of their sum."""
    one_by_one = states if rule.heads == "max_then_sum" else states.sum(1, keepdims=True)
    (before,) = carry or (-np.inf,)
    best = np.maximum(np.maximum.accumulate(one_by_one), before)
    return best.sum(1), (best[-1],)


def feature_max_final(states: Floats, _: Aggregation) -> float:
    """sum_k of the number of largest magnitude in column k.

    A column is w_k f_k with a feature f_k >= 0: its largest magnitude is w_k max_t f_k, whatever the sign of w_k.
    """
    return float(sum(max(column, key=lambda x: (abs(x), x)) for column in states.T.tolist()))


def feature_max_running(states: Floats, carry: Carry, _: Aggregation) -> tuple[Floats, Carry]:
    """Carries (highest, lowest) of each column."""
    high, low = carry or (-np.inf, np.inf)
    highest = np.maximum(np.maximum.accumulate(states), high)
    lowest = np.minimum(np.minimum.accumulate(states), low)
    extreme = np.where(highest >= -lowest, highest, lowest)
    return extreme.sum(1), (highest[-1], lowest[-1])


def log_odds(logits: Floats) -> Floats:
    """[n, C] -> [n]: log-odds of class 0 against the others together, z_0 - log sum_(c > 0) e^(z_c)."""
    if logits.shape[1] < 2:
        raise ValueError(
            f"state has K={logits.shape[1]} numbers a token; give a logit for each of 2 classes or more"
        )
    return logits[:, 0] - log_sum(logits[:, 1:])


def level(logits: Floats) -> Floats:
    """[n, C] -> [n]: the expected class number, sum_c c softmax(z)_c, in 0 .. C - 1."""
    shares = np.exp(logits - log_sum(logits)[:, None])
    return np.asarray(shares @ np.arange(logits.shape[1]), np.float64)


def mean_log_odds_final(states: Floats, _: Aggregation) -> float:
    """The log-odds of class 0 from each class's mean logit."""
    return float(log_odds(states.mean(0, keepdims=True))[0])


def mean_log_odds_running(states: Floats, carry: Carry, _: Aggregation) -> tuple[Floats, Carry]:
    """Carries (sum of each class, n)."""
    means, carry = _running_means(states, carry)
    return log_odds(means), carry


def mean_level_final(states: Floats, _: Aggregation) -> float:
    """The expected class number from each class's mean logit."""
    return float(level(states.mean(0, keepdims=True))[0])


def mean_level_running(states: Floats, carry: Carry, _: Aggregation) -> tuple[Floats, Carry]:
    """Carries (sum of each class, n)."""
    means, carry = _running_means(states, carry)
    return level(means), carry


def _running_means(states: Floats, carry: Carry) -> tuple[Floats, Carry]:
    total, n = carry or (0.0, 0)
    sums = total + np.cumsum(states, axis=0)
    return sums / np.arange(n + 1, n + len(states) + 1)[:, None], (sums[-1], n + len(states))
