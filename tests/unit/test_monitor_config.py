"""Every setting, from the environment and from YAML; each mistake is one line that names its variable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from monitor.config import Settings, load_settings
from monitor.errors import ConfigurationError
from monitor.lifetime import RUN_BY
from monitor.seam import offline


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("PROBEWATCH_")]:
        monkeypatch.delenv(name)


def use_yaml(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> Path:
    path = folder / "probewatch.yaml"
    path.write_text(text)
    monkeypatch.setenv("PROBEWATCH_CONFIG", str(path))
    return path


def refusal(*parts: str) -> str:
    """The error of ``load_settings``: one line that holds all ``parts``."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    for part in parts:
        assert part in message
    return message


ENVIRONMENT: dict[str, tuple[str, object]] = {
    "PROBES": ("/a/x.safetensors, b.safetensors,", (Path("/a/x.safetensors"), Path("b.safetensors"))),
    "VECTORS": ("v.safetensors", (Path("v.safetensors"),)),
    "TAP_LAYERS": ("7, 3,3", (3, 7)),
    "ON_ATTACH_FAILURE": ("serve_unmonitored", "serve_unmonitored"),
    "EXPOSE": ("verdict", "verdict"),
    "PROBE_DIR": ("/probes", Path("/probes")),
    "OPEN_EVIDENCE": ("1", True),
    "EVIDENCE_PATH": ("/evidence", Path("/evidence")),
    "EVIDENCE_DAYS": ("7", 7),
    "EVIDENCE_MIB": ("64", 64),
    "WORDS_MIB": ("0", 0),
    "STORE_TEXT": ("1", True),
    "AUDIT_PATH": ("/audit", Path("/audit")),
    "OTLP_ENDPOINT": ("http://collector:4318", "http://collector:4318"),
    "WEBHOOK_URL": ("https://example.org/hook", "https://example.org/hook"),
    "ALERTMANAGER_URL": ("http://alerts:9093", "http://alerts:9093"),
    "PUSH_TEXT": ("1", True),
    "PUBLIC_URL": ("https://llm.example.org/a", "https://llm.example.org/a"),
    "DOCS_URL": ("https://git.example.org/docs", "https://git.example.org/docs"),
    "GRAFANA_URL": ("http://grafana:3000", "http://grafana:3000"),
    "RECENT_REQUESTS": ("2048", 2048),
    "RECENT_MIB": ("64", 64),
    "TAP_COLUMNS": ("32", 32),
    "TAP_NORMS": ("1", True),
    "SCORE_STORE_MIB": ("64", 64),
}
SECRETS = ("ADMIN_KEY", "AUDIT_KEY", "WEBHOOK_SECRET")


def test_nothing_set_is_safe() -> None:
    found = load_settings()
    assert (found.probes, found.vectors, found.tap_layers) == ((), (), ())
    assert (found.on_attach_failure, found.expose) == ("refuse", "none")
    assert (found.open_evidence, found.store_text) == (False, False)
    assert not found.push_text
    for name in (
        "probe_dir",
        "admin_key",
        "evidence_path",
        "webhook_url",
        "webhook_secret",
        "alertmanager_url",
    ):
        assert getattr(found, name) is None
    assert found.recent_requests >= 1024


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_every_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text, expected = ENVIRONMENT[name]
    monkeypatch.setenv(f"PROBEWATCH_{name}", text)
    assert getattr(load_settings(), name.lower()) == expected


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_read_and_never_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("PROBEWATCH_WEBHOOK_URL", "https://example.org")
    monkeypatch.setenv(f"PROBEWATCH_{name}", "hunter2")
    found = load_settings()
    assert getattr(found, name.lower()).get_secret_value() == "hunter2"
    assert "hunter2" not in f"{found!r} {found}"


def test_the_tests_above_know_every_setting() -> None:
    assert {name.upper() for name in Settings.model_fields} == {*ENVIRONMENT, *SECRETS}


