"""Who is told of flags: a webhook, signed, and Alertmanager's v2 API. From an event to a letter, pure functions."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

from monitor import __version__
from monitor.flag_event import Event
from monitor.post import Letter

Address = Callable[[Event], Letter]

TIMESTAMP_HEADER, SIGNATURE_HEADER = "X-Probewatch-Timestamp", "X-Probewatch-Signature"
ALERT_HEADER = "X-Probewatch-Alert-Id"
ALERT_NAME = "ProbewatchFlaggedGeneration"
ALERT_MINUTES = 15
"""How long Alertmanager holds a pushed flag for active. A flag is an event and never comes to an end by itself."""
CRITICAL_FPR = 0.001
"""A probe calibrated to flag at most this share of benign traffic is critical: each of its flags is worth a look."""
BOARD = "probewatch-probes"
"""The dashboard that shows one probe."""
LABEL_CHARACTERS = 200
"""Of a request id, which a client may choose."""

_HEADERS = {"Content-Type": "application/json", "User-Agent": f"probewatch/{__version__}"}


@dataclass(frozen=True)
class Sites:
    """Where else a person may want to look. An alert is read far from here, so a link is absolute or there is none."""

    docs_url: str | None = None
    grafana_url: str | None = None

    def links(self, event: Event, probe: dict[str, Any]) -> dict[str, str]:
        """``runbook_url`` and ``dashboard_url``, as alerts of our rules carry them.

        The board's ``instance`` is the target that Prometheus scrapes, which a server does not know; so none is chosen.
        """
        found = {}
        if self.docs_url is not None:
            found["runbook_url"] = f"{self.docs_url.rstrip('/')}/runbooks/{ALERT_NAME}.md"
        if self.grafana_url is not None:
            variables = {
                "var-model_name": event["model"]["name"],
                "var-probe": probe["name"],
            }
            found["dashboard_url"] = f"{self.grafana_url.rstrip('/')}/d/{BOARD}?{urlencode(variables)}"
        return found


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """``sha256=`` and the hexadecimal HMAC-SHA256 of ``timestamp``, a dot and ``body``."""
    return "sha256=" + hmac.new(secret, timestamp.encode() + b"." + body, "sha256").hexdigest()


def webhook(url: str, secret: str | None) -> Address:
    """The event as JSON; signed where there is a secret, with the time of the attempt against replays."""

    def address(event: Event) -> Letter:
        body = json.dumps(event).encode()
        headers = {**_HEADERS, ALERT_HEADER: event["alert_id"]}
        if secret is not None:
            headers[TIMESTAMP_HEADER] = str(int(time.time()))
            headers[SIGNATURE_HEADER] = signature(secret.encode(), headers[TIMESTAMP_HEADER], body)
        return Letter(url, body, headers)

    return address


def alertmanager(url: str, sites: Sites) -> Address:
    """``POST /api/v2/alerts`` below ``url``."""
    target = f"{url.rstrip('/')}/api/v2/alerts"
    return lambda event: Letter(target, json.dumps(alerts_of(event, sites)).encode(), _HEADERS)


def alerts_of(event: Event, sites: Sites) -> list[dict[str, Any]]:
    """One alert for each probe that flagged. ``alert_id`` and ``request_id`` are labels, so that Alertmanager never
    takes two flags for one; keep them out of ``group_by``."""
    started = datetime.fromisoformat(event["time"])
    return [
        {
            "labels": {
                "alertname": ALERT_NAME,
                "severity": severity(probe),
                "model_name": event["model"]["name"],
                "instance": urlsplit(event["server"]["url"]).netloc,
                "engine": event["server"]["engine"],
                "probe": probe["name"],
                "action": probe["action"],
                "request_id": event["request_id"][:LABEL_CHARACTERS],
                "choice": str(event["choice"]),
                "alert_id": event["alert_id"],
            },
            "annotations": {**_annotations(event, probe), **sites.links(event, probe)},
            "startsAt": started.isoformat(),
            "endsAt": (started + timedelta(minutes=ALERT_MINUTES)).isoformat(),
            "generatorURL": event["links"]["evidence"],
        }
        for probe in event["probes"]
    ]


def severity(probe: dict[str, Any]) -> str:
    """``critical`` for a probe that stops requests or seldom flags benign traffic, else ``warning``."""
    fpr = probe["nominal_fpr"]
    critical = probe["action"] == "stop" or (fpr is not None and fpr <= CRITICAL_FPR)
    return "critical" if critical else "warning"


def _annotations(event: Event, probe: dict[str, Any]) -> dict[str, str]:
    share = probe["nominal_fpr"]
    calibrated = "not calibrated" if share is None else f"calibrated to flag {share:.2%} of benign traffic"
    return {
        "summary": f"{probe['name']} flagged a generation of {event['model']['name']}",
        "description": f"Score {probe['score']:.3g} over threshold {probe['threshold']:.3g} ({calibrated}); peak at "
        f"token {probe['peak_token']}, artifact {probe['sha256'][:12]}.",
        "evidence_url": event["links"]["evidence"],
        "request_url": event["links"]["request"],
    }
