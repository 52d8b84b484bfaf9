"""Which model is this, cheaply, by digests; and whether a probe fits it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from probes.errors import BindingError, DimensionMismatch, LayerMismatch, ModelMismatch, Unbound
from probes.manifest import ModelBinding, ProbeManifest

_VOLATILE: Final = frozenset(
    {
        "transformers_version",
        "_name_or_path",
        "torch_dtype",
        "dtype",
        "_commit_hash",
        "use_cache",
        "_attn_implementation",
    }
    | {"_attn_implementation_autoset", "output_hidden_states", "output_attentions", "return_dict"}
)
"""Keys of config.json that change without the model changing."""
_MAX_HEADER: Final = 100 * 2**20
_BLOCK: Final = 64 * 1024
_SAMPLES: Final = 8


@dataclass(frozen=True)
class ModelIdentity:
    """What a probe is bound to."""

    model_id: str
    config_digest: str
    chat_template_digest: str | None
    """None: the model has no chat template."""
    weights_digest: str | None
    """None: no safetensors files beside the configuration."""
    d_model: int
    n_layers: int

    def binding(self) -> ModelBinding:
        """The identity as it is stored in a manifest."""
        return ModelBinding(
            model_id=self.model_id,
            config_digest=self.config_digest,
            chat_template_digest=self.chat_template_digest,
            weights_digest=self.weights_digest,
        )


def model_identity(model_dir: Path) -> ModelIdentity:
    """Identity of the model in a local directory. `BindingError` where its config.json is unusable."""
    config = _json(model_dir / "config.json")
    text = config.get("text_config")
    shape = text if isinstance(text, dict) else config
    return ModelIdentity(
        model_id=_model_id(model_dir),
        config_digest=_digest_json({k: v for k, v in config.items() if k not in _VOLATILE}),
        chat_template_digest=_chat_template_digest(model_dir),
        weights_digest=_weights_digest(model_dir),
        d_model=_size(shape, ("hidden_size", "n_embd", "d_model"), model_dir),
        n_layers=_size(shape, ("num_hidden_layers", "n_layer", "num_layers"), model_dir),
    )


def adapter_digest(adapter_dir: Path) -> str:
    """Digest of a LoRA adapter's folder. `BindingError` where it holds no configuration or no safetensors."""
    weights = _weights_digest(adapter_dir)
    if weights is None:
        raise BindingError(f"{adapter_dir} holds no safetensors file; give the folder of a LoRA adapter")
    return _digest_json({"config": _json(adapter_dir / "adapter_config.json"), "weights": weights})


def check_binding(manifest: ProbeManifest, identity: ModelIdentity) -> None:
    """Raise the `BindingError` that says why the probe does not fit the model; return where it does.

    Names may differ (a path, a mirror): configuration, chat template and weights decide. Weights and
    template are compared where both sides know them.
    """
    probe, model = f"probe {manifest.name!r}", identity.model_id
    bound = manifest.binding
    if bound is None:
        raise Unbound(f"{probe} is bound to no model; import or calibrate it again with --model {model}")
    if manifest.d_model != identity.d_model:
        raise DimensionMismatch(
            f"{probe} reads d_model {manifest.d_model}, {model} has {identity.d_model}; "
            f"use a probe trained on {model}"
        )
    last = identity.n_layers - 1
    if manifest.layers[-1] > last:
        raise LayerMismatch(
            f"{probe} reads layer {manifest.layers[-1]}, {model} has layers 0 to {last}; "
            f"use a probe trained on {model}"
        )
    if manifest.layers[-1] == last and not manifest.last_block_verified:
        raise LayerMismatch(
            f"{probe} reads layer {last}, the last block of {model}, "
            f"whose Hugging Face hidden state is post-norm; train it on layer {last - 1} or below"
        )
    pairs = (
        ("configuration", bound.config_digest, identity.config_digest),
        ("weights", bound.weights_digest, identity.weights_digest),
        ("chat template", bound.chat_template_digest, identity.chat_template_digest),
    )
    for what, expected, found in pairs:
        if expected is not None and found is not None and expected != found:
            raise ModelMismatch(
                f"{probe} is bound to {bound.model_id} with {what} {expected[:12]}.., "
                f"{model} has {found[:12]}..; serve {bound.model_id}, or calibrate it again"
            )


def _model_id(model_dir: Path) -> str:
    """`org/name` for a directory of the Hugging Face cache, otherwise the directory's own name."""
    path = model_dir.resolve()
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return path.name


def _json(path: Path) -> dict[str, object]:
    try:
        _refuse_to_wait(path)
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise BindingError(f"{path} is unreadable ({reason}); give a Hugging Face model") from None
    if not isinstance(value, dict):
        raise BindingError(f"{path} holds a {type(value).__name__}, not an object; give a Hugging Face model")
    return value


def _refuse_to_wait(path: Path) -> None:
    """A pipe among the files of a folder that came from elsewhere would be waited for."""
    if path.is_fifo():
        raise OSError("a pipe")


def _digest_json(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _size(config: dict[str, object], names: tuple[str, ...], model_dir: Path) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise BindingError(f"{model_dir}/config.json has none of {', '.join(names)}; give a decoder-only model")


def _chat_template_digest(model_dir: Path) -> str | None:
    template = model_dir / "chat_template.jinja"
    if template.is_file():
        return hashlib.sha256(template.read_bytes()).hexdigest()
    settings = model_dir / "tokenizer_config.json"
    inline = _json(settings).get("chat_template") if settings.is_file() else None
    if inline is None:
        return None
    # A single inline template is digested as its own file would be: moving it must not unbind a probe.
    return hashlib.sha256(inline.encode()).hexdigest() if isinstance(inline, str) else _digest_json(inline)


def _weights_digest(model_dir: Path) -> str | None:
    """Names, sizes, headers and a few blocks of each safetensors file: no need to read 140 GB."""
    files = sorted(model_dir.glob("*.safetensors"))
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        try:
            _refuse_to_wait(path)
            _add_file(digest, path)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise BindingError(f"{path} is unreadable ({reason}); give a whole folder of weights") from None
    return digest.hexdigest()


def _add_file(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}:{size}\n".encode())
    with path.open("rb") as file:
        length = file.read(8)
        digest.update(length + file.read(min(int.from_bytes(length, "little"), _MAX_HEADER)))
        for i in range(_SAMPLES):
            file.seek(max(0, size - _BLOCK) * (i + 1) // _SAMPLES)
            digest.update(file.read(_BLOCK))
