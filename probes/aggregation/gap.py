"""Whether what is asserted differs from what was believed.

States are (belief, assertion), both log-odds of the same statement. The first `belief_tokens` in-mask tokens (the
end of the question) tell the belief, those after them what is asserted; each is a mean.
"""

import numpy as np

from probes.aggregation.rule import Carry, Floats
from probes.method import Aggregation


def differ(belief: Floats, assertion: Floats) -> Floats:
    """Log-odds that two independent statements with these log-odds differ.

    log((p (1-q) + (1-p) q) / (p q + (1-p) (1-q))) = log((e^b + e^a) / (1 + e^(a + b))); 0 where either is unknown (0).
    """
    return np.asarray(np.logaddexp(belief, assertion) - np.logaddexp(0.0, belief + assertion), np.float64)


def gap_final(states: Floats, rule: Aggregation) -> float:
    """`differ` of the two means; 0 before anything is asserted."""
    k, (belief, assertion) = rule.belief_tokens or 1, _both(states)
    asserted = assertion[k:]
    return float(differ(belief[:k].mean(), np.asarray(asserted.mean() if len(asserted) else 0.0)))


def gap_running(states: Floats, carry: Carry, rule: Aggregation) -> tuple[Floats, Carry]:
    """Carries (n, sum of the belief, sum of what is asserted)."""
    k, (belief, assertion) = rule.belief_tokens or 1, _both(states)
    n, believed, asserted = carry or (0, 0.0, 0.0)
    counts = np.arange(n + 1, n + len(states) + 1)
    early = counts <= k
    beliefs = believed + np.cumsum(np.where(early, belief, 0.0))
    assertions = asserted + np.cumsum(np.where(early, 0.0, assertion))
    values = differ(beliefs / np.minimum(counts, k), assertions / np.maximum(counts - k, 1))
    return values, (n + len(states), beliefs[-1], assertions[-1])


def _both(states: Floats) -> tuple[Floats, Floats]:
    if states.shape[1] != 2:
        raise ValueError(
            f"state has K={states.shape[1]} numbers a token; this aggregation takes belief and assertion"
        )
    return states[:, 0], states[:, 1]
