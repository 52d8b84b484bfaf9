"""A foreign probe as an artifact of ours: layers in our numbering, float32 tensors, golden inputs and scores."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
import torch
from torch import Tensor

from probes import kinds, manifest
from probes.errors import FlagNeeded, NonFinite, NotConvertible, TensorInvalid
from probes.identity import ModelIdentity, adapter_digest, check_binding
from probes.importing import layers
from probes.importing.foreign import Convention, Floats, Foreign, Request
from probes.manifest import ModelBinding
from probes.probe import Probe

N_GOLDEN: Final = 8


def convert(foreign: Foreign, request: Request, name: str, model: ModelIdentity | None = None) -> Probe:
    """The probe, without a threshold; bound to `model`, or to none.

    `FlagNeeded` where the file leaves a choice open, `NotConvertible` where the layer is no block output, a
    `BindingError` where the model has another width or not these layers.
    """
    kind = kinds.lookup(foreign.kind, foreign.scoring)
    numbers, chosen = _chosen(
        foreign, request, {n for n, shape in kind.shapes.items() if shape[:1] == ("L",)}
    )
    blocks = layers.blocks(numbers, _convention(foreign, request))
    tensors = {n: _float32(tensor, n) for n, tensor in chosen.items()}
    per_layer = next(n for n, shape in kind.shapes.items() if shape[:2] == ("L", "d"))
    described = manifest.build(
        {
            "name": name,
            "kind": foreign.kind,
            "scoring": foreign.scoring,
            "concept": _label(foreign.concept),
            "positive_label": _label(foreign.concept),
            "negative_label": "other",
            "default_action": "observe",
            "layers": blocks,
            "last_block_verified": foreign.last_block_is_raw,
            "d_model": tensors[per_layer].shape[1],
            "aggregation": foreign.aggregation,
            "binding": None if model is None else _binding(foreign, model),
            "metrics": {"notes": _history(foreign, request, numbers)},
            "created_at": datetime.now(UTC),
            "tensors_sha256": "0" * 64,
        }
    )
    if model is not None:
        _check_model(described, model)
    kinds.check_shapes(kind, tensors, len(blocks), described.d_model)
    kinds.check_values(described, tensors)
    golden = kinds.golden(kind, tensors, _golden_inputs(len(blocks), described.d_model))
    return Probe(described, tensors, golden[kinds.GOLDEN_INPUTS], golden[kinds.GOLDEN_SCORES])


def _convention(foreign: Foreign, request: Request) -> Convention:
    found = request.layers_are or foreign.convention
    if found is None:
        raise FlagNeeded(
            f"the format {foreign.format} does not say what its layer numbers mean; add --layers-are "
            f"{'|'.join(layers.CONVENTIONS)}"
        )
    return found


def _chosen(
    foreign: Foreign, request: Request, per_layer: set[str]
) -> tuple[tuple[int, ...], Mapping[str, Floats]]:
    """The file's layers in ascending order, `--layers` of them, and the tensors that go with them."""
    if foreign.layers is None:
        if request.layers is None:
            raise FlagNeeded(
                f"the format {foreign.format} does not say which layer the probe reads; add --layers L --layers-are "
                f"{'|'.join(layers.CONVENTIONS)}"
            )
        foreign = _dealt(foreign, request.layers, per_layer)
    held = foreign.layers or ()
    if not all(0 <= n < layers.LIMIT for n in held):
        raise TensorInvalid(
            f"the file numbers a layer below 0 or above {layers.LIMIT - 1}; fetch the file again"
        )
    wanted = sorted(held if request.layers is None else request.layers)
    strays = [n for n in wanted if n not in held]
    if strays or len(set(held)) < len(held):
        raise FlagNeeded(
            f"layers {strays or list(held)[:20]}; the file has {_shown(held)}: choose with --layers"
        )
    if request.layers is not None and len(wanted) < len(held) and foreign.kind != "steering":
        raise NotConvertible(
            f"layers {wanted} of {_shown(held)}: a probe is the sum over all of its layers; take them all"
        )
    counts = sorted({len(foreign.tensors[name]) for name in per_layer})
    if counts != [len(held)]:
        raise TensorInvalid(
            f"weights for {counts} layers, and {len(held)} layers named; fetch the file again"
        )
    rows = [held.index(n) for n in wanted]
    return tuple(wanted), {n: t[rows] if n in per_layer else t for n, t in foreign.tensors.items()}


def _shown(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:20])) + (f", ... {numbers[-1]}" if len(numbers) > 20 else "")


def _dealt(foreign: Foreign, numbers: tuple[int, ...], per_layer: set[str]) -> Foreign:
    """A weight over several layers in one row, as scikit-learn sees it, dealt to its layers."""
    n, tensors = len(numbers), dict(foreign.tensors)
    for name in per_layer & tensors.keys():
        tensor = tensors[name]
        if len(tensor) != n:
            if len(tensor) != 1 or tensor.shape[1] % n:
                raise TensorInvalid(
                    f"{name} has shape {list(tensor.shape)}, uneven over {n} layers; correct --layers"
                )
            tensors[name] = tensor.reshape(n, tensor.shape[1] // n, *tensor.shape[2:])
    return replace(foreign, layers=numbers, tensors=tensors)


def _float32(tensor: Floats, name: str) -> Tensor:
    with np.errstate(over="ignore"):
        found = np.asarray(tensor).astype(np.float32)
    if not np.isfinite(found).all():
        raise NonFinite(f"tensor {name!r} does not fit float32; rescale the probe")
    return torch.from_numpy(found.copy())


def _binding(foreign: Foreign, model: ModelIdentity) -> ModelBinding:
    bound = model.binding()
    if foreign.adapter is None:
        return bound
    return bound.model_copy(update={"adapter_digest": adapter_digest(foreign.adapter)})


def _check_model(described: manifest.ProbeManifest, model: ModelIdentity) -> None:
    last = model.n_layers - 1
    if described.layers[-1] == last and not described.last_block_verified and len(described.layers) > 1:
        raise NotConvertible(
            f"block {last} is the last of {model.model_id}, whose Hugging Face hidden state is post-norm; leave it out "
            "with --layers"
        )
    check_binding(described, model)


def _history(foreign: Foreign, request: Request, numbers: tuple[int, ...]) -> list[str]:
    said = ", ".join(map(str, numbers[:40]))
    meaning = _convention(foreign, request)
    return [f"imported from {foreign.format}; its layers {said} read as {meaning}", *foreign.notes]


def _golden_inputs(n_layers: int, d_model: int) -> Tensor:
    """[N, L, d] seeded, of the size that residuals have."""
    return torch.randn(N_GOLDEN, n_layers, d_model, generator=torch.Generator().manual_seed(0))


def _label(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", " ", text)[:200] or "imported"
