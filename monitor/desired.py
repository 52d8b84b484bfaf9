"""The probes that a server shall have, as each of its processes is told, and the bank that follows from them.

API servers and workers make it of the same words, each by itself; digests show that all of them made the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monitor.bank import ProbeBank
from monitor.errors import AttachError
from probes import Probe, ProbeError, load


@dataclass(frozen=True)
class Wanted:
    """One probe of the desired set."""

    name: str
    file: str | None
    """Where to load it from; None: it is attached already."""
    threshold: float | None
    action: str
    sha256: str
    """Of the manifest in force, which names the digest of the tensors."""


def wanted(probe: Probe, file: Path | None = None, **changes: Any) -> Wanted:
    """A probe as it is, with another ``threshold`` or ``default_action``."""
    manifest = probe.manifest.model_copy(update=changes)
    text = manifest.model_dump_json().encode()
    return Wanted(
        manifest.name,
        None if file is None else str(file),
        manifest.threshold,
        manifest.default_action,
        hashlib.sha256(text).hexdigest(),
    )


def load_added(desired: Sequence[Wanted]) -> dict[str, Probe]:
    """The probes that are to come, by file. Raises ``AttachError``."""
    try:
        return {one.file: load(one.file) for one in desired if one.file is not None}
    except ProbeError as error:
        raise AttachError(str(error)) from error


def bank_of(
    before: ProbeBank, desired: Sequence[Wanted], epoch: int, added: Mapping[str, Probe]
) -> ProbeBank:
    """The bank of change ``epoch``, which follows ``before``. ``added``: see ``load_added``.

    Raises ``AttachError`` where the probes do not fit, or are not those that are meant.
    """
    if epoch <= before.epoch:
        raise AttachError(f"change {epoch} comes after change {before.epoch}; restart the server")
    attached = {seat.probe.manifest.name: seat.probe for seat in before.seats}
    probes = []
    for one in desired:
        probe = attached.get(one.name) if one.file is None else added[one.file]
        if probe is None:
            raise AttachError(f"probe {one.name!r} is not attached in every process; restart the server")
        changes: dict[str, Any] = {"threshold": one.threshold, "default_action": one.action}
        if wanted(probe, **changes).sha256 != one.sha256:
            remedy = "restart the server" if one.file is None else "attach it again"
            raise AttachError(f"probe {one.name!r} is not the same in every process; {remedy}")
        probes.append(replace(probe, manifest=probe.manifest.model_copy(update=changes)))
    return before.follow(probes, epoch)