def test_every_setting_is_documented_in_the_class() -> None:
    source = Path(Settings.__module__.replace(".", "/") + ".py")
    text = (Path(__file__).parents[2] / source).read_text()
    for name in Settings.model_fields:
        after = text.split(f"\n    {name}: ", 1)[1]
        assert after.split("\n", 2)[1].lstrip().startswith('"""'), name


def test_every_setting_is_read_from_yaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = {name.lower(): text for name, (text, _) in ENVIRONMENT.items()}
    use_yaml(monkeypatch, tmp_path, yaml.safe_dump({**written, "admin_key": "k", "webhook_secret": "s"}))
    found = load_settings()
    for name, (_, expected) in ENVIRONMENT.items():
        assert getattr(found, name.lower()) == expected, name
    assert found.admin_key is not None
    assert found.admin_key.get_secret_value() == "k"


def test_yaml_takes_its_own_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_yaml(monkeypatch, tmp_path, "probes: [a.safetensors, 'b,c.safetensors']\ntap_layers: [4, 2]\n")
    found = load_settings()
    assert found.probes == (Path("a.safetensors"), Path("b,c.safetensors"))
    assert found.tap_layers == (2, 4)


def test_the_environment_wins_over_yaml_setting_by_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_yaml(monkeypatch, tmp_path, "expose: scores\ntap_layers: [1]\nstore_text: true\n")
    monkeypatch.setenv("PROBEWATCH_EXPOSE", "verdict")
    monkeypatch.setenv("PROBEWATCH_STORE_TEXT", "0")
    found = load_settings()
    assert (found.expose, found.tap_layers, found.store_text) == ("verdict", (1,), False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TAP_LAYERS", "1,two"),
        ("TAP_LAYERS", "1.5"),
        ("TAP_LAYERS", "3,-1"),
        ("ON_ATTACH_FAILURE", "ignore"),
        ("EXPOSE", "all"),
        ("OPEN_EVIDENCE", "maybe"),
        ("STORE_TEXT", "2"),
        ("EVIDENCE_DAYS", "0"),
        ("EVIDENCE_MIB", "0"),
        ("RECENT_REQUESTS", "1023"),
        ("RECENT_REQUESTS", "many"),
        ("TAP_COLUMNS", "0"),
        ("SCORE_STORE_MIB", "0"),
        ("EXPOSE", "a\nb"),
    ],
)
def test_a_wrong_value_is_refused_naming_variable_and_value(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setenv(f"PROBEWATCH_{name}", text)
    refusal(f"PROBEWATCH_{name}", text.split("\n")[0].split(",")[-1])


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("WEBHOOK_URL", "example.org/secret", "(not shown)"),
        ("WEBHOOK_URL", "file:///etc/secret", "(not shown)"),
        ("WEBHOOK_URL", "http://user:secret@example.org", "'http://example.org'"),
        ("WEBHOOK_URL", "https://hooks.example.org/secret?x=secret a", "'https://hooks.example.org/...'"),
        ("WEBHOOK_URL", "https://[::1]/secret #", "'https://[::1]/...'"),
        ("WEBHOOK_URL", "https://[::1/secret", "(not shown)"),
        ("ALERTMANAGER_URL", "http://", "(not shown)"),
        ("ALERTMANAGER_URL", "http://alerts:http", "'http://alerts'"),
        ("PUBLIC_URL", "https://example.org/#secret", "'https://example.org/...'"),
        ("DOCS_URL", "docs", "(not shown)"),
        ("GRAFANA_URL", "ftp://example.org", "'ftp://example.org'"),
    ],
)
def test_of_a_wrong_address_scheme_and_host_are_told_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, shown: str
) -> None:
    monkeypatch.setenv(f"PROBEWATCH_{name}", text)
    assert "secret" not in refusal(f"PROBEWATCH_{name}=", shown, "http://HOST")


def test_an_unknown_yaml_key_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_yaml(monkeypatch, tmp_path, "tresholds: 3\n")
    refusal("PROBEWATCH_TRESHOLDS", "tap_layers")  # the known ones are listed


