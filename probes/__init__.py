"""Probes on the residual stream: artifacts, scoring, aggregation. Knows nothing of vLLM or of the plugin.

    probe = probes.load("deception.safetensors")
    scores = probe.score_tokens(hidden)         # hidden [T, L, d] -> [T]
    flagged = probe.crossed(probe.statistic(scores, mask))

Training, calibration and evaluation live in modules of their own and load scikit-learn only when used.
"""

from probes.errors import (
    ArtifactError,
    BindingError,
    CalibrationError,
    DataError,
    DatasetInvalid,
    DigestMismatch,
    DimensionMismatch,
    GoldenMismatch,
    LayerMismatch,
    MalformedArtifact,
    ManifestInvalid,
    ModelMismatch,
    NonFinite,
    OversizedArtifact,
    ProbeError,
    SplitLeak,
    TensorInvalid,
    TruncatedArtifact,
    Unbound,
    UnsafeFormat,
)
from probes.manifest import ProbeManifest
from probes.probe import Probe, Stream, load

__all__ = [
    "ArtifactError",
    "BindingError",
    "CalibrationError",
    "DataError",
    "DatasetInvalid",
    "DigestMismatch",
    "DimensionMismatch",
    "GoldenMismatch",
    "LayerMismatch",
    "MalformedArtifact",
    "ManifestInvalid",
    "ModelMismatch",
    "NonFinite",
    "OversizedArtifact",
    "Probe",
    "ProbeError",
    "ProbeManifest",
    "SplitLeak",
    "Stream",
    "TensorInvalid",
    "TruncatedArtifact",
    "Unbound",
    "UnsafeFormat",
    "load",
]
