"""Our vectors as other tools load them."""

import io
from pathlib import Path

import torch

from probes.atomic import write_bytes
from probes.errors import NotConvertible
from probes.importing import gguf
from probes.importing.formats.vectors import ARCHITECTURE
from probes.probe import Probe

FORMATS = ("gguf", "steering-vectors")


def export(probe: Probe, path: Path, form: str) -> None:
    """Write the directions in one rename; `NotConvertible` for a probe that has none.

    gguf: `direction.N` for block N, as llama.cpp and repeng read it. steering-vectors: a `torch.save` of the fields of
    their SteeringVector: `SteeringVector(**torch.load(path, weights_only=True))`.
    """
    direction = probe.tensors.get("direction")
    if direction is None:
        raise NotConvertible(
            f"{probe.manifest.name!r} is a {probe.manifest.kind} probe; only vectors can be exported"
        )
    layers = probe.manifest.layers
    if form == "gguf":
        bound = probe.manifest.binding
        pairs: dict[str, str | int] = {
            "general.architecture": ARCHITECTURE,
            f"{ARCHITECTURE}.model_hint": "" if bound is None else bound.model_id,
            f"{ARCHITECTURE}.layer_count": len(layers),
        }
        rows = {f"direction.{n}": row.numpy() for n, row in zip(layers, direction, strict=True)}
        write_bytes(path, gguf.write(pairs, rows))
        return
    fields = {
        "layer_activations": {n: row.clone() for n, row in zip(layers, direction, strict=True)},
        "layer_type": "decoder_block",
    }
    buffer = io.BytesIO()
    torch.save(fields, buffer)
    write_bytes(path, buffer.getvalue())
