"""models-under-pressure: a linear head on what a block reads after its RMSNorm.

    score = w . (g x / sqrt(mean(x^2) + eps)) + b

with the norm's gain g and eps from the model's own files. That is a logit lens (`probes.kinds.lens`) that tracks one
row, w g with bias b, against a row of zeros: exact.
"""

from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError, safe_open

from probes.errors import BindingError, FlagNeeded, MalformedArtifact, NotConvertible, TensorInvalid
from probes.importing import bounded
from probes.importing.arrays import floats
from probes.importing.foreign import Floats, Foreign, Request
from probes.importing.formats import estimators
from probes.importing.pickles import Placeholder, class_name, load_pickle, origin

PACKAGE: Final = "models_under_pressure."
_GAIN: Final = "model.layers.{}.input_layernorm.weight"
_OFFSETS: Final = {"llama": 0.0, "mistral": 0.0, "qwen2": 0.0, "qwen3": 0.0, "gemma": 1.0, "gemma2": 1.0}
"""Model types whose blocks begin with an RMSNorm, and what is added to its stored weight."""


def is_under_pressure(found: object) -> bool:
    """A probe object of that package."""
    return origin(found).startswith(PACKAGE)


def models_under_pressure(request: Request) -> Foreign:
    """A pickled `SklearnProbe` that averages over tokens, read at the input of block `--layers`."""
    found = load_pickle(bounded.read(request.path))
    if not is_under_pressure(found) or class_name(found) != "SklearnProbe":
        raise NotConvertible(
            f"{class_name(found)}: a SklearnProbe is a linear head; its other probes are not converted"
        )
    _check_averages(vars(found).get("aggregator"))
    if request.model is None or request.layers is None or len(request.layers) != 1:
        raise FlagNeeded(
            "this probe reads a block's input after its RMSNorm; add --model DIR, for its norm, and --layers L"
        )
    head = estimators.estimator(vars(found).get("_classifier"), request, "models-under-pressure")
    if head.kind != "logistic":
        raise MalformedArtifact(
            f"a head of kind {head.kind}, not a binary LogisticRegression; fetch the file again"
        )
    gain, epsilon = _norm(request.model, request.layers[0])
    row = head.tensors["weight"]
    if row.shape[1] != len(gain):
        raise TensorInvalid(
            f"the head has {row.shape[1]} weights, the model's norm {len(gain)}; give its own model"
        )
    return Foreign(
        format=head.format,
        kind="logit_lens",
        scoring="rms_norm",
        tensors={
            "tracked": (row * gain)[..., None],
            "others": np.zeros((1, len(gain), 1)),
            "tracked_bias": head.tensors["bias"].reshape(1),
            "others_bias": np.zeros(1),
            "epsilon": np.asarray(epsilon),
        },
        layers=request.layers,
        convention="block_input",
        concept="high-stakes",
        last_block_is_raw=True,
        notes=("a logit lens of one row: the RMSNorm before the block, folded in from the model's files",),
    )


def _check_averages(aggregator: object) -> None:
    """Functions are stored by name: `Preprocessors.mean` averages the activations over tokens."""
    said = vars(aggregator) if isinstance(aggregator, Placeholder) else {}
    name = _function_name(said.get("preprocessor"))
    if name.rpartition(".")[2] != "mean":
        raise NotConvertible(
            f"its preprocessor is {name[:60]!r}; only the mean over tokens is a running mean of scores"
        )


def _function_name(found: object) -> str:
    """A function is pickled as its name, for which a placeholder's class stands."""
    return found.origin if isinstance(found, type) and issubclass(found, Placeholder) else ""


def _norm(model: Path, layer: int) -> tuple[Floats, float]:
    """(gain [d], eps) of the norm before a block."""
    config = bounded.read_json(model / "config.json")
    offset, epsilon = _OFFSETS.get(str(config.get("model_type"))), config.get("rms_norm_eps")
    if offset is None or not isinstance(epsilon, float):
        raise BindingError(
            f"{model} is a {config.get('model_type')}; the norm is known of {', '.join(_OFFSETS)}"
        )
    name = _GAIN.format(layer)
    for path in sorted(model.glob("*.safetensors")):
        bounded.check_regular(path)
        try:
            with bounded.mapped(path), safe_open(path, framework="pt") as file:
                if name in file.keys():  # noqa: SIM118  no mapping
                    return floats(file.get_tensor(name), name) + offset, epsilon
        except (SafetensorError, OSError, MemoryError) as error:
            raise BindingError(f"{path} cannot be read ({bounded.one_line(error)}); fetch it again") from None
    raise BindingError(f"{model} has no tensor {name}; correct --layers, or give the model's folder")
