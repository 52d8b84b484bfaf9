"""Steering vectors: how a request asks for them by name, and their layout as matrices.

What is asked for is a change of the residual stream ``x`` along a unit direction ``v`` of stored length ``s``:

    add      x + scale * s * v             relative: x + scale * |x| * v
    ablate   x - scale * (x . v) * v       scale 1 removes the direction (Arditi et al. 2024, arXiv 2406.11717)
    clamp    x + (scale * s - x . v) * v   relative: scale * |x| in place of scale * s

All of them are ``x + (own * s + residual * |x| + pull * (x . v)) * v``, so a request's vectors are three rows of
coefficients, and many different requests are still two small matrix products.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monitor.errors import AttachError, RequestError
from monitor.events import FloatArray
from probes import Probe

KEY = "probewatch_steer"
SALT = "probewatch-"
"""How the salts of steered requests begin, and no client's."""
MODES = ("add", "ablate", "clamp")
MOST_PER_REQUEST = 8
LARGEST_SCALE = 1e3
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Steer:
    """One vector as a request, or a probe's action, wants it applied."""

    vector: str
    scale: float = 1.0
    mode: str = "add"
    relative: bool = False
    """In units of the residual stream's own length instead of the vector's."""
    prompt: bool = True
    generated: bool = True

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """``(own, residual, pull)``; see the module's formula."""
        pull = {"add": 0.0, "ablate": -self.scale, "clamp": -1.0}[self.mode]
        if self.mode == "ablate":
            return 0.0, 0.0, pull
        return (0.0, self.scale, pull) if self.relative else (self.scale, 0.0, pull)


def parse(asked: object, names: Sequence[str]) -> tuple[Steer, ...]:
    """``NAME[:SCALE][:WORD]...`` or a list of them.

    Words are add, ablate, clamp, relative, absolute, prompt and generated. ``names``: the vectors there are. Raises
    ``RequestError`` that lists them.
    """
    wanted = asked if isinstance(asked, list | tuple) else [asked]
    if len(wanted) > MOST_PER_REQUEST:
        raise RequestError(f"{KEY}: {len(wanted)} vectors, at most {MOST_PER_REQUEST} a request; send fewer")
    found = tuple(_parse_one(one, names) for one in wanted)
    if len({steer.vector for steer in found}) < len(found):
        raise RequestError(f"{KEY}: a vector is named twice; give each once")
    return found


def _parse_one(asked: object, names: Sequence[str]) -> Steer:
    if not isinstance(asked, str):
        raise RequestError(f"{KEY}: {str(asked)[:40]!r} is no text; give NAME:SCALE")
    name, *rest = asked.split(":")
    if name not in names:
        there = ", ".join(names) or "none: start the server with --vector FILE"
        raise RequestError(f"{KEY}: no vector {name[:64]!r} is loaded; loaded are {there}")
    scale, mode, relative, where = 1.0, "add", False, {"prompt", "generated"}
    for part in rest:
        if part in MODES:
            mode = part
        elif part in ("relative", "absolute"):
            relative = part == "relative"
        elif part in ("prompt", "generated"):
            where = {part}
        else:
            scale = _scale(part)
    return Steer(name, scale, mode, relative, "prompt" in where, "generated" in where)


def _scale(text: str) -> float:
    scale = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not abs(scale) <= LARGEST_SCALE:
        raise RequestError(
            f"{KEY}: {text[:40]!r} is neither a finite scale of at most {LARGEST_SCALE:g} nor one of "
            f"{', '.join(MODES)}, relative, absolute, prompt, generated; give NAME:SCALE"
        )
    return scale


class VectorBank:
    """The vectors of a server, at every layer that one of them steers. ``V`` vectors, ``L`` layers."""

    def __init__(self, vectors: Sequence[Probe], d_model: int, n_layers: int) -> None:
        """Raises ``AttachError`` for one that does not fit the model, and for two of one name."""
        self.names = tuple(vector.manifest.name for vector in vectors)
        if len(set(self.names)) < len(self.names):
            raise AttachError(
                f"vector names must differ, found {', '.join(self.names)}; leave one --vector out"
            )
        for vector in vectors:
            _check(vector, d_model, n_layers)
        self.layers = tuple(sorted({layer for vector in vectors for layer in vector.manifest.layers}))
        self.last_layers = {vector.manifest.name: max(vector.manifest.layers) for vector in vectors}
        self.d_model = d_model
        self._vectors = tuple(vectors)

    def directions(self) -> tuple[Tensor, Tensor]:
        """Unit directions ``[L, V, d]`` and stored lengths ``[L, V]``; zero where a vector has no such layer."""
        units = torch.zeros(len(self.layers), len(self.names), self.d_model)
        lengths = torch.zeros(len(self.layers), len(self.names))
        for v, vector in enumerate(self._vectors):
            for layer, direction in zip(vector.manifest.layers, vector.tensors["direction"], strict=True):
                row, length = self.layers.index(layer), direction.double().norm()
                units[row, v] = (direction.double() / length).float()
                lengths[row, v] = length.float()
        return units, lengths

    def parse(self, asked: object) -> tuple[Steer, ...]:
        """See ``parse``."""
        return parse(asked, self.names)

    def coefficients(self, steers: Sequence[Steer]) -> FloatArray:
        """``[3, V]``: own, residual and pull of every vector."""
        found = np.zeros((3, len(self.names)), np.float32)
        for steer in steers:
            found[:, self.names.index(steer.vector)] = steer.coefficients
        return found

    def salt(self, steers: Sequence[Steer]) -> str:
        """What tells the KV cache of a request steered like this from every other's."""
        digests = {vector.manifest.name: vector.manifest.tensors_sha256 for vector in self._vectors}
        said = ";".join(f"{digests[steer.vector]} {steer}" for steer in sorted(steers))
        return f"{SALT}{hashlib.sha256(said.encode()).hexdigest()[:32]}"


def _check(vector: Probe, d_model: int, n_layers: int) -> None:
    manifest = vector.manifest
    if "direction" not in vector.tensors:
        raise AttachError(
            f"{manifest.name!r} is a {manifest.kind} probe and no steering vector; give it with --probe"
        )
    if manifest.d_model != d_model:
        raise AttachError(
            f"vector {manifest.name!r} has d_model {manifest.d_model}, the model has {d_model}; use a vector made on "
            "this model"
        )
    if max(manifest.layers) >= n_layers:
        raise AttachError(
            f"vector {manifest.name!r} steers layer {max(manifest.layers)}; this model has layers 0 to {n_layers - 1}"
        )
