"""Where the files lie that come with the package."""

from __future__ import annotations

from pathlib import Path

import probes

MODEL_NAME = "concealed-ledger"


def paths() -> dict[str, object]:
    """What ``probewatch paths`` prints: the model, the artifacts made for it, dashboards and rules."""
    shipped = Path(probes.__file__).resolve().parent / "shipped"
    root = shipped.parent.parent
    return {
        "model": str(shipped / MODEL_NAME),
        "probes": _files(shipped / "probes", "*.safetensors"),
        "vectors": _files(shipped / "vectors", "*.safetensors"),
        "dashboards": _files(root / "grafana", "*.json"),
        "rules": _files(root / "deploy" / "prometheus", "*.yml"),
    }


def _files(folder: Path, pattern: str) -> list[str]:
    return sorted(str(path) for path in folder.glob(pattern))
