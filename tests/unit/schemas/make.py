"""Writes the schemas beside this file anew, from the packages that README.md names; the tests do not need those."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KUBERNETES = "1.32.0"
KINDS = {"Deployment": "io.k8s.api.apps.v1.Deployment", "ConfigMap": "io.k8s.api.core.v1.ConfigMap"}
WORDS = {"description", "title", "default", "examples"}
"""Keywords that check nothing, where they are no objects and so no names of fields."""


def bare(schema: Any) -> Any:
    """Without what only a reader needs."""
    if isinstance(schema, list):
        return [bare(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {k: bare(v) for k, v in schema.items() if not (k in WORDS and not isinstance(v, dict))}


def names(schema: Any) -> Iterator[str]:
    """Of all definitions that a schema refers to."""
    return iter(re.findall(r'"\$ref": "[^"]*#/\$defs/([^"]+)"', json.dumps(schema)))


def needed(roots: list[str], definitions: dict[str, Any]) -> dict[str, Any]:
    """The roots and whatever they refer to."""
    found: dict[str, Any] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = definitions[name]
            waiting.extend(names(found[name]))
    return dict(sorted(found.items()))


def compose() -> dict[str, Any]:
    """The Compose specification's own."""
    vendored = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    found: dict[str, Any] = bare(json.loads((vendored / "compose-spec.json").read_text()))
    return found


def kubernetes() -> dict[str, Any]:
    """The API server's, in the form in which an unknown field is an error."""
    folder = (
        importlib.resources.files("kubernetes_validate")
        / "kubernetes-json-schema"
        / f"v{KUBERNETES}-local-strict"
    )
    every = json.loads((folder / "_definitions.json").read_text())["$defs"]
    text = json.dumps(bare(needed(list(KINDS.values()), every))).replace("/api/_definitions.json#", "#")
    return {
        "$defs": json.loads(text),
        "kinds": {kind: {"$ref": f"#/$defs/{name}"} for kind, name in KINDS.items()},
    }


def operator() -> dict[str, Any]:
    """The operator's custom resources; an unknown field is an error, as `kubectl --validate=strict` has it."""
    from cloudcoil.models.prometheus_operator import v1
    from pydantic.json_schema import models_json_schema

    chosen = {"PodMonitor": v1.PodMonitor, "PrometheusRule": v1.PrometheusRule}
    by_model, made = models_json_schema([(model, "validation") for model in chosen.values()], by_alias=True)
    definitions = {name: _strict(one) for name, one in bare(made)["$defs"].items()}
    return {
        "$defs": definitions,
        "kinds": {kind: bare(by_model[(model, "validation")]) for kind, model in chosen.items()},
    }


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "additionalProperties": False} if "properties" in schema else schema


if __name__ == "__main__":
    for name, made in (("compose", compose()), ("kubernetes", kubernetes()), ("operator", operator())):
        (HERE / f"{name}.json").write_text(json.dumps(made, separators=(",", ":")) + "\n")
