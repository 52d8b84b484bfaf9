"""Thresholds from benign traffic, and what they really flag on a second benign set.

The threshold for a false-positive rate a is the k-th smallest of n benign scores, k = ceil((n + 1)(1 - a)):
then a further exchangeable benign score is strictly above it with probability at most a, whatever its
distribution (the order-statistic bound of split conformal prediction). It needs k <= n, that is n >= 1/a -
1.

Where benign traffic has strata, each gives a threshold by itself and the highest is deployed. The rate is then
at most a in every stratum, so in any mix of them too.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from probes.errors import CalibrationError
from probes.manifest import Calibration, ProbeManifest, Quantiles, default_action, revise

TOLD: Final = 5
"""Strata that a refusal names."""


def required_n(fpr: float) -> int:
    """Fewest benign conversations that can support a false-positive rate."""
    _check_rate(fpr)
    return max(1, math.ceil(1 / fpr - 1 - 1e-9))


def order(n: int, fpr: float) -> int:
    """k = ceil((n + 1)(1 - a)): which of n sorted benign scores is the threshold. `CalibrationError` if k > n."""
    needed = required_n(fpr)
    if n < needed:
        raise CalibrationError(
            f"{n} benign conversations cannot support an FPR of {fpr:g}; give at least {needed}"
        )
    # 1e-9: (n + 1)(1 - a) may be an integer a rounding error off
    return min(n, math.ceil((n + 1) * (1 - fpr) - 1e-9))


def true_rate(n: int, fpr: float, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the threshold's true false-positive rate, before any second set is seen.

    The rate above the k-th smallest of n scores is Beta(n + 1 - k, k) for any continuous distribution (Wilks
    1941); ties only lower it. With n = 999 and a = 1% it is 0.48% to 1.7%: the price of a small n.
    """
    from scipy.stats import beta

    k, tail = order(n, fpr), (1 - confidence) / 2
    low, high = beta.ppf([tail, 1 - tail], n + 1 - k, k)
    return float(low), float(high)


def threshold_at(benign: ArrayLike, fpr: float) -> float:
    """The threshold for `fpr`; flagged is strictly above it. `CalibrationError` for too few scores."""
    scores = np.sort(np.asarray(benign, np.float64))
    k = order(len(scores), fpr)
    if not np.isfinite(scores).all():
        raise CalibrationError(
            f"{int((~np.isfinite(scores)).sum())} benign scores are NaN or infinite; mend the probe"
        )
    return float(scores[k - 1])


def thresholds_at(benign: ArrayLike, strata: Sequence[str], fpr: float) -> dict[str, float]:
    """The threshold that each stratum gives by itself, the highest first. strata: that of each score.

    The highest is never below that of all scores together: at or below it lie k_s >= (n_s + 1)(1 - a) of each
    stratum, so at least k of them all. `CalibrationError` that names the strata too small for `fpr`.
    """
    scores, needed = np.asarray(benign, np.float64), required_n(fpr)
    if len(strata) != len(scores):
        raise CalibrationError(f"{len(strata)} strata for {len(scores)} benign scores; give one for each")
    places: dict[str, list[int]] = {name: [] for name in sorted(set(strata))}
    for place, name in enumerate(strata):  # not as text of numpy's, which loses a NUL at its end
        places[name].append(place)
    sizes = Counter(strata)
    small = sorted((n, name) for name, n in sizes.items() if n < needed)
    if small:
        told = ", ".join(f"{name!r} has {n}" for n, name in small[:TOLD])
        more = f" and {len(small) - TOLD} more have too few" if len(small) > TOLD else ""
        raise CalibrationError(
            f"{len(small)} of {len(sizes)} strata cannot support an FPR of {fpr:g}, which needs {needed} in each: "
            f"{told}{more}; give more of them, or one value to several"
        )
    found = {name: threshold_at(scores[own], fpr) for name, own in places.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def chance_of(hits: int, n: int, calibrated_on: int, fpr: float) -> float:
    """Probability that at least `hits` of `n` further exchangeable conversations are flagged.

    Beta-binomial: the threshold's own rate is Beta distributed (`true_rate`). Ties, and a threshold above that of
    these conversations alone, only lower it.
    """
    from scipy.stats import betabinom

    k = order(calibrated_on, fpr)
    return float(betabinom.sf(hits - 1, n, calibrated_on + 1 - k, k))


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a binomial proportion (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    if not 0 <= hits <= n or n < 1:
        raise CalibrationError(f"{hits} hits of {n} is no proportion; give 0 <= hits <= n and n >= 1")
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def quantiles(benign: ArrayLike, steps: int = 100) -> Quantiles:
    """The empirical quantile function at 0, 1/steps, ..., 1. `CalibrationError` where float64 cannot span them."""
    grid = np.linspace(0.0, 1.0, steps + 1)
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.maximum.accumulate(np.quantile(np.asarray(benign, np.float64), grid))
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"benign scores from {np.min(benign):g} to {np.max(benign):g} lie too far apart; mend the probe"
        )
    return Quantiles(probabilities=tuple(grid.tolist()), values=tuple(values.tolist()))


def calibrated(
    manifest: ProbeManifest,
    benign: ArrayLike,
    second: ArrayLike,
    fpr: float,
    *,
    strata: Sequence[str] | None = None,
    traffic: ArrayLike | None = None,
    action: str | None = None,
    data_digest: str | None = None,
) -> ProbeManifest:
    """The manifest with threshold, calibration and benign quantiles.

    benign, second: deployed statistics of two disjoint sets without the concept; the first gives the
    threshold, the second the realised rate. strata: of each of `benign`; the threshold, and the n told of it, are
    then the hardest stratum's. traffic: all benign traffic, for the quantiles that drift is
    measured against; by default `benign`. action: by default the concept's.
    """
    threshold, n = _deployed(benign, strata, fpr)
    others = np.asarray(second, np.float64)
    if not len(others):
        raise CalibrationError(
            "the second benign set has 0 conversations; give one to measure the realised FPR on"
        )
    hits = int((others > threshold).sum())
    return revise(
        manifest,
        threshold=threshold,
        default_action=action or default_action(manifest.concept),
        benign_quantiles=quantiles(benign if traffic is None else traffic),
        calibration=Calibration(
            nominal_fpr=fpr,
            n=n,
            data_digest=data_digest,
            realised_n=len(others),
            realised_false_positives=hits,
            realised_ci=clopper_pearson(hits, len(others)),
        ),
    )


def _deployed(benign: ArrayLike, strata: Sequence[str] | None, fpr: float) -> tuple[float, int]:
    """The threshold, and how many benign conversations it is an order statistic of."""
    if strata is None:
        return threshold_at(benign, fpr), len(np.asarray(benign))
    hardest, threshold = next(iter(thresholds_at(benign, strata, fpr).items()))
    return threshold, Counter(strata)[hardest]


def _check_rate(fpr: float) -> None:
    if not 0 < fpr < 1:
        raise CalibrationError(f"an FPR of {fpr:g} cannot be calibrated; give one between 0 and 1")
