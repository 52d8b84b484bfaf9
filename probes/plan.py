"""What `probewatch train` was told, as it is kept in the manifest.

The same plan, data and versions give the same tensors on the same machine: `probewatch train --again` checks it.
"""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Final

from pydantic import Field

from probes.fields import Digest, Label, Position, Record

DECIDES: Final = ("torch", "numpy", "scipy", "scikit-learn")
"""Packages whose version may change a fit in its last digits."""
Strength = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
FitName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
"""A name in `probes.fitting.FITTERS`."""


class Plan(Record):
    """What is tried, and how it is chosen."""

    kinds: Annotated[tuple[FitName, ...], Field(min_length=1, max_length=64)] = (
        "logistic",
        "difference_of_means",
    )
    """Fits to try; of equals the first is taken."""
    layers: Annotated[tuple[tuple[Position, ...], ...], Field(max_length=1024)] = ()
    """Sets of layers to try; empty: every block but the last, by itself."""
    tokens: Label | None = None
    """See `probes.specs.tokens`; None: what a fit is meant for, else the answer."""
    aggregation: Label | None = None
    """See `probes.specs.aggregation`; None: the fit's own."""
    min_tokens: Annotated[Position, Field(ge=1)] = 1
    regularisation: Annotated[tuple[Strength, ...], Field(min_length=1, max_length=64)] = (0.001, 0.03, 1.0)
    """Inverse strengths C to try, where a fit has a penalty."""
    pooled: bool = False
    """Linear fits see the mean row of each conversation."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 5
    """Fits of each kind and set of layers: the first to all training groups, each other one to a redraw of them."""
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    """Of the splits, the redraws and the fits."""


class Chosen(Record):
    """What the sweep came to."""

    kind: FitName
    layers: Annotated[tuple[Position, ...], Field(min_length=1, max_length=256)]
    regularisation: Strength
    pooled: bool


class Made(Record):
    """How the probe was made."""

    plan: Plan
    chosen: Chosen
    data_digest: Digest
    """Of the whole data set, before it was split."""
    recipe: Label | None = None
    """The ready recipe (`probes.recipes`) that the data came from."""
    versions: Annotated[dict[str, Label], Field(max_length=16)]
    """Of `DECIDES`, Python and the machine."""


def versions() -> dict[str, str]:
    """Those here, for `Made.versions`."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in DECIDES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # from a source tree
            found[package] = "unknown"
    return found
