"""Who is told of flags, as the settings say: one postman for each receiver."""

from __future__ import annotations

import socket

from monitor.config import Settings
from monitor.evidence_rows import Text
from monitor.flag_event import Event, Origin, flag_event
from monitor.postman import USUAL, Patience, Postman
from monitor.receivers import Address, Sites, alertmanager, webhook
from monitor.records import Record

EVERY_INTERFACE = (None, "", "0.0.0.0", "::")


def make_postmen(settings: Settings, origin: Origin, text: Text, patience: Patience = USUAL) -> list[Postman]:
    """One for each receiver in the settings, not yet started."""
    told = text if settings.push_text else None

    def tell(record: Record, engine: str) -> Event:
        return flag_event(record, origin, engine, told)

    addresses: dict[str, Address] = {}
    if settings.webhook_url is not None:
        secret = None if settings.webhook_secret is None else settings.webhook_secret.get_secret_value()
        addresses["webhook"] = webhook(settings.webhook_url, secret)
    if settings.alertmanager_url is not None:
        addresses["alertmanager"] = alertmanager(
            settings.alertmanager_url, Sites(settings.docs_url, settings.grafana_url)
        )
    return [Postman(sink, tell, address, patience) for sink, address in addresses.items()]


def public_url(settings: Settings, host: str | None, port: int, secure: bool) -> str:
    """Where people reach this server: ``PROBEWATCH_PUBLIC_URL``, else made of what it listens on."""
    if settings.public_url is not None:
        return settings.public_url.rstrip("/")
    name = socket.gethostname() if host in EVERY_INTERFACE else str(host)
    return f"{'https' if secure else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"
