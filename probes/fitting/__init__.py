"""Fitting probes: one file a family, one registry.

    rows = fitting.token_rows(activations, token_mask, layers, groups)
    tensors = fitting.fit("logistic", rows, labels, fitting.Options(regularisation=0.1), seed=0)

`FITTERS[name]` also says which kind, scoring, aggregation and token mask the result is for. scikit-learn does what it
does and is loaded when used; torch does the rest.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from probes.errors import DataError
from probes.fitting import classes, concept, contrast, features, gap, lens, linear, network, through
from probes.fitting.rows import Labels, TokenRows, token_rows
from probes.fitting.types import Fit, Fitter, LensSource, Options, SaeSource
from probes.manifest import TokenMask
from probes.method import Aggregation

__all__ = [
    "FITTERS",
    "Fit",
    "Fitter",
    "Labels",
    "LensSource",
    "Options",
    "SaeSource",
    "TokenRows",
    "fit",
    "fitter",
    "token_rows",
]

BEFORE_ANSWERING: Final = TokenMask(prompt="last_k", last_k=1, generated=False)
QUESTION_AND_ANSWER: Final = TokenMask(prompt="last_k", last_k=1)

EMA: Final = Aggregation(method="ema", alpha=0.1)
CUSUM: Final = Aggregation(method="cusum", reference=0.0)
SOFTMAX: Final = Aggregation(method="softmax", temperature=5.0)
ROLLING_MEAN: Final = Aggregation(method="rolling_mean", window=40)
MULTIMAX: Final = Aggregation(method="multimax", heads="max_then_sum")
ATTENTION: Final = Aggregation(method="attention")
ROLLING_ATTENTION: Final = Aggregation(method="rolling_attention", window=10, heads="sum_then_max")
FEATURES: Final = Aggregation(method="feature_max")
CLASSES: Final = Aggregation(method="mean_log_odds")
LEVEL: Final = Aggregation(method="mean_level")
GAP: Final = Aggregation(method="gap", belief_tokens=1, min_tokens=2)
LAST: Final = Aggregation(method="last")


def _through(rule: Aggregation) -> Fitter:
    return Fitter(through.affine(rule), "affine", aggregation=rule, through=True)


FITTERS: Final[Mapping[str, Fitter]] = MappingProxyType(
    {
        "logistic": Fitter(linear.on_rows(linear.fit_logistic), "logistic"),
        "ridge": Fitter(linear.on_rows(linear.fit_ridge), "ridge"),
        "difference_of_means": Fitter(linear.on_rows(linear.fit_difference_of_means), "difference_of_means"),
        "mass_mean": Fitter(linear.on_rows(linear.fit_mass_mean), "mass_mean"),
        "lda": Fitter(linear.on_rows(linear.fit_lda), "lda"),
        "lat": Fitter(contrast.fit_lat, "lat"),
        "ccs": Fitter(contrast.fit_ccs, "ccs"),
        "mlp": Fitter(network.fit_mlp, "mlp"),
        "multiclass": Fitter(classes.fit_log_odds, "multiclass", "log_odds", CLASSES, labels="classes"),
        "level": Fitter(classes.fit_level, "multiclass", "level", LEVEL, labels="classes"),
        "ordinal": Fitter(classes.fit_ordinal, "ordinal", labels="classes"),
        "softmax": _through(SOFTMAX),
        "rolling_mean": _through(ROLLING_MEAN),
        "ema": _through(EMA),
        "cusum": Fitter(linear.on_rows(linear.fit_logistic), "logistic", aggregation=CUSUM),
        "multimax": Fitter(through.multimax(MULTIMAX), "multimax", aggregation=MULTIMAX, through=True),
        "attention": Fitter(through.attention(ATTENTION), "attention", aggregation=ATTENTION, through=True),
        "rolling_attention": Fitter(
            through.attention(ROLLING_ATTENTION), "attention", aggregation=ROLLING_ATTENTION, through=True
        ),
        "sae": Fitter(features.fit_sae, "sae", aggregation=FEATURES),
        "concept": Fitter(concept.fit_concept, "concept", "cosine", labels="classes"),
        "logit_lens": Fitter(lens.fit_logit_lens, "logit_lens", "rms_norm", labels="unused", needs="lens"),
        "tuned_lens": Fitter(
            lens.fit_tuned_lens, "tuned_lens", "rms_norm", labels="unused", needs="lens_and_final"
        ),
        "gap": Fitter(
            gap.fit_gap,
            "gap",
            aggregation=GAP,
            token_mask=QUESTION_AND_ANSWER,
            labels="belief_and_assertion",
        ),
        "confidence": Fitter(
            linear.on_rows(linear.fit_logistic), "logistic", aggregation=LAST, token_mask=BEFORE_ANSWERING
        ),
    }
)
"""Name -> how it is fitted and what comes of it.

    softmax, rolling_mean, ema      an affine score trained through its aggregation
    cusum                           logistic regression, alarmed by the sum of its recent log-odds above 0
    level                           multiclass, telling the expected class number
    gap                             belief at the last prompt token against what the answer asserts
    confidence                      logistic regression at the last prompt token: what will become of the answer, before
                                    it is written
    logit_lens, tuned_lens          scoring is `Options.lens.norm`
"""


def fitter(name: str) -> Fitter:
    """The entry of the registry; `DataError` with the known names."""
    if name not in FITTERS:
        raise DataError(f"kind {name!r} cannot be fitted; use one of: {', '.join(FITTERS)}")
    return FITTERS[name]


def fit(
    name: str, rows: TokenRows, labels: ArrayLike, options: Options | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """The tensors of `FITTERS[name].kind`. labels: [c], one a conversation.

    Raises `DataError` for an unknown name, labels that do not fit, one class only, and rows with NaN.
    """
    found = fitter(name)
    y = np.asarray(labels)
    if y.shape != (rows.conversations,):
        raise DataError(f"{len(y)} labels for {rows.conversations} conversations; give one for each")
    if not bool(rows.hidden.isfinite().all()):
        raise DataError("token rows hold NaN or infinity; collect them again")
    return found.fit(rows, _checked(y, found), options or Options(), seed)


def _checked(labels: np.ndarray, found: Fitter) -> Labels:
    y = np.asarray(labels, np.int64)
    if found.labels == "unused":
        return y
    classes = np.unique(y)
    most = {"binary": 1, "belief_and_assertion": 3}.get(found.labels)
    if (y != labels).any() or classes[0] < 0 or (most is not None and classes[-1] > most):
        raise DataError(
            f"labels {classes.tolist()[:8]}; {found.kind} takes 0 .. {'C - 1' if most is None else most}"
        )
    counts = np.bincount(y)
    if len(classes) < 2 or ((counts == 0).any() and found.labels != "belief_and_assertion"):
        raise DataError(
            f"{counts[0]} negative and {counts[1:].sum()} positive conversations to fit; give both"
            if found.labels == "binary"
            else f"conversations by label {counts.tolist()}; give some of each"
        )
    return y
