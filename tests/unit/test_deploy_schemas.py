"""Compose and Kubernetes files against the schemas of those who read them (tests/unit/schemas), and the schemas against
faults that were put in."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from grafana.__main__ import texts

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(__file__).parent / "schemas"
DEPLOY = ROOT / "deploy"
MERGE_KEYS = {"ports": "containerPort", "volumeMounts": "mountPath"}
"""What identifies an item of a list in a strategic merge patch, where it is not the name."""


def load(*path: str) -> Any:
    return yaml.safe_load(DEPLOY.joinpath(*path).read_text())


def faults(resource: dict[str, Any], schema: str, kind: str | None = None) -> list[str]:
    """Where a file does not fit, and why."""
    found = json.loads((SCHEMAS / f"{schema}.json").read_text())
    if kind is not None:
        found = {"$defs": found["$defs"], **found["kinds"][kind]}
    errors = Draft202012Validator(found).iter_errors(resource)
    return [f"{error.json_path}: {error.message[:200]}" for error in errors]


def merged(base: Any, patch: Any, key: str = "") -> Any:
    """As kustomize merges a patch into a Deployment: maps by key, lists of maps by what names an item."""
    if isinstance(base, dict) and isinstance(patch, dict):
        both = {name: merged(base[name], patch[name], name) for name in base.keys() & patch.keys()}
        return {**base, **patch, **both}
    if isinstance(base, list) and isinstance(patch, list):
        name = MERGE_KEYS.get(key, "name")
        kept = {item[name]: item for item in base}
        for item in patch:
            kept[item[name]] = merged(kept[item[name]], item) if item[name] in kept else item
        return list(kept.values())
    return patch


def patched() -> dict[str, Any]:
    """The example's Deployment with the monitor in it; its name is its own."""
    example, patch = (
        load("kubernetes", "example", "deployment.yaml"),
        load("kubernetes", "component", "vllm-patch.yaml"),
    )
    del patch["metadata"]
    found: dict[str, Any] = merged(example, patch)
    return found


def board(name: str) -> dict[str, Any]:
    """The ConfigMap that kustomize makes of a dashboard."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {name: texts()[name]},
    }


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "compose": lambda: load("compose", "compose.yaml"),
    "operator/PodMonitor": lambda: load("kubernetes", "component", "podmonitor.yaml"),
    "operator/PrometheusRule": lambda: load("prometheus", "prometheusrule.yaml"),
    "kubernetes/Deployment": patched,
    "kubernetes/ConfigMap": lambda: board(next(iter(texts()))),
}

FAULTS = [
    ("compose", ("services", "vllm", "image"), 7),
    ("compose", ("services", "vllm", "imagee"), "typo"),
    ("compose", ("services", "grafana", "ports"), "3000"),
    ("compose", ("volumes",), ["models"]),
    ("operator/PodMonitor", ("spec", "podMetricsEndpoints", 0, "interval"), "15 seconds"),
    ("operator/PodMonitor", ("spec", "podMetricsEndpoints", 0, "pathh"), "/metrics"),
    ("operator/PodMonitor", ("spec", "selector"), None),
    ("operator/PodMonitor", ("apiVersion",), "monitoring.coreos.com/v2"),
    ("operator/PrometheusRule", ("spec", "groups", 0, "name"), ""),
    ("operator/PrometheusRule", ("spec", "groups", 0, "rules", 0, "expr"), None),
    ("operator/PrometheusRule", ("spec", "groups", 0, "rules", 0, "for"), "soon"),
    ("operator/PrometheusRule", ("spec", "groups", 0, "rules", 0, "labels"), {"severity": 1}),
    ("kubernetes/Deployment", ("spec", "replicas"), "two"),
    ("kubernetes/Deployment", ("spec", "selector"), None),
    ("kubernetes/Deployment", ("spec", "template", "spec", "containers", 0, "env", 0, "valeu"), "x"),
    ("kubernetes/Deployment", ("spec", "template", "spec", "volumes", 0, "configMap"), "artifacts"),
    ("kubernetes/ConfigMap", ("data", "x"), {"a": 1}),
]


@pytest.mark.parametrize("name", FILES)
def test_every_file_fits_the_schema_of_its_reader(name: str) -> None:
    schema, _, kind = name.partition("/")
    assert faults(FILES[name](), schema, kind or None) == []


@pytest.mark.parametrize(("name", "place", "wrong"), FAULTS)
def test_a_fault_that_is_put_in_is_found(name: str, place: tuple[str | int, ...], wrong: object) -> None:
    schema, _, kind = name.partition("/")
    broken: Any = copy.deepcopy(FILES[name]())
    inside = broken
    for step in place[:-1]:
        inside = inside[step]
    if wrong is None:
        del inside[place[-1]]
    else:
        inside[place[-1]] = wrong
    found = faults(broken, schema, kind or None)
    assert found
    assert any(str(place[-1]) in fault for fault in found), found


def test_the_patched_deployment_is_what_kustomize_would_make() -> None:
    """The merge above on the points that matter: nothing of either side is lost."""
    [container] = patched()["spec"]["template"]["spec"]["containers"]
    assert container["image"].startswith("vllm/vllm-openai:")
    assert container["ports"] == [{"containerPort": 8000, "name": "http"}]
    assert {variable["name"] for variable in container["env"]} >= {"VLLM_PLUGINS", "PROBEWATCH_ADMIN_KEY"}
    assert patched()["metadata"]["name"] == "llama"
    assert patched()["spec"]["template"]["metadata"]["labels"] == {"app": "llama", "probewatch": "on"}
