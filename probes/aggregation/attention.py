"""Averages whose weights are a softmax over the tokens.

A running softmax keeps, for each head, log Z = log sum e^a and, of the values' positive and negative parts,
log N+ and log N-: everything stays in logarithms, so no logit is too large and none too small.
"""

import numpy as np

from probes.aggregation.rule import Carry, Floats, halves, scalar, softmax_average
from probes.method import Aggregation


def softmax_final(states: Floats, rule: Aggregation) -> float:
    """sum_t z_t softmax_t(z / T), T the temperature."""
    scores = scalar(states)
    return float(softmax_average(scores[:, None] / (rule.temperature or 1.0), scores[:, None])[0])


def softmax_running(states: Floats, carry: Carry, rule: Aggregation) -> tuple[Floats, Carry]:
    """Carries (log Z, log N+, log N-)."""
    scores = scalar(states)[:, None]
    averages, carry = _running_averages(scores / (rule.temperature or 1.0), scores, carry)
    return averages[:, 0], carry


def attention_final(states: Floats, _: Aggregation) -> float:
    """sum_h sum_t softmax_t(q_h) v_h of states (q_1..q_H, v_1..v_H)."""
    logits, values = halves(states)
    return float(softmax_average(logits, values).sum())


def attention_running(states: Floats, carry: Carry, _: Aggregation) -> tuple[Floats, Carry]:
    """Carries (log Z, log N+, log N-), each [H]."""
    averages, carry = _running_averages(*halves(states), carry)
    return averages.sum(1), carry


def _running_averages(logits: Floats, values: Floats, carry: Carry) -> tuple[Floats, Carry]:
    empty = np.full(logits.shape[1], -np.inf)  # log 0
    before = carry or (empty, empty, empty)
    with np.errstate(divide="ignore", invalid="ignore"):  # log 0 is meant; infinite states give NaN
        parts = logits, logits + np.log(np.maximum(values, 0.0)), logits + np.log(np.maximum(-values, 0.0))
        log_z, log_up, log_down = (
            np.logaddexp.accumulate(np.concatenate([old[None], new]), axis=0)[1:]
            for old, new in zip(before, parts, strict=True)
        )
        averages = np.exp(log_up - log_z) - np.exp(log_down - log_z)
    return averages, (log_z[-1], log_up[-1], log_down[-1])
