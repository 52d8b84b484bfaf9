"""What is compared: stock vLLM without any plugin, and vLLM with the monitor doing less or more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.model import BenchModel
from bench.peers import PEERS, why_not

Layers = Literal["one", "three", "all"]
STOCK, AGAIN = "stock", "stock again"


@dataclass(frozen=True)
class Arm:
    """One way to run the engine."""

    name: str
    probes: int = 0
    layers: Layers = "three"
    monitored: bool = True
    plugins: str = "probewatch"
    """VLLM_PLUGINS of its processes."""
    vector: bool = False
    """A steering vector is loaded."""
    steered: bool = False
    """Every request asks for it, each with a scale of its own."""
    gated: bool = False
    """The first probe gates it."""
    prompt: bool = False
    """Prompt tokens count for the probes, not answers alone."""
    expose: str = ""
    """PROBEWATCH_EXPOSE: what replies over HTTP tell; for ``bench.serving`` alone."""
    peer: str | None = None
    """Of ``bench.peers``: another project in the monitor's place."""
    columns: int = 0
    """Room in every tap; 0: what the server takes by itself."""

    @property
    def wish(self) -> dict[str, Any] | None:
        """What every request asks for (``SamplingParams.extra_args``); ``{scale}`` is filled in, another for each."""
        if self.steered:
            return {"probewatch_steer": "bench:{scale}"}
        return PEERS[self.peer].wish or None if self.peer else None

    def environment(self, model: BenchModel, folder: Path) -> dict[str, str]:
        """Settings of the engine's process; artifacts are written into ``folder``."""
        if not self.monitored:
            return {}
        layers = tapped(self.layers, model.layers)
        settings = {"PROBEWATCH_TAP_LAYERS": ",".join(map(str, layers))}
        if self.expose:
            settings["PROBEWATCH_EXPOSE"] = self.expose
        if self.columns:
            settings["PROBEWATCH_TAP_COLUMNS"] = str(self.columns)
        if self.probes:
            files = model.write_probes(
                folder / self.name.replace(" ", "-"), self.probes, layers, self.gated, self.prompt
            )
            settings["PROBEWATCH_PROBES"] = ",".join(map(str, files))
        if self.vector:
            settings["PROBEWATCH_VECTORS"] = str(model.write_vector(folder, layers[-1]))
        return settings


def tapped(layers: Layers, depth: int) -> tuple[int, ...]:
    """0-based blocks; the last one stays out, as it does for shipped probes."""
    if layers == "all":
        return tuple(range(depth - 1))
    if layers == "one":
        return (depth // 2,)
    return tuple(depth * part // 4 - 1 for part in (1, 2, 3))


ARMS = {
    arm.name: arm
    for arm in (
        Arm(STOCK, monitored=False, plugins=""),
        Arm(AGAIN, monitored=False, plugins=""),
        Arm("installed", monitored=False),
        Arm("idle"),
        Arm("idle wide", columns=334),  # as wide as 1000 probes make three taps
        Arm("1 probe", probes=1, layers="one"),
        Arm("8 probes", probes=8),
        Arm("8 probes one layer", probes=8, layers="one"),
        Arm("8 probes all layers", probes=8, layers="all"),
        Arm("8 probes prompt", probes=8, prompt=True),
        Arm("8 probes streamed", probes=8, expose="verdict"),
        Arm("64 probes", probes=64),
        Arm("1000 probes", probes=1000),
        Arm("1000 probes one layer", probes=1000, layers="one"),
        Arm("vector loaded", layers="one", vector=True),
        Arm("steered", layers="one", vector=True, steered=True),
        Arm("gated", probes=1, layers="one", vector=True, gated=True),
        *(Arm(name, monitored=False, plugins=peer.plugin, peer=name) for name, peer in PEERS.items()),
    )
}
OFFLINE = [name for name, arm in ARMS.items() if not arm.expose]
"""Those that do something in an engine without a server."""


def able(arms: Sequence[str]) -> list[str]:
    """Those that can run here; of the others a line says why not."""
    found = []
    for name in arms:
        if ARMS[name].peer and (reason := why_not(name)):
            print(reason, flush=True)
        else:
            found.append(name)
    return found
