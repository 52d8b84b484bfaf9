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
from probes.fitting import linear
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

FITTERS: Final[Mapping[str, Fitter]] = MappingProxyType(
    {
        "logistic": Fitter(linear.on_rows(linear.fit_logistic), "logistic"),
        "ridge": Fitter(linear.on_rows(linear.fit_ridge), "ridge"),
        "difference_of_means": Fitter(linear.on_rows(linear.fit_difference_of_means), "difference_of_means"),
        "mass_mean": Fitter(linear.on_rows(linear.fit_mass_mean), "mass_mean"),
        "lda": Fitter(linear.on_rows(linear.fit_lda), "lda"),
        "cusum": Fitter(
            linear.on_rows(linear.fit_logistic),
            "logistic",
            aggregation=Aggregation(method="cusum", reference=0.0),
        ),
        "confidence": Fitter(
            linear.on_rows(linear.fit_logistic),
            "logistic",
            aggregation=Aggregation(method="last"),
            token_mask=BEFORE_ANSWERING,
        ),
    }
)
"""Name -> how it is fitted and what comes of it.

    cusum           logistic regression, alarmed by the sum of its recent log-odds above 0
    confidence      logistic regression at the last prompt token: what will become of the answer, before it is written
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
    if not np.isfinite(rows.hidden.sum().item()):
        raise DataError("token rows hold NaN or infinity; collect them again")
    return found.fit(rows, _checked(y, found), options or Options(), seed)


def _checked(labels: np.ndarray, found: Fitter) -> Labels:
    y = np.asarray(labels, np.int64)
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
