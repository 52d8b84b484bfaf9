"""Linear heads over a layer: Apollo's detectors, AISI's lie detectors, hallucination_probes."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from probes.errors import MalformedArtifact, NotConvertible, TensorInvalid
from probes.importing import bounded
from probes.importing.arrays import floats
from probes.importing.foreign import Floats, Foreign, Request
from probes.importing.pickles import load_pickle, load_torch
from probes.kinds import fold_scaling
from probes.method import Aggregation

HEAD: Final = "probe_head.bin"
HEAD_CONFIG: Final = "probe_config.json"
ADAPTER: Final = "adapter_config.json"


def is_apollo(found: object) -> bool:
    """A dict with layers and directions."""
    return isinstance(found, dict) and {"layers", "directions"} <= found.keys()


def apollo(request: Request) -> Foreign:
    """`detector.pt` (2502.03407): ((x - mean) / scale) . direction over hidden_states[layer], no intercept."""
    data = bounded.read(request.path)
    found = load_torch(request.path) if data[:2] == b"PK" else load_pickle(data)
    if not isinstance(found, dict) or not is_apollo(found):
        raise MalformedArtifact(f"{request.path} has no layers and directions; give a detector.pt")
    layers = found["layers"]
    if not isinstance(layers, list | tuple) or not all(type(n) is int and n >= 0 for n in layers):
        raise MalformedArtifact(f"{request.path}: layers are no list of numbers; fetch the file again")
    weight = floats(found["directions"], "directions")
    if weight.ndim != 2 or len(weight) != len(layers):
        raise TensorInvalid(f"directions {list(weight.shape)} for {len(layers)} layers; give [L, d]")
    weight, bias = folded(weight, 0.0, found.get("scaler_mean"), found.get("scaler_scale"))
    several = "Apollo averages over layers, here they are summed: the score is L times theirs"
    return Foreign(
        format="apollo",
        kind="logistic",
        tensors={"weight": weight, "bias": np.asarray(bias)},
        layers=tuple(layers),
        convention="hf",
        concept="deception",
        notes=(several,) if len(layers) > 1 else (),
    )


def is_aisi(found: object) -> bool:
    """A dict with state_dict and hyperparams."""
    return isinstance(found, dict) and {"state_dict", "hyperparams"} <= found.keys()


def aisi(request: Request) -> Foreign:
    """`probe.pt` {state_dict, hyperparams}: a linear head. Which of a block's tensors it reads is undocumented."""
    found = load_torch(request.path)
    if not isinstance(found, dict) or not is_aisi(found) or not isinstance(found["state_dict"], Mapping):
        raise MalformedArtifact(f"{request.path} has no state_dict and hyperparams; give a probe.pt")
    said = found["hyperparams"] if isinstance(found["hyperparams"], dict) else {}
    layer = said.get("layer", said.get("layer_idx"))
    weight, bias = linear_head(found["state_dict"])
    return Foreign(
        format="aisi",
        kind="logistic",
        tensors={"weight": weight, "bias": bias},
        layers=(layer,) if type(layer) is int and layer >= 0 else None,
        convention=None,
        concept="deception",
    )


def hallucination_probes(request: Request) -> Foreign:
    """`probe_head.bin` {weight, bias} and `probe_config.json` {layer_idx}: a head on the output of that block.

    Each token has a verdict of its own there, so a response has its highest.
    """
    folder = request.path if request.path.is_dir() else request.path.parent
    layer = bounded.read_json(folder / HEAD_CONFIG).get("layer_idx")
    if type(layer) is not int or layer < 0:
        raise MalformedArtifact(f"{folder / HEAD_CONFIG} has no layer_idx; fetch the folder again")
    found = load_torch(folder / HEAD)
    if not isinstance(found, Mapping):
        raise MalformedArtifact(f"{folder / HEAD} holds no state_dict; fetch the folder again")
    weight, bias = linear_head(found)
    return Foreign(
        format="hallucination-probes",
        kind="logistic",
        tensors={"weight": weight, "bias": bias},
        layers=(layer,),
        convention="resid_post",
        concept="hallucination",
        aggregation=Aggregation(method="max"),
        last_block_is_raw=True,
        adapter=folder if (folder / ADAPTER).exists() else None,
    )


def linear_head(state: Mapping[str, Any]) -> tuple[Floats, Floats]:
    """weight [1, D] and bias of a state_dict with one linear layer of one output."""
    weights = [name for name in state if str(name).endswith("weight")]
    biases = [name for name in state if str(name).endswith("bias")]
    if len(weights) != 1 or len(biases) > 1:
        raise NotConvertible(
            f"{len(weights)} weights and {len(biases)} biases, where a linear head has one; it is no linear probe"
        )
    weight = floats(state[weights[0]], "weight").reshape(-1)
    shape = list(np.shape(state[weights[0]]))
    if shape not in ([len(weight)], [1, len(weight)]):
        raise NotConvertible(f"the head's weight has shape {shape}; one output [1, d] is a linear probe")
    bias = floats(state[biases[0]], "bias").reshape(-1) if biases else np.zeros(1)
    if len(bias) != 1:
        raise TensorInvalid(f"the head's bias has {len(bias)} numbers; give one")
    return weight[None], bias[0]


def folded(weight: Floats, bias: float, mean: object, scale: object) -> tuple[Floats, float]:
    """The same score from the raw residual; mean and scale as stored, None: not scaled."""
    mu = np.zeros_like(weight) if mean is None else floats(mean, "the scaler's mean")
    sigma = np.ones_like(weight) if scale is None else floats(scale, "the scaler's scale")
    if mu.size != weight.size or sigma.size != weight.size:
        raise TensorInvalid(
            f"the scaler has {mu.size} means and {sigma.size} scales for {weight.size} weights; give one for each"
        )
    if not (sigma > 0).all():
        raise TensorInvalid("the scaler has a scale of 0 or less; fetch the file again")
    return fold_scaling(weight, bias, mu.reshape(weight.shape), sigma.reshape(weight.shape))
