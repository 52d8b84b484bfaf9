"""The dashboards: fresh, naming only what exists, opening from vLLM's menu with its variables, and valid PromQL."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import program

from deploy.prometheus.promql import ENGINE, faults, read, series
from grafana.__main__ import BOARDS, FOLDER, expressions, flat, main, stale, texts, undefined
from monitor.catalogue import CATALOGUE
from monitor.shipped import paths

PAGE = (FOLDER.parent / "docs" / "dashboards.md").read_text(encoding="utf-8")
DASHBOARDS: dict[str, Any] = {name: json.loads(text) for name, text in texts().items()}
KNOWN = series()
BUILT_IN = {"__rate_interval": "1m", "__range": "1h"}

each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS.keys())


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel that draws something."""
    return (panel for panel in flat(dashboard["panels"]) if panel["type"] != "row")


def substituted(expression: str) -> str:
    """A query as Prometheus would get it."""
    return re.sub(
        r"\$(\w+)", lambda match: BUILT_IN.get(match[1], "5m" if match[1] == "window" else ".*"), expression
    )


def links(dashboard: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """(panel, URL) of each data link."""
    for panel in panels(dashboard):
        config = panel.get("fieldConfig", {})
        found = list(config.get("defaults", {}).get("links", []))
        for override in config.get("overrides", []):
            found += [link for p in override["properties"] if p["id"] == "links" for link in p["value"]]
        yield from ((panel, link["url"]) for link in found)


def test_the_files_are_fresh_and_name_only_what_the_code_defines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_a_missing_and_a_foreign_file_are_caught(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    assert stale(tmp_path) == []
    first, second, *_ = DASHBOARDS
    (tmp_path / first).write_text((tmp_path / first).read_text().replace("30s", "5s", 1))
    (tmp_path / second).unlink()
    (tmp_path / "mine.json").write_text("{}")
    assert stale(tmp_path) == [
        "grafana/mine.json: not written by grafana/; remove it",
        *sorted(f"grafana/{name}: stale; run `make dashboards`" for name in (first, second)),
    ]


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("rate(probewatch_flags_total[5m])", "probewatch_flags_total: no metric of this name"),
        ("vllm:requests_total", "vllm:requests_total: no metric of this name"),
        ('probewatch_attached{probe="lie"}', "probewatch_attached: has no label probe"),
        ('probewatch_requests_total{verdict=~"ok|lies"}', "verdict is never lies"),
        ("sum by (probe) (probewatch_attached)", "probe: no metric in the expression has this label"),
        ("up * on (job, engine) up", "engine: no metric in the expression has this label"),
        ("probewatch_request_margin", "probewatch_request_margin: no metric of this name"),
        # Margins can be negative, so their sum is no counter and is not exported.
        ("rate(probewatch_request_margin_sum[5m])", "probewatch_request_margin_sum: no metric of this name"),
    ],
)
def test_a_name_that_does_not_exist_is_caught(expression: str, complaint: str) -> None:
    assert any(complaint in fault for fault in faults(expression, KNOWN))


@pytest.mark.parametrize(
    "expression",
    [
        'sum by (job, le) (rate(probewatch_request_margin_bucket{probe=~"a{b}(c)", le="+Inf"}[$__rate_interval]))',
        "probewatch_step_overhead_seconds_sum / on (job) group_left (engine) (up offset 5m > bool 1e3) or vector(0)",
        'time() - max by (instance) (probewatch_last_scored_timestamp_seconds{job=~"$job"} > 0)',
    ],
)
def test_names_that_exist_pass(expression: str) -> None:
    assert faults(expression, KNOWN) == []


def test_every_metric_of_the_catalogue_is_on_a_dashboard() -> None:
    shown = {
        name
        for board in DASHBOARDS.values()
        for expr in expressions(board)
        for name, _ in read(expr).selectors
    }
    missing = {name for name in CATALOGUE if shown.isdisjoint({name, f"{name}_bucket"})}
    assert missing == set()


