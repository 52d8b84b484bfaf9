"""Where the files lie that come with the package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

MODEL_NAME = "concealed-ledger"


def paths() -> dict[str, object]:
    """What ``probewatch paths`` prints: the model, the artifacts made for it, dashboards and rules."""
    package = Path(__file__).resolve().parent
    found = importlib.util.find_spec(
        "probes"
    )  # not imported: that takes seconds, and a path is all that is wanted
    assert found is not None
    assert found.origin is not None
    shipped = Path(found.origin).resolve().parent / "shipped"
    return {
        "model": str(shipped / MODEL_NAME),
        "probes": _files(shipped / "probes", "*.safetensors"),
        "vectors": _files(shipped / "vectors", "*.safetensors"),
        "dashboards": _installed(package / "dashboards", package.parent / "grafana", "*.json"),
        "rules": _installed(package / "rules", package.parent / "deploy" / "prometheus", "*.yml"),
    }


def _installed(wheel: Path, checkout: Path, pattern: str) -> list[str]:
    """Dashboards and rules lie beside their sources in a checkout, and in the package once installed."""
    return _files(wheel if wheel.is_dir() else checkout, pattern)


def _files(folder: Path, pattern: str) -> list[str]:
    return sorted(str(path) for path in folder.glob(pattern))
