"""Directions in a bare tensor: persona_vectors and refusal_direction."""

from typing import Final

import numpy as np
import torch

from probes.errors import MalformedArtifact, TensorInvalid
from probes.importing import bounded
from probes.importing.arrays import floats
from probes.importing.foreign import Foreign, Request
from probes.importing.pickles import load_torch

METADATA: Final = "direction_metadata.json"
DIRECTION: Final = "direction.pt"
_SUFFIXES: Final = ("_response_avg_diff", "_prompt_avg_diff", "_prompt_last_diff")


def is_persona(found: object) -> bool:
    """A matrix with a row for each of Hugging Face's hidden states."""
    return isinstance(found, torch.Tensor) and found.ndim == 2 and len(found) > 2


def persona_vectors(request: Request) -> Foreign:
    """`TRAIT_response_avg_diff.pt` [n_layers + 1, d]: rows are hidden_states.

    The first row is the embedding and the last one post-norm, neither of which is a raw block output: left out.
    """
    rows = floats(load_torch(request.path), "the tensor")
    if rows.ndim != 2 or len(rows) < 3:
        raise TensorInvalid(f"the tensor has shape {list(rows.shape)}; give [layers + 1, d]")
    concept = request.path.stem
    for suffix in _SUFFIXES:
        concept = concept.removesuffix(suffix)
    return Foreign(
        format="persona-vectors",
        kind="steering",
        scoring="projection",
        tensors={"direction": rows[1:-1]},
        layers=tuple(range(1, len(rows) - 1)),
        convention="hf",
        concept=concept,
        notes=(
            f"left out: hidden_states[0], the embedding, and hidden_states[{len(rows) - 1}], which is post-norm; "
            "choose layers with --layers",
        ),
    )


def refusal_direction(request: Request) -> Foreign:
    """`direction.pt` [d] and `direction_metadata.json` {pos, layer}: the input of block `layer`."""
    folder = request.path if request.path.is_dir() else request.path.parent
    layer = bounded.read_json(folder / METADATA).get("layer")
    if type(layer) is not int or layer < 0:
        raise MalformedArtifact(f"{folder / METADATA} has no layer number; fetch the folder again")
    file = folder / DIRECTION if request.path.is_dir() else request.path
    row = np.atleast_1d(floats(load_torch(file), "the direction").squeeze())
    if row.ndim != 1:
        raise TensorInvalid(f"the direction has shape {list(row.shape)}; give [d]")
    return Foreign(
        format="refusal-direction",
        kind="steering",
        scoring="projection",
        tensors={"direction": row[None]},
        layers=(layer,),
        convention="block_input",
        concept="refusal",
    )