@each_dashboard
def test_it_opens_from_vllms_menu_and_keeps_its_variables(dashboard: dict[str, Any]) -> None:
    assert dashboard["uid"].startswith("probewatch-")
    assert dashboard["title"].startswith("probewatch / ")
    assert {"vllm", "probewatch"} == set(dashboard["tags"])
    assert [link["tags"] for link in dashboard["links"]] == [["vllm"]]
    assert (dashboard["refresh"], dashboard["time"]["from"], dashboard["schemaVersion"]) == (
        "30s",
        "now-1h",
        39,
    )
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(variables)[:5] == ["datasource", "job", "model_name", "instance", "engine"]
    assert variables["datasource"]["type"] == "datasource"
    scope: list[str] = []
    for name in ("job", "model_name", "instance", "engine"):
        # Listed from vLLM's own metric: a server without the monitor must be there to choose.
        (metric, matchers), *_ = read(variables[name]["query"].removeprefix("label_values(")).selectors
        assert (metric, [label for label, _ in matchers]) == ("vllm:num_requests_running", scope)
        assert variables[name]["includeAll"]
        assert variables[name]["multi"]
        scope.append(name)


@each_dashboard
def test_every_query_is_narrowed_by_the_variables(dashboard: dict[str, Any]) -> None:
    defined = {variable["name"] for variable in dashboard["templating"]["list"]} | set(BUILT_IN)
    for panel in panels(dashboard):
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= defined, target["expr"]
            for name, matchers in read(target["expr"]).selectors:
                wanted = {(label, f"${label}") for label in KNOWN[name] & set(ENGINE)}
                assert wanted <= set(matchers), (panel["title"], name)


@each_dashboard
def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    everything = list(flat(dashboard["panels"]))
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert all(panel["description"].rstrip("`").rpartition("`")[2] for panel in panels(dashboard))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@each_dashboard
def test_links_lead_to_boards_that_exist_and_to_the_evidence_of_an_instance_that_is_known(
    dashboard: dict[str, Any],
) -> None:
    boards = {board.uid for board in BOARDS.values()}
    for panel, url in links(dashboard):
        if "/probewatch/ui" not in url:
            assert url.removeprefix("/d/").partition("?")[0] in boards
        elif panel["type"] == "table":
            assert url == "${scheme}://${__data.fields.Instance}/probewatch/ui"
            assert all("{{instance}}" in target["legendFormat"] for target in panel["targets"])
        else:
            assert url == "${scheme}://${__field.labels.instance}/probewatch/ui"
            assert all("{{instance}}" in target["legendFormat"] for target in panel["targets"])


def test_flags_lead_to_the_evidence() -> None:
    with_evidence = {
        panel["title"]
        for board in DASHBOARDS.values()
        for panel, url in links(board)
        if "/probewatch/ui" in url
    }
    assert {
        "Flags by probe and instance",
        "Flags by engine",
        "Engines (selected time range)",
        "Stopped requests by probe and instance",
        "Actions by instance (selected time range)",
    } <= with_evidence


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{i}", "expr": substituted(expression)}
        for i, expression in enumerate(e for board in DASHBOARDS.values() for e in expressions(board))
    ]
    result = promtool_check(tmp_path, rules)
    assert result.returncode == 0, result.stdout + result.stderr
    broken = [{"record": "panel:0", "expr": "sum by (probe) (probewatch_attached"}]
    assert promtool_check(tmp_path, broken).returncode != 0


def promtool_check(folder: Path, rules: list[dict[str, str]]) -> subprocess.CompletedProcess[str]:
    path = folder / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    return subprocess.run(
        [program("promtool"), "check", "rules", str(path)], capture_output=True, text=True, check=False
    )


def test_probewatch_paths_lists_them() -> None:
    assert paths()["dashboards"] == sorted(str(FOLDER / name) for name in DASHBOARDS)


def test_the_page_describes_each_dashboard() -> None:
    for dashboard in DASHBOARDS.values():
        assert f"`{dashboard['uid']}`" in PAGE
    assert set(re.findall(r"`(probewatch-\w+)`", PAGE)) == {board.uid for board in BOARDS.values()}


def test_undefined_names_are_reported_with_their_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another dict: one that is put back into the catalogue would come last there.
    fewer = {name: metric for name, metric in CATALOGUE.items() if name != "probewatch_score_drift"}
    monkeypatch.setattr("deploy.prometheus.promql.CATALOGUE", fewer)
    assert any(
        line.startswith("grafana/probewatch_probes.json: probewatch_score_drift: no metric")
        for line in undefined()
    )
