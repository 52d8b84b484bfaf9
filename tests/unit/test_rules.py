"""Recording rules and alerts: fresh, naming only what exists, each with a runbook and with tests that it passes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import program

from deploy.prometheus.generate import FOLDER, alerts, main, recorded, stale, texts, undefined
from deploy.prometheus.promql import ENGINE, faults, read, series
from monitor.catalogue import CATALOGUE
from monitor.receivers import ALERT_NAME
from monitor.shipped import paths

RUNBOOKS = FOLDER.parents[1] / "docs" / "runbooks"
HEADINGS = ["What fired", "What it means", "Check first", "Mend", "Ignore when"]
ALERTS = {alert.name: alert for alert in alerts()}
ALWAYS = {"ProbewatchWatchdog"}
"""Alerts that have no case in which they stay quiet."""
PUSHED = {ALERT_NAME}
"""Alerts that servers push themselves; no rule makes them."""


def groups(name: str) -> list[dict[str, Any]]:
    found = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return list(found["spec"]["groups"] if name.startswith("prometheusrule") else found["groups"])


def promtool_tests() -> list[Path]:
    return sorted((FOLDER / "tests").glob("*.yml"))


def cases(files: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """(alert, whether it is expected to fire) of each case in test files."""
    for text in files.values():
        for group in yaml.safe_load(text)["tests"]:
            for case in group.get("alert_rule_test", []):
                yield case["alertname"], bool(case["exp_alerts"])


def untested(names: set[str], files: Mapping[str, str]) -> set[str]:
    """What no case shows: ``name fires`` and ``name stays quiet``."""
    wanted = {(name, fires) for name in names for fires in (True, False)} - {(name, False) for name in ALWAYS}
    missing = wanted - set(cases(files))
    return {f"{name} {'fires' if fires else 'stays quiet'}" for name, fires in missing}


def test_the_files_are_fresh_and_name_only_what_the_code_defines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_file_and_a_name_that_is_gone_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in texts().items():
        (tmp_path / name).write_text(text)
    assert stale(texts(), tmp_path) == []
    (tmp_path / "rules.yml").write_text("groups: []\n")
    assert stale(texts(), tmp_path) == [f"{tmp_path / 'rules.yml'}: stale; run `make dashboards`"]
    # Another dict: one that is put back into the catalogue would come last there.
    fewer = {name: metric for name, metric in CATALOGUE.items() if name != "probewatch_attached"}
    monkeypatch.setattr("deploy.prometheus.promql.CATALOGUE", fewer)
    assert any(
        line.startswith("ProbewatchNotAttached: probewatch_attached: no metric") for line in undefined()
    )


def test_both_files_hold_the_same_rules() -> None:
    assert groups("rules.yml") == groups("prometheusrule.yaml")
    resource = yaml.safe_load((FOLDER / "prometheusrule.yaml").read_text(encoding="utf-8"))
    assert (resource["apiVersion"], resource["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")


def test_recorded_series_carry_the_labels_that_are_declared() -> None:
    """The level of a recording rule is what its aggregations keep."""
    rules = {
        rule["record"]: rule["expr"]
        for group in groups("rules.yml")
        for rule in group["rules"]
        if "record" in rule
    }
    assert rules.keys() == recorded().keys()
    for name, expression in rules.items():
        assert re.fullmatch(r"\w+:probewatch_\w+:\w+", name), name
        kept = read(expression).groupings
        assert kept == set(recorded()[name]) or not kept, name


def test_alerts_are_named_and_annotated_alike() -> None:
    found = [rule for group in groups("rules.yml") for rule in group["rules"] if "alert" in rule]
    assert [rule["alert"] for rule in found] == list(ALERTS)
    for rule in found:
        name, notes = rule["alert"], rule["annotations"]
        assert re.fullmatch(r"Probewatch([A-Z][a-z]+)+", name)
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert {"summary", "description", "runbook_url", "dashboard_url"} <= notes.keys(), name
        assert notes["runbook_url"] == f"docs/runbooks/{name}.md"
        assert re.match(r"/d/probewatch-(overview|probes|fleet|actions)\b", notes["dashboard_url"])


def test_what_an_alert_says_of_its_labels_it_has() -> None:
    """A label in a text that the expression does not keep would be empty when it fires."""
    known = series(recorded())
    for rule in ALERTS.values():
        text = " ".join(rule.rule("docs", "")["annotations"].values())
        named = set(re.findall(r"\$labels\.(\w+)", text))
        available = set().union(*(known[name] for name, _ in read(rule.expr).selectors)) if named else set()
        assert named <= available, rule.name


def test_urls_can_be_made_absolute(tmp_path: Path) -> None:
    options = [
        "--to",
        str(tmp_path),
        "--docs-url",
        "https://git.example/docs/",
        "--grafana-url",
        "https://g.example",
    ]
    assert main(options) == 0
    text = (tmp_path / "rules.yml").read_text()
    assert "runbook_url: https://git.example/docs/runbooks/ProbewatchTapsDead.md" in text
    assert "dashboard_url: https://g.example/d/probewatch-fleet" in text
    assert "runbook_url: docs/" not in text


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    pages = {path.stem: path.read_text(encoding="utf-8") for path in RUNBOOKS.glob("*.md")}
    assert pages.keys() - {"README"} == ALERTS.keys() | PUSHED
    for name in ALERTS.keys() | PUSHED:
        assert pages[name].startswith(f"# {name}\n"), name
        assert re.findall(r"^## (.*)$", pages[name], re.MULTILINE) == HEADINGS, name
        assert f"({name}.md)" in pages["README"], name
        severities = {ALERTS[name].severity} if name in ALERTS else {"critical", "warning"}
        assert all(f"**{severity}**" in pages[name].splitlines()[2] for severity in severities), name


def test_runbooks_name_only_metrics_that_exist() -> None:
    known = set(series(recorded())) | set(CATALOGUE)
    for page in RUNBOOKS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"`((?:probewatch_\w+|vllm:\w+))", text))
        assert named <= known, (page.name, named - known)
        for expression in re.findall(r"^```promql\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            assert faults(expression, series(recorded())) == [], page.name


def test_every_alert_is_shown_firing_and_not_firing() -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in promtool_tests()}
    assert untested(set(ALERTS), files) == set()
    assert {name for name, _ in cases(files)} <= ALERTS.keys(), "a test of an alert that does not exist"
    offender = "tests:\n- alert_rule_test:\n  - {alertname: A, eval_time: 1m, exp_alerts: []}\n"
    assert untested({"A"}, {"offender.yml": offender}) == {"A fires"}


def test_alerts_about_an_engine_say_which() -> None:
    """Two instances that fail alike must not reach Alertmanager as one alert."""
    fleetwide = {
        "ProbewatchFlagBurnFast",
        "ProbewatchFlagBurnSlow",
        "ProbewatchNothingMonitored",
        "ProbewatchProbesDiffer",
    }
    for name in ALERTS.keys() - fleetwide - ALWAYS:
        first = ALERTS[name].expr.split("\nand")[0].split("\nunless")[0]
        kept = read(first).groupings or set(ENGINE)
        assert {"job", "instance"} <= kept, name


def test_promtool_finds_the_rules_clean() -> None:
    command = [program("promtool"), "check", "rules", "--lint=all", "--lint-fatal", str(FOLDER / "rules.yml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.thorough
@pytest.mark.parametrize("path", promtool_tests(), ids=lambda path: path.stem)
def test_promtool_sees_the_alerts_fire_and_not_fire(path: Path) -> None:
    result = subprocess.run(
        [program("promtool"), "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.thorough
def test_promtool_fails_where_an_alert_never_fires(tmp_path: Path) -> None:
    rules = yaml.safe_load((FOLDER / "rules.yml").read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["expr"] = "vector(1) > 2"
    (tmp_path / "tests").mkdir()
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    test = shutil.copy(FOLDER / "tests" / "dying.yml", tmp_path / "tests" / "dying.yml")
    result = subprocess.run(
        [program("promtool"), "test", "rules", test], capture_output=True, text=True, check=False
    )
    said = result.stdout + result.stderr
    assert result.returncode != 0
    expected = {name for name, fires in cases({"dying.yml": test.read_text()}) if fires}
    assert expected == {name for name in expected if f"alertname: {name}," in said}


def test_probewatch_paths_lists_what_prometheus_can_load() -> None:
    """The operator's file, and promtool's tests, are no rule files."""
    assert paths()["rules"] == [str(FOLDER / "rules.yml")]
