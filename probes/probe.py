"""A loaded probe: token scores, the aggregated value, the deployed statistic, and a self-test."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probes import aggregation, artifact, kinds
from probes import manifest as manifests
from probes.errors import CalibrationError, DimensionMismatch, GoldenMismatch
from probes.manifest import ProbeManifest

SELFTEST_TOLERANCE = 1e-4
"""Largest error of a golden score relative to 1 + the largest one: float32 summed in another order."""

State = Tensor | ArrayLike
Mask = Tensor | ArrayLike | None


@dataclass(frozen=True)
class Probe:
    """A probe as read from its artifact. T: tokens, L: layers, d: d_model, C: columns, K: state numbers."""

    manifest: ProbeManifest
    tensors: Mapping[str, Tensor]
    """Those of the kind; float32."""
    golden_inputs: Tensor
    """[N, L, d]"""
    golden_scores: Tensor
    """[N]"""

    @cached_property
    def _kind(self) -> kinds.Kind:
        return kinds.of(self.manifest)

    @cached_property
    def statistic_digest(self) -> str:
        """See `ProbeManifest.statistic_digest`; computed once, for a server tells it with every verdict."""
        return self.manifest.statistic_digest

    @cached_property
    def columns(self) -> Tensor:
        """[L, d, C] float32: what the residual of each layer is multiplied by."""
        return self._kind.columns(self.tensors).float().contiguous()

    @cached_property
    def _constants(self) -> kinds.Tensors:
        return self._kind.constants(self.tensors)

    @property
    def needs_norm(self) -> bool:
        """Whether `state_from_projections` needs the squared norms of the residual."""
        return self._kind.needs_norm

    def state_from_projections(self, projections: Tensor, squared_norms: Tensor | None = None) -> Tensor:
        """projections [T, L, C] = residual @ columns, squared_norms [T, L] where `needs_norm` -> [T, K]."""
        norms = None if squared_norms is None else squared_norms.float()
        return self._kind.state(projections.float(), norms, self._constants)

    def token_scores(self, state: Tensor) -> Tensor:
        """state [T, K] -> the scalar shown for each token [T]."""
        return self._kind.token_score(state)

    def token_state(self, hidden: Tensor) -> Tensor:
        """hidden [T, L, d], any float dtype -> state [T, K] float32. `DimensionMismatch` on another shape."""
        expected = (len(self.manifest.layers), self.manifest.d_model)
        if hidden.ndim != 3 or tuple(hidden.shape[1:]) != expected:
            raise DimensionMismatch(
                f"probe {self.manifest.name!r}: hidden states have shape {list(hidden.shape)}; "
                f"give [T, {expected[0]}, {expected[1]}]"
            )
        return kinds.score_hidden(self._kind, self.tensors, self.columns, hidden)

    def score_tokens(self, hidden: Tensor) -> Tensor:
        """hidden [T, L, d] -> scores [T] float32; see `probes.kinds.KINDS` for what a score means."""
        return self.token_scores(self.token_state(hidden))

    def aggregate(self, state: State, mask: Mask = None) -> float:
        """The value over in-mask tokens; NaN without any. state [T, K], or [T] for K = 1; mask [T] bool."""
        return aggregation.aggregate(_in_mask(state, mask), self.manifest.aggregation)

    def statistic(self, state: State, mask: Mask = None) -> float:
        """The statistic compared with the threshold (see `probes.aggregation.statistic`)."""
        return aggregation.statistic(
            _in_mask(state, mask), self.manifest.aggregation, self.manifest.statistic
        )

    def stream(self) -> "Stream":
        """A new streaming form for one request."""
        return Stream(self.manifest.aggregation, self.manifest.statistic)

    def crossed(self, statistic: float) -> bool:
        """Whether a statistic is strictly above the threshold; NaN never is. `CalibrationError` without
        one.
        """
        threshold = self.manifest.threshold
        if threshold is None:
            raise CalibrationError(
                f"probe {self.manifest.name!r} has no threshold; calibrate it with `probewatch calibrate`"
            )
        return statistic > threshold

    def save(self, path: Path, **changes: object) -> "Probe":
        """Write the artifact in one rename, with `changes` to its manifest; returns the probe as written."""
        golden = {kinds.GOLDEN_INPUTS: self.golden_inputs, kinds.GOLDEN_SCORES: self.golden_scores}
        revised = manifests.revise(self.manifest, **changes)
        written = artifact.write(path, revised, {**self.tensors, **golden})
        return replace(self, manifest=written)

    def selftest(self) -> float:
        """Largest absolute difference between the golden scores and those computed now."""
        return float((self.score_tokens(self.golden_inputs) - self.golden_scores).abs().max())


class Stream(aggregation.Stream):
    """Streaming aggregation that takes states as the probe gives them."""

    __slots__ = ()

    def update(self, state: State, mask: Mask = None) -> float:
        """Continue with state [T, K] (or [T] for K = 1) where mask [T] is True; returns the running value.

        States must be finite: a caller masks others out and reports those tokens as unscored.
        """
        return self.push(_in_mask(state, mask))


def load(path: str | Path) -> Probe:
    """Read, check and self-test an artifact. Raises an `ArtifactError` that names the file and the fault."""
    manifest, tensors = artifact.read(Path(path))
    own, inputs, scores = artifact.split_golden(tensors)
    probe = Probe(manifest, own, inputs, scores)
    error, limit = probe.selftest(), SELFTEST_TOLERANCE * (1.0 + float(scores.abs().max()))
    if not error <= limit:
        raise GoldenMismatch(
            f"{path}: golden scores are off by {error:.3g}, limit {limit:.3g}; write the artifact again"
        )
    return probe


def _in_mask(state: State, mask: Mask) -> NDArray[np.float64]:
    states = np.asarray(
        state.detach().cpu().double() if isinstance(state, Tensor) else state, dtype=np.float64
    )
    if states.ndim != 2:
        states = states.reshape(-1, 1)
    if mask is None:
        return states
    return states[np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask, dtype=np.bool_).reshape(-1)]
