"""Vectors for several layers, numbered: GGUF control vectors, steering-vectors, CAST."""

import re
from collections.abc import Mapping
from typing import Final

import numpy as np

from probes.errors import MalformedArtifact, TensorInvalid
from probes.importing import bounded, gguf
from probes.importing.arrays import floats
from probes.importing.foreign import Floats, Foreign, Request
from probes.importing.pickles import class_name, load_torch

ARCHITECTURE: Final = "controlvector"
_LAYER: Final = r"(0|[1-9]\d{0,4})"
"""Written in one way only, so that no two names are of one layer."""
DIRECTION: Final = re.compile(rf"direction\.{_LAYER}")


def gguf_vector(request: Request) -> Foreign:
    """repeng, EasySteer, llama.cpp: `direction.N` is added to the stream after block N."""
    pairs, tensors = gguf.read(bounded.read(request.path))
    found = pairs.get("general.architecture")
    if found != ARCHITECTURE:
        raise MalformedArtifact(
            f"a GGUF file of architecture {str(found)[:40]!r}; give one of {ARCHITECTURE!r}"
        )
    strays = [name for name in tensors if not DIRECTION.fullmatch(name)]
    if strays:
        raise MalformedArtifact(f"tensor {strays[0][:40]!r} is no direction.N; llama.cpp refuses it too")
    named = {int(name.rpartition(".")[2]): tensor for name, tensor in tensors.items()}
    notes: tuple[str, ...] = ()
    if request.layers_are is None:
        notes = (
            "GGUF does not say what direction.N means; read as resid_post (after the 0-based block N), as repeng and "
            "llama.cpp do. Some writers count from 1: then add --layers-are hf",
        )
    return _directions("gguf", named, request, convention_notes=notes)


def is_steering_vectors(found: object) -> bool:
    """A pickled `SteeringVector`, its fields as a dict, or its `layer_activations`."""
    if class_name(found) == "SteeringVector":
        return True
    held = found.get("layer_activations", found) if isinstance(found, dict) else None
    return isinstance(held, dict) and bool(held) and all(type(layer) is int for layer in held)


def steering_vectors(request: Request) -> Foreign:
    """steering-vectors: layer -> what is added to the output of that block."""
    found = load_torch(request.path)
    if not is_steering_vectors(found):
        raise MalformedArtifact(
            f"{request.path} holds a {class_name(found)}; give a SteeringVector or its layer_activations"
        )
    said = found if isinstance(found, dict) else vars(found)
    kind = said.get("layer_type", "decoder_block")
    if kind != "decoder_block":
        shown = repr(kind[:40]) if isinstance(kind, str) else f"of type {type(kind).__name__}"
        raise MalformedArtifact(f"layer_type {shown} is not the residual stream; give one of decoder_block")
    return _directions("steering-vectors", said.get("layer_activations", said), request, raw=True)


def cast(request: Request) -> Foreign:
    """CAST (activation-steering) `.svec`: JSON, layer -> direction over Hugging Face's hidden_states[N + 1]."""
    held = bounded.read_json(request.path, bounded.MAX_JSON).get("directions")
    if not isinstance(held, dict) or not all(re.fullmatch(_LAYER, layer) for layer in held):
        raise MalformedArtifact(f"{request.path} has no 'directions' by layer; give a .svec file")
    note = (
        "the direction alone is taken: CAST's condition compares cos(h, tanh(P h)) with a threshold, its comparator "
        "inverted; calibrate a probe of kind concept for that"
    )
    return _directions("cast", {int(n): v for n, v in held.items()}, request, convention_notes=(note,))


def _directions(
    name: str,
    held: Mapping[int, object],
    request: Request,
    raw: bool = False,
    convention_notes: tuple[str, ...] = (),
) -> Foreign:
    found = {layer: _row(held[layer], layer) for layer in sorted(held)}
    if not found:
        raise MalformedArtifact(f"{request.path} holds no direction; fetch the file again")
    if len({row.shape for row in found.values()}) > 1:
        raise TensorInvalid("directions differ in length from layer to layer; fetch the file again")
    return Foreign(
        format=name,
        kind="steering",
        scoring="projection",
        tensors={"direction": np.stack(list(found.values()))},
        layers=tuple(found),
        convention="resid_post",
        concept=request.path.stem,
        last_block_is_raw=raw,
        notes=convention_notes,
    )


def _row(found: object, layer: int) -> Floats:
    row = np.atleast_1d(floats(found, f"the direction of layer {layer}").squeeze())
    if row.ndim != 1:
        raise TensorInvalid(f"the direction of layer {layer} has shape {list(row.shape)}; give [d]")
    return row
