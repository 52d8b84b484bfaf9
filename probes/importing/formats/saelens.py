"""SAELens: features of a sparse autoencoder, each with weight 1: the sum of their maxima over the tokens."""

import re
from pathlib import Path
from typing import Final

import numpy as np
from safetensors import SafetensorError, safe_open

from probes.errors import FlagNeeded, MalformedArtifact, NotConvertible, TensorInvalid
from probes.importing import bounded
from probes.importing.arrays import floats
from probes.importing.foreign import Convention, Floats, Foreign, Request
from probes.method import Aggregation

CONFIG: Final = "cfg.json"
WEIGHTS: Final = "sae_weights.safetensors"
_HOOK: Final = re.compile(r"blocks\.(\d{1,5})\.hook_resid_(post|pre)")
_MEANS: Final[dict[str, Convention]] = {"post": "resid_post", "pre": "block_input"}
_ARCHITECTURES: Final = ("standard", "jumprelu")


def saelens(request: Request) -> Foreign:
    """Of a folder with cfg.json and sae_weights.safetensors, the features of `--features`.

    f_k = relu((x - b_dec) . W_enc_k + b_enc_k), or 0 where that is at most threshold_k (JumpReLU).
    """
    folder = request.path if request.path.is_dir() else request.path.parent
    config = bounded.read_json(folder / CONFIG)
    layer, convention = _where(config)
    subtracts = _check(config)
    if not request.features:
        raise FlagNeeded(
            f"{folder} is an autoencoder of {str(config.get('d_sae'))[:12]} features; say which make the probe with "
            "--features K,.."
        )
    held = _selected(folder / WEIGHTS, list(request.features), subtracts)
    encoder, encoder_bias, threshold = held
    return Foreign(
        format="saelens",
        kind="sae",
        tensors={
            "encoder": encoder[None],
            "encoder_bias": encoder_bias,
            "threshold": np.maximum(threshold, 0.0),  # a ReLU comes first
            "weight": np.ones(len(request.features)),
            "bias": np.zeros(()),
        },
        layers=(layer,),
        convention=convention,
        concept="sae-" + "-".join(map(str, request.features[:8])),
        aggregation=Aggregation(method="feature_max"),
        last_block_is_raw=True,
        notes=("each feature has weight 1; `probewatch train --kind sae` fits weights to labels",),
    )


def _where(config: dict[str, object]) -> tuple[int, Convention]:
    metadata = config.get("metadata")
    said = metadata if isinstance(metadata, dict) else config
    hook = said.get("hook_name", config.get("hook_name"))
    hit = _HOOK.fullmatch(str(hook))
    if hit is None:
        raise NotConvertible(
            f"hook {str(hook)[:60]!r} is not the residual stream; hook_resid_post and hook_resid_pre can be read"
        )
    options = said.get("model_from_pretrained_kwargs")
    if isinstance(options, dict) and options.get("center_writing_weights"):
        raise NotConvertible(
            "trained on a model with centred writing weights, whose residual stream is another; use one trained with "
            "no processing"
        )
    return int(hit[1]), _MEANS[hit[2]]


def _check(config: dict[str, object]) -> bool:
    """Whether the decoder bias is subtracted first. `NotConvertible` for what k features alone do not determine."""
    architecture = config.get("architecture", "standard")
    if architecture not in _ARCHITECTURES:
        raise NotConvertible(
            f"architecture {str(architecture)[:30]!r}: a feature depends on the others there; "
            f"{' and '.join(_ARCHITECTURES)} can be read"
        )
    function = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if function != "relu" or config.get("finetuning_scaling_factor"):
        raise NotConvertible(
            f"activation {str(function)[:30]!r} or a scaling factor behind it; a plain ReLU can be read"
        )
    normalised = config.get("normalize_activations", "none")
    if normalised not in ("none", None):
        raise NotConvertible(
            f"normalize_activations {str(normalised)[:40]!r}: it reads a normalised residual; fold it first "
            "(SAELens: fold_activation_norm_scaling_factor)"
        )
    return bool(config.get("apply_b_dec_to_input", True))


def _selected(path: Path, features: list[int], subtracts: bool) -> tuple[Floats, Floats, Floats]:
    """encoder [d, F], encoder bias [F] with the decoder's folded in, threshold [F]; only those columns are read."""
    bounded.check_regular(path)
    try:
        with bounded.mapped(path), safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if not {"W_enc", "b_enc", "b_dec"} <= names:
                raise TensorInvalid(f"{path} has no W_enc, b_enc and b_dec; fetch the file again")
            width = file.get_slice("b_enc").get_shape()[0]
            if max(features) >= width or min(features) < 0 or len(set(features)) < len(features):
                raise FlagNeeded(
                    f"features {features[:8]} of {width}; give each once with --features, 0 to {width - 1}"
                )
            encoder = floats(file.get_slice("W_enc")[:, features], "W_enc")
            bias = floats(file.get_tensor("b_enc")[features], "b_enc")
            decoder_bias = floats(file.get_tensor("b_dec"), "b_dec")
            threshold = np.zeros(len(features))
            if "threshold" in names:
                threshold = floats(file.get_tensor("threshold")[features], "threshold")
    except (SafetensorError, OSError, ValueError, IndexError, RuntimeError, TypeError, MemoryError) as error:
        raise MalformedArtifact(
            f"{path} cannot be read ({bounded.one_line(error)}); fetch it again"
        ) from None
    if decoder_bias.shape != encoder.shape[:1]:
        raise TensorInvalid(
            f"b_dec {list(decoder_bias.shape)} and W_enc {list(encoder.shape)} do not fit; fetch it again"
        )
    return encoder, bias - decoder_bias @ encoder if subtracts else bias, threshold
