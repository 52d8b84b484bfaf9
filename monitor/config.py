"""Every setting of the monitor, in one class. Environment prefix ``PROBEWATCH_``; optionally a YAML
file named by ``PROBEWATCH_CONFIG`` (the environment wins over the file)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from monitor.errors import ConfigurationError
from monitor.lifetime import RUN_BY
from monitor.refusal import REFUSAL_FILE, REQUIRE_ENDPOINT

PREFIX = "PROBEWATCH_"


class Settings(BaseSettings):
    """Settings of one server. Lists are comma-separated in the environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="forbid", frozen=True)

    probes: Annotated[tuple[Path, ...], NoDecode] = ()
    """Artifacts that score: probes, and steering vectors attached as scorers."""
    vectors: Annotated[tuple[Path, ...], NoDecode] = ()
    """Steering vectors loaded by name."""
    tap_layers: Annotated[tuple[int, ...], NoDecode] = ()
    """0-based blocks to tap besides those the probes read (default: three, spread over the model)."""
    tap_norms: bool = False
    """Whether the taps measure norms although no configured probe needs them (cosine, lens): one may come later."""
    on_attach_failure: Literal["refuse", "serve_unmonitored"] = "refuse"
    """What a server does when the monitor cannot be attached."""
    expose: Literal["none", "verdict", "scores"] = "none"
    """The most that a reply may tell a client. A visible score is an oracle for evading the probe."""
    probe_dir: Path | None = None
    """The only folder from which HTTP may attach."""
    admin_key: SecretStr | None = None
    """Key for changing routes and evidence routes (header X-Probewatch-Admin-Key)."""
    open_evidence: bool = False
    """Opens the evidence routes without a key (demo, loopback)."""
    evidence_path: Path | Literal["off"] | None = None
    """The file that keeps evidence; ``off`` keeps nothing on disk (default: below the user's state folder)."""
    store_text: bool = False
    """Whether prompt and answer text, and their token ids, may be stored on disk."""
    words_mib: int = Field(default=4096, ge=0)
    """Largest checkpoint, in MiB, that the evidence page may have replayed on the host's processor for logit-lens
    words; 0 replays nothing."""
    evidence_days: int = Field(default=30, ge=1, le=36500)
    """How long evidence stays on disk, in days."""
    evidence_mib: int = Field(default=1024, ge=1)
    """Upper bound of the evidence file, in MiB: beyond it the oldest goes first, flagged evidence last."""
    audit_path: Path | None = None
    """The append-only audit log of verdicts and of changes of the probes (default: none)."""
    audit_key: SecretStr | None = None
    """Key of the HMAC that signs the lines of the audit log (default: a chain of plain hashes)."""
    otlp_endpoint: str | None = None
    """OpenTelemetry collector that is told of every verdict, as in http://collector:4318 (default: none)."""
    webhook_url: str | None = None
    """Receiver of pushed alerts."""
    webhook_secret: SecretStr | None = None
    """Key of the HMAC that signs pushed alerts."""
    alertmanager_url: str | None = None
    """An Alertmanager that flags are pushed to: its root, without ``/api/v2``."""
    push_text: bool = False
    """Whether pushed flags carry prompt, answer and token text."""
    public_url: str | None = None
    """Where people reach this server, for links in pushed alerts (default: made of its host and port)."""
    docs_url: str | None = None
    """Where these docs are published, for the runbook of alerts pushed to Alertmanager (default: no such link)."""
    grafana_url: str | None = None
    """Root of the Grafana that has the dashboards, for the dashboard of alerts pushed to Alertmanager (default: no
    such link)."""
    recent_requests: int = Field(default=4096, ge=1024, le=1_000_000)
    """How many finished responses stay in memory with their token scores."""
    recent_mib: int = Field(default=512, ge=1)
    """Upper bound of their memory, in MiB; the last 1024 stay whatever they weigh."""
    tap_columns: int = Field(default=16, ge=1, le=8192)
    """Room in every tap, in columns (most probes take one each)."""
    score_store_mib: int = Field(default=4096, ge=1)
    """Upper bound of the score store, in MiB."""

    @field_validator("probes", "vectors", "tap_layers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("evidence_path", mode="before")
    @classmethod
    def _file_or_off(cls, value: Any) -> Any:
        # YAML reads a bare off as false.
        is_off = value is False or (isinstance(value, str) and value.strip().lower() == "off")
        return "off" if is_off else value

    @field_validator("admin_key", "audit_key", "webhook_secret")
    @classmethod
    def _not_empty(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value():
            raise ValueError("a key must not be empty; leave the setting out instead")
        if value is not None and not value.get_secret_value().isascii():
            raise ValueError("a key must be ASCII: it travels in an HTTP header")
        return value

    @field_validator("webhook_url", "alertmanager_url", "public_url", "docs_url", "grafana_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and not _is_web_address(value):
            raise ValueError("give http://HOST[:PORT][/PATH] or https://..., without user, password or #")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _secret_of_something(cls, value: SecretStr | None, known: ValidationInfo) -> SecretStr | None:
        if value is not None and known.data.get("webhook_url", "") is None:
            raise ValueError("it signs nothing without PROBEWATCH_WEBHOOK_URL; set that, or leave this out")
        return value

    @field_validator("tap_layers")
    @classmethod
    def _sorted_layers(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(layer < 0 for layer in value):
            raise ValueError("layers are 0-based block indices, none may be negative")
        return tuple(sorted(set(value)))


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        plain = text.isascii() and text.isprintable() and not set(text) & set(" #")
        return (
            plain
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and "@" not in parts.netloc
            and parts.port != 0
        )
    except ValueError:  # a port that is no number, brackets that do not close
        return False


def site_of(address: str) -> str:
    """Scheme and host alone: what follows them, or a name and password before, may be a secret."""
    try:
        parts = urlsplit(address)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        rest = "/..." if parts.path.strip("/") or parts.query or parts.fragment else ""
        return f"{parts.scheme}://{host}{rest}" if parts.scheme and host else "(not shown)"
    except ValueError:  # half an IPv6 address
        return "(not shown)"


def _printable(name: str, value: object) -> str:
    if name.endswith(("_KEY", "_SECRET")):
        return "(not shown)"
    return repr(site_of(str(value))) if name.endswith("_URL") else repr(value)


_INTERNAL = {f"{PREFIX}CONFIG", REQUIRE_ENDPOINT, REFUSAL_FILE, RUN_BY}


def _refuse_unknown_variables() -> None:
    settings = {PREFIX + name.upper() for name in Settings.model_fields}
    known = settings | _INTERNAL
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            raise ConfigurationError(f"{name} is no setting; known: {', '.join(sorted(known))}")


def load_settings() -> Settings:
    """Settings from the environment and, if named, the YAML file.

    Raises ``ConfigurationError`` in one line naming the setting, the value found and what is allowed.
    """
    values: dict[str, Any] = {}
    if path := os.environ.get(PREFIX + "CONFIG"):
        try:
            loaded = yaml.safe_load(Path(path).read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(
                f"{PREFIX}CONFIG={path} cannot be read: {reason}; name a YAML file"
            ) from error
        if not isinstance(loaded, dict):
            raise ConfigurationError(
                f"{PREFIX}CONFIG={path} holds {type(loaded).__name__}; it must be a mapping"
            )
        if unknown := [key for key in loaded if key not in Settings.model_fields]:
            raise ConfigurationError(
                f"{PREFIX}{str(unknown[0]).upper()} is no setting (key {unknown[0]!r} in {PREFIX}CONFIG={path}); "
                f"known keys: {', '.join(Settings.model_fields)}"
            )
        values = {k: v for k, v in loaded.items() if not os.environ.get(PREFIX + k.upper())}
    _refuse_unknown_variables()
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"][:1]).upper()
        found = _printable(name, first.get("input"))
        raise ConfigurationError(f"{name}={found}: {first['msg']}") from None