def test_an_unknown_yaml_key_is_refused_also_if_the_environment_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_yaml(monkeypatch, tmp_path, "config: other.yaml\n")
    refusal("CONFIG")


@pytest.mark.parametrize("text", ["", "- a\n", "probes\n", "3\n"])
def test_yaml_that_is_no_mapping_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    path = use_yaml(monkeypatch, tmp_path, text)
    refusal("PROBEWATCH_CONFIG", str(path), "mapping")


@pytest.mark.parametrize(
    "text", ["expose: [verdict\n", "a: b: c\n", "expose: !!python/object/apply:os.getcwd []\n", "\tx: 1\n"]
)
def test_yaml_that_cannot_be_read_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    path = use_yaml(monkeypatch, tmp_path, text)
    refusal("PROBEWATCH_CONFIG", str(path))


def test_yaml_keys_that_are_no_names_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_yaml(monkeypatch, tmp_path, "3: verdict\n")
    refusal("PROBEWATCH_", "3")


def test_a_file_of_other_bytes_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = use_yaml(monkeypatch, tmp_path, "")
    path.write_bytes(b"\xff\xfe\x00expose")
    refusal("PROBEWATCH_CONFIG", str(path))


@pytest.mark.parametrize("missing", ["no.yaml", ""])
def test_a_missing_file_and_a_folder_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    monkeypatch.setenv("PROBEWATCH_CONFIG", str(tmp_path / missing))
    refusal("PROBEWATCH_CONFIG", str(tmp_path))


@pytest.mark.parametrize("text", ["off", "OFF", "false", "'off'"])
def test_evidence_can_be_kept_off_the_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    """YAML reads a bare ``off`` as false."""
    use_yaml(monkeypatch, tmp_path, f"evidence_path: {text}\n")
    assert load_settings().evidence_path == "off"


@pytest.mark.parametrize("name", SECRETS)
def test_a_refused_secret_is_not_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    use_yaml(monkeypatch, tmp_path, f"{name.lower()}: 48151623\n")  # YAML reads a number
    assert "48151623" not in refusal(f"PROBEWATCH_{name}")


def test_a_secret_that_signs_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBEWATCH_WEBHOOK_SECRET", "hunter2")
    assert "hunter2" not in refusal("PROBEWATCH_WEBHOOK_SECRET", "without PROBEWATCH_WEBHOOK_URL")


@pytest.mark.parametrize("name", ["ADMIN_KEY", "WEBHOOK_SECRET", "PROBE_DIR", "EVIDENCE_PATH", "WEBHOOK_URL"])
def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """``docker compose`` passes unset variables as empty ones; an empty key must open nothing."""
    monkeypatch.setenv(f"PROBEWATCH_{name}", "")
    assert getattr(load_settings(), name.lower()) is None


@pytest.mark.parametrize("name", SECRETS)
def test_an_empty_key_in_yaml_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """An empty header would equal it."""
    use_yaml(monkeypatch, tmp_path, f"{name.lower()}: ''\n")
    refusal(f"PROBEWATCH_{name}", "empty")


def test_an_empty_variable_does_not_hide_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_yaml(monkeypatch, tmp_path, "expose: scores\nadmin_key: k\n")
    monkeypatch.setenv("PROBEWATCH_EXPOSE", "")
    monkeypatch.setenv("PROBEWATCH_ADMIN_KEY", "")
    found = load_settings()
    assert found.expose == "scores"
    assert found.admin_key is not None


def test_settings_cannot_be_changed_after_the_start() -> None:
    found = load_settings()
    with pytest.raises(ValueError):
        found.expose = "scores"  # type: ignore[misc]


def test_what_the_offline_commands_set_for_their_engine_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    offline.configure({"PROBES": "/a/x.safetensors"})
    assert os.environ[RUN_BY] == str(os.getpid())
    assert load_settings().probes == (Path("/a/x.safetensors"),)
