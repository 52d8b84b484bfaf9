"""What a reader hands over: somebody else's probe, in that project's own numbering of layers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from probes.fields import Scoring
from probes.method import Aggregation

Floats = NDArray[np.float64]
Convention = Literal["resid_post", "hf", "block_input"]


@dataclass(frozen=True)
class Request:
    """What the user says of a file: the flags of `probewatch import`."""

    path: Path
    layers_are: Convention | None = None
    layers: tuple[int, ...] | None = None
    """In the file's own numbering: which to take, or which it was trained on where it does not say."""
    features: tuple[int, ...] | None = None
    """Of a sparse autoencoder."""
    positive_class: str | None = None
    """Of a classifier with more than two classes."""
    model: Path | None = None
    """Folder of the model to bind to."""


@dataclass(frozen=True)
class Foreign:
    """A probe as another project stores it, scaling folded. Tensors are float64, layers come first."""

    format: str
    kind: str
    tensors: Mapping[str, Floats]
    """Those of our kind. Where `layers` is None, the layers' weights lie in one row: [1, L * d, ...]."""
    layers: tuple[int, ...] | None
    """As the file numbers them; None: it does not say."""
    convention: Convention | None
    """What such numbers mean there; None: the format does not define it."""
    concept: str
    scoring: Scoring = "logit"
    aggregation: Aggregation = field(default_factory=Aggregation)
    last_block_is_raw: bool = False
    """The format's hook gives the last block before the final norm; Hugging Face's hidden states do not."""
    adapter: Path | None = None
    """Folder of the LoRA adapter that the probe was trained with."""
    notes: tuple[str, ...] = ()
    """What a user must know; printed as warnings."""
