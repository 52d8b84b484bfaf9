"""The formats: which one a file is in, and the reader of each."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from probes.errors import MalformedArtifact
from probes.importing import bounded
from probes.importing.foreign import Foreign, Request
from probes.importing.formats import attention, directions, estimators, heads, normed, saelens, vectors
from probes.importing.pickles import LEGACY_TORCH, load_pickle, load_torch

Reader = Callable[[Request], Foreign]
FORMATS: Final[Mapping[str, Reader]] = MappingProxyType(
    {
        "gguf": vectors.gguf_vector,
        "steering-vectors": vectors.steering_vectors,
        "cast": vectors.cast,
        "persona-vectors": directions.persona_vectors,
        "refusal-direction": directions.refusal_direction,
        "sklearn": estimators.sklearn,
        "npz": estimators.npz,
        "apollo": heads.apollo,
        "aisi": heads.aisi,
        "hallucination-probes": heads.hallucination_probes,
        "models-under-pressure": normed.models_under_pressure,
        "attention-probes": attention.attention_probes,
        "saelens": saelens.saelens,
    }
)


def detect(request: Request) -> str:
    """The format of a file or folder, by what is in it. `MalformedArtifact` with the names where it is none of them."""
    path = request.path
    folder = path if path.is_dir() else path.parent
    if (path.is_dir() or path.name in (saelens.CONFIG, saelens.WEIGHTS)) and (
        folder / saelens.WEIGHTS
    ).exists():
        return "saelens"
    if (path.is_dir() or path.name == heads.HEAD) and (folder / heads.HEAD).exists():
        return "hallucination-probes"
    if (path.is_dir() or path.suffix == ".pt") and (folder / directions.METADATA).exists():
        return "refusal-direction"
    found = None if path.is_dir() else _by_content(request)
    if found is None:
        raise MalformedArtifact(f"{path}: the format cannot be told; add --format {'|'.join(FORMATS)}")
    return found


def _by_content(request: Request) -> str | None:
    start = bounded.read(request.path)[:16]
    if start[:4] == b"GGUF":
        return "gguf"
    if start[:1] == b"{":
        return "cast"
    if start[:2] == b"PK" and all(name.endswith(".npy") for name in bounded.check_zip(request.path)):
        return "npz"
    if start[:2] == b"PK" or start.startswith(LEGACY_TORCH):
        return _of_torch(load_torch(request.path))
    if start[:1] in (b"\x80", b"x") or start[:2] == b"\x1f\x8b":
        return _of_pickle(load_pickle(bounded.read(request.path)))
    return None


def _of_torch(found: object) -> str | None:
    tests: tuple[tuple[str, Callable[[object], bool]], ...] = (
        ("steering-vectors", vectors.is_steering_vectors),
        ("attention-probes", attention.is_attention_probe),
        ("aisi", heads.is_aisi),
        ("apollo", heads.is_apollo),
        ("persona-vectors", directions.is_persona),
    )
    return next((name for name, test in tests if test(found)), None)


def _of_pickle(found: object) -> str | None:
    if heads.is_apollo(found):
        return "apollo"
    return "models-under-pressure" if normed.is_under_pressure(found) else "sklearn"
