"""What a fit is, and what it may be told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from probes.fields import Scoring
from probes.fitting.rows import Labels, TokenRows
from probes.manifest import TokenMask
from probes.method import Aggregation

Fit = Callable[[TokenRows, Labels, "Options", int], dict[str, Tensor]]
"""rows, labels [c], options, seed -> the tensors of the kind. Raises `DataError`; the same seed gives the same."""


@dataclass(frozen=True)
class LensSource:
    """What a lens takes from the model. V: vocabulary, d: d_model."""

    unembedding: Tensor
    """[V, d]"""
    gain: Tensor
    """[d] of the final norm; for a norm that multiplies by 1 + g, give 1 + g"""
    norm: Literal["rms_norm", "layer_norm"]
    epsilon: float
    tracked: tuple[int, ...]
    """Token ids whose mass is watched"""
    others: tuple[int, ...] | None = None
    """Token ids that it is compared with; None: all others"""
    norm_bias: Tensor | None = None
    """[d] of the final norm"""
    bias: Tensor | None = None
    """[V] of the unembedding"""
    final: Tensor | None = None
    """[n, d] the model's last hidden state after its final norm, for the same rows: what a tuned lens imitates"""


@dataclass(frozen=True)
class SaeSource:
    """The encoder of a sparse autoencoder on the fitted layers. F: features."""

    encoder: Tensor
    """[L, d, F]"""
    encoder_bias: Tensor
    """[F], a decoder bias that is subtracted first folded in"""
    threshold: Tensor
    """[F] of the JumpReLU; zeros for a ReLU"""


@dataclass(frozen=True)
class Options:
    """What a fit may be told; each fit reads what concerns it."""

    regularisation: float = 1.0
    """Inverse strength C of the penalty, on standardised rows"""
    pooled: bool = False
    """Fit one row a conversation, its mean: what the mean of an affine score sees (linear fits)"""
    max_rows: int = 20_000
    """Token rows at most, drawn evenly; more of one conversation say little new (fits on token rows)"""
    aggregation: Aggregation | None = None
    """What a fit through its aggregation goes through; None: the fitter's own"""
    heads: int = 4
    """Of multimax and attention"""
    hidden: int = 16
    """Width of the MLP"""
    features: int = 16
    """SAE features that are kept"""
    dictionary: int = 128
    """Features of an SAE that is trained here"""
    rank: int = 4
    """Of the tuned lens"""
    positive_class: int = 1
    """Whose log-odds a multiclass probe tells"""
    epochs: int = 60
    """At most"""
    patience: int = 8
    """Epochs without a better held-out loss before it stops"""
    held_out: float = 0.15
    """Share of the groups that early stopping looks at; 0: no early stopping"""
    batch: int = 64
    """Conversations (or, for token fits, 16 x as many rows) in a step"""
    learning_rate: float = 1e-2
    weight_decay: float = 3e-3
    lens: LensSource | None = None
    sae: SaeSource | None = None


@dataclass(frozen=True)
class Fitter:
    """A fit, and the manifest fields of what it gives."""

    fit: Fit
    kind: str
    scoring: Scoring = "logit"
    aggregation: Aggregation = field(default_factory=Aggregation)
    """By default. A kind of one score a token takes any of `probes.kinds.record.ONE_SCORE` after a token fit."""
    through: bool = False
    """It is trained through its aggregation, so that one must be deployed"""
    token_mask: TokenMask | None = None
    """The tokens it is meant for; None: any"""
    labels: Literal["binary", "classes", "belief_and_assertion", "unused"] = "binary"
    """`binary`: 0 and 1. `classes`: 0 .. C - 1. `belief_and_assertion`: 2 * believed + asserted, 0 .. 3"""
    needs: Literal["nothing", "lens", "lens_and_final"] = "nothing"
    """What `Options.lens` must hold"""
