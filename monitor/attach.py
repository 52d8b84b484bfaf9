"""What is to be attached: the probes, their layers and actions, checked against the model before vLLM loads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from monitor.bank import ProbeBank
from monitor.config import Settings
from monitor.errors import AttachError, ConfigurationError
from monitor.steering import VectorBank
from probes import Probe, ProbeError, load
from probes.identity import check_binding, model_identity


@dataclass(frozen=True)
class Plan:
    """The desired set, the same in every process of a server."""

    probes: tuple[Probe, ...]
    tap_layers: tuple[int, ...]
    tap_columns: int
    score_store_mib: int
    refuse: bool = True
    """Whether a server must not start unmonitored."""
    tap_norms: bool = False
    """Whether the taps measure norms even if no configured probe asks for them (cosine probes may come later)."""
    failure: str | None = None
    """Why there is nothing to attach, on a server that serves all the same."""
    vectors: tuple[Probe, ...] = ()
    """Those that requests, and probes, may steer with."""

    def vector_bank(self, d_model: int, n_layers: int) -> VectorBank | None:
        """The steering vectors laid out for a model of that width; None without any. Raises ``AttachError``."""
        return VectorBank(self.vectors, d_model, n_layers) if self.vectors else None

    def bank(self, d_model: int, n_layers: int) -> ProbeBank:
        """The probes laid out for a model of that width. Raises ``AttachError`` on a layer it has not."""
        readers = {layer: f"probe {p.manifest.name!r}" for p in self.probes for layer in p.manifest.layers}
        spare = () if self.failure is not None else self.tap_layers or quartiles(n_layers)
        layers = tuple(sorted({*spare, *readers}))
        if layers and layers[-1] >= n_layers:
            asked = readers.get(layers[-1], "PROBEWATCH_TAP_LAYERS")
            raise AttachError(
                f"{asked} asks for layer {layers[-1]}; this model has layers 0 to {n_layers - 1}: choose among them"
            )
        for probe in self.probes:
            if probe.manifest.d_model != d_model:
                raise AttachError(
                    f"probe {probe.manifest.name!r} reads d_model {probe.manifest.d_model}, the model has {d_model}; "
                    "use a probe trained on this model"
                )
        return ProbeBank(self.probes, layers, d_model, self.tap_columns, norms=self.tap_norms)


def quartiles(n_layers: int) -> tuple[int, ...]:
    """Blocks after a quarter, half and three quarters of the model: tapped by default, for probes that come later."""
    return tuple(sorted({max(0, n_layers * part // 4 - 1) for part in (1, 2, 3)}))


def make_plan(settings: Settings) -> Plan:
    """Loads and checks every artifact. Raises ``AttachError`` in one line naming the file and the fault."""
    try:
        probes = tuple(load(path) for path in settings.probes)
        vectors = tuple(load(path) for path in settings.vectors)
    except ProbeError as error:
        raise AttachError(str(error)) from error
    if not probes and not settings.tap_layers and not vectors:
        raise ConfigurationError(
            "nothing to monitor: no probe, layer or vector given; set PROBEWATCH_PROBES, PROBEWATCH_TAP_LAYERS or "
            "PROBEWATCH_VECTORS (`probewatch serve`: --probe FILE, --tap-layers 1,2, --vector FILE)"
        )
    return Plan(
        probes,
        settings.tap_layers,
        settings.tap_columns,
        settings.score_store_mib,
        settings.on_attach_failure == "refuse",
        settings.tap_norms,
        vectors=vectors,
    )


def unmonitored(settings: Settings, reason: str) -> Plan:
    """The plan of a server whose operator chose to serve even though nothing can be attached."""
    return Plan((), (), settings.tap_columns, settings.score_store_mib, refuse=False, failure=reason)


def local_model_dir(model: str, revision: str | None = None) -> Path:
    """Folder of the model's files: ``model`` itself, or its snapshot in the Hugging Face cache."""
    path = Path(model)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (OSError, ValueError) as error:
        raise AttachError(
            f"the files of {model!r} are not on this machine ({type(error).__name__}), so no probe can be matched to "
            "them; serve the model from a local folder"
        ) from error


def check_model(plan: Plan, model_dir: Path) -> None:
    """Refuses probes that belong to another model, by configuration, weights and chat template."""
    try:
        identity = model_identity(model_dir)
        for probe in (*plan.probes, *plan.vectors):
            check_binding(probe.manifest, identity)
    except ProbeError as error:
        raise AttachError(str(error)) from error
