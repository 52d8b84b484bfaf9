"""How well the deployed statistic separates: by contrast, at the threshold, at base rates, by slice."""

from collections import Counter
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from probes import evaluation
from probes.errors import DatasetInvalid
from probes.evaluating.bench import Bench, Side, contrasts, in_contrast, share, share_of
from probes.evaluating.card import Contrast, Deployed, NotComputed, Precision, Slice

Floats = NDArray[np.float64]
BASE_RATES: Final = (0.1, 0.01, 0.001, 0.0001)
FIELDS: Final = ("condition", "family", "template")
ROC_POINTS: Final = 400
MAX_VALUES: Final = 24
"""Values of a field that are shown; more say the field is no slice but an identifier."""


def roc(positive: Floats, negative: Floats) -> tuple[tuple[float, float], ...]:
    """(false-positive rate, recall) at every threshold, flagged being strictly above it; from (0, .) to (1, 1)."""
    thresholds = np.unique(negative)[::-1]
    low, high = np.sort(negative), np.sort(positive)
    fpr = 1 - np.searchsorted(low, thresholds, "right") / len(low)
    recall = 1 - np.searchsorted(high, thresholds, "right") / len(high)
    points = np.unique(np.stack([np.append(fpr, 1.0), np.append(recall, 1.0)], axis=1), axis=0)
    if len(points) > ROC_POINTS:  # evenly in the logarithm, as they are drawn, and always the ends
        wanted = np.geomspace(1 / len(low), 1.0, ROC_POINTS)
        kept = np.unique(
            np.concatenate([[0], np.searchsorted(points[:, 0], wanted).clip(0, len(points) - 1)])
        )
        points = points[kept]
    return tuple((float(x), float(y)) for x, y in points)


def judged(bench: Bench, name: str, beside: Mapping[str, Floats]) -> Contrast:
    """Figures of one contrast. beside: scores of text-only models, of the contrast's test conversations."""
    kept = in_contrast(bench.test.chats, name)
    side, scores = bench.test.take(np.flatnonzero(kept)), bench.scores[kept]
    n_positive, n_negative = side.counts()
    if not n_positive or not n_negative:
        raise DatasetInvalid(
            f"contrast {name!r} has {n_positive} positives and {n_negative} negatives in the test split; give both"
        )
    y = side.labels
    return Contrast(
        name=name,
        n_positive=n_positive,
        n_negative=n_negative,
        auroc=bench.figure(scores, side),
        recall_1pct=bench.figure(scores, side, evaluation.recall_at(0.01)),
        recall_01pct=bench.figure(scores, side, evaluation.recall_at(0.001)),
        roc=roc(scores[y == 1], scores[y == 0]),
        beside={other: bench.figure(found, side) for other, found in beside.items()},
    )


def all_contrasts(bench: Bench, beside: Mapping[str, Mapping[str, Floats]]) -> tuple[Contrast, ...]:
    """Every contrast of the test conversations. beside: by contrast, scores of text-only models fitted to it."""
    return tuple(judged(bench, name, beside.get(name, {})) for name in contrasts(bench.test.chats))


def deployed(bench: Bench) -> Deployed | NotComputed:
    """Recall, false positives and precision at the threshold in the artifact, on all test conversations."""
    threshold = bench.probe.manifest.threshold
    if threshold is None:
        return uncalibrated()
    flagged, y = bench.scores > threshold, bench.test.labels
    recall = share(int(flagged[y == 1].sum()), int((y == 1).sum()))
    false = share(int(flagged[y == 0].sum()), int((y == 0).sum()))
    rows = tuple(
        Precision(
            base_rate=rate,
            expected=precision(recall.value, false.value, rate),
            pessimistic=precision(recall.low, false.high, rate),
        )
        for rate in BASE_RATES
    )
    return Deployed(recall=recall, false_positives=false, precision=rows)


def precision(recall: float, false_positive_rate: float, base_rate: float) -> float:
    """Bayes: recall b / (recall b + fpr (1 - b)), the share of flags that are right; NaN where nothing is flagged."""
    right, wrong = recall * base_rate, false_positive_rate * (1 - base_rate)
    return right / (right + wrong) if right + wrong > 0 else float("nan")


def slices(bench: Bench) -> tuple[Slice, ...]:
    """Figures for each value of the fields `FIELDS` that vary within the test conversations."""
    found: list[Slice] = []
    for field in FIELDS:
        values = [getattr(chat, field) for chat in bench.test.chats]
        counted = Counter(value for value in values if value is not None)
        if 2 <= len(counted) <= MAX_VALUES:
            at = np.array(values, dtype=object)
            found += [_slice(bench, field, value, at == value) for value in sorted(counted)]
    return tuple(found)


def _slice(bench: Bench, field: str, value: str, kept: NDArray[np.bool_]) -> Slice:
    y, threshold = bench.test.labels, bench.probe.manifest.threshold
    positive, negative = bench.scores[kept & (y == 1)], bench.scores[kept & (y == 0)]
    own = len(negative) > 0
    against = negative if own else bench.scores[bench.in_headline & (y == 0)]
    flagged = None if threshold is None else (positive > threshold, negative > threshold)
    return Slice(
        field=field,
        value=value,
        n_positive=len(positive),
        n_negative=len(negative),
        auroc=evaluation.auroc(positive, against),
        own_negatives=own,
        recall=None if flagged is None else share_of(flagged[0]),
        false_positives=None if flagged is None else share_of(flagged[1]),
    )


def at_threshold(
    bench: Bench, scores: Floats, side: Side
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """(flagged positives, flagged negatives) of other scores; None for a probe without a threshold."""
    threshold = bench.probe.manifest.threshold
    if threshold is None:
        return None
    return scores[side.labels == 1] > threshold, scores[side.labels == 0] > threshold


def uncalibrated() -> NotComputed:
    """What is said where a threshold is needed."""
    return NotComputed(
        reason="the probe has no threshold",
        remedy="calibrate it with `probewatch calibrate` and evaluate again",
    )
