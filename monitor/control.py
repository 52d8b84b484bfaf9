"""Changing the probes of a running server: all ranks, engines and API servers, or none of them.

A change is prepared everywhere first (everything that can fail), then every API server learns how sequences of the new
epoch are judged, then the workers commit between two steps. Sequences that run keep the bank they began with.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monitor.attach import AVAILABLE_ACTIONS
from monitor.bank import ProbeBank
from monitor.engines import Engines
from monitor.errors import AttachError, ConfigurationError, ServerError
from monitor.peers import Peers
from probes import Probe, ProbeError, load
from probes.identity import ModelIdentity, check_binding

Rpc = Callable[[str, tuple[Any, ...]], Awaitable[list[dict[str, Any]]]]
"""Calls a method of every worker of every engine; each answers ``{"ready": bool, "error": str | None}``."""

POLL_SECONDS = 0.02
PREPARE_SECONDS = 60.0


class UnknownProbe(ServerError):
    """No probe of that name is attached."""


@dataclass(frozen=True)
class Wanted:
    """One probe of the desired set, as every process of the server is told."""

    name: str
    file: str | None
    """Where to load it from; None: it is attached already."""
    threshold: float | None
    action: str


class Control:
    """The control plane of one API server. ``identity``: of the served model, None where it cannot be told."""

    def __init__(
        self,
        engines: Engines,
        rpc: Rpc,
        identity: ModelIdentity | None,
        probe_dir: Path | None,
        peers: Peers | None,
    ) -> None:
        self._engines = engines
        self._rpc = rpc
        self._identity = identity
        self._probe_dir = probe_dir
        self._peers = peers
        self._lock = asyncio.Lock()

    async def attach(self, relative: str) -> None:
        """Attaches the artifact at ``relative`` below PROBE_DIR. Raises ``AttachError`` or ``ConfigurationError``."""
        file = inside(self._probe_dir, relative)
        probe = await asyncio.to_thread(self._load, file)
        manifest = probe.manifest
        async with self._alone():
            wanted = [
                *self._now(),
                Wanted(manifest.name, str(file), manifest.threshold, manifest.default_action),
            ]
            await self._become(wanted, add=[(str(file), manifest.tensors_sha256)], given={str(file): probe})

    async def detach(self, name: str) -> None:
        """Detaches a probe. Raises ``UnknownProbe``."""
        async with self._alone():
            self._known(name)
            await self._become([one for one in self._now() if one.name != name], add=[], given={})

    async def change(self, name: str, threshold: float | None, action: str | None) -> None:
        """Sets what is given; the taps know neither. Raises ``UnknownProbe`` or ``ConfigurationError``."""
        if threshold is not None and not math.isfinite(threshold):
            raise ConfigurationError(f"threshold {threshold} is not finite; give a number")
        check_action(name, action)
        async with self._alone():
            self._known(name)
            wanted = [
                self._changed(one, threshold, action) if one.name == name else one for one in self._now()
            ]
            await self._tell(wanted, bank_of(self._engines.first.bank, wanted, {}))
            changed = [(one.name, one.threshold, one.action) for one in wanted if one.name == name]
            await self._all("probewatch_restate", changed)

    async def accept(self, wanted: Sequence[dict[str, Any]]) -> dict[str, int]:
        """Another API server's change, as ``Wanted`` objects; returns the epoch this one is in now."""
        desired = [Wanted(**one) for one in wanted]
        given = {one.file: await asyncio.to_thread(load, Path(one.file)) for one in desired if one.file}
        bank = bank_of(self._engines.first.bank, desired, given)
        self._engines.adopt(bank)
        return {"epoch": bank.epoch}

    def _load(self, file: Path) -> Probe:
        try:
            probe = load(file)
            if self._identity is not None:
                check_binding(probe.manifest, self._identity)
        except ProbeError as error:
            raise AttachError(str(error)) from error
        check_action(probe.manifest.name, probe.manifest.default_action)
        return probe

    def _now(self) -> list[Wanted]:
        manifests = [seat.probe.manifest for seat in self._engines.first.bank.seats]
        return [Wanted(m.name, None, m.threshold, m.default_action) for m in manifests]

    def _known(self, name: str) -> None:
        names = [one.name for one in self._now()]
        if name not in names:
            raise UnknownProbe(f"no probe {name!r} is attached; attached are {', '.join(names) or 'none'}")

    def _changed(self, one: Wanted, threshold: float | None, action: str | None) -> Wanted:
        found = replace(
            one,
            threshold=one.threshold if threshold is None else threshold,
            action=one.action if action is None else action,
        )
        if found.threshold is None and found.action != "observe":
            raise ConfigurationError(
                f"probe {one.name!r} has no threshold, so it cannot {found.action}; set threshold= as well"
            )
        return found

    async def _become(
        self, wanted: list[Wanted], add: list[tuple[str, str]], given: dict[str, Probe]
    ) -> None:
        before = self._engines.first.bank
        bank = bank_of(before, wanted, given)
        epoch = bank.epoch
        keep = [one.name for one in wanted if one.file is None]
        try:
            await self._all("probewatch_prepare", keep, add, epoch)
            async with asyncio.timeout(PREPARE_SECONDS):
                while not await self._all("probewatch_prepared"):
                    await asyncio.sleep(POLL_SECONDS)
            await self._tell(wanted, bank)
            await self._all("probewatch_commit", epoch)
        except TimeoutError:
            await self._undo(before)
            raise AttachError(
                f"the workers were not ready after {PREPARE_SECONDS:g} s; attach again"
            ) from None
        except Exception:
            await self._undo(before)
            raise

    async def _undo(self, before: ProbeBank) -> None:
        await self._rpc("probewatch_discard", ())
        self._engines.adopt(before)
        if self._peers is not None:
            await self._peers.ask({"undo": before.epoch})

    async def _all(self, method: str, *arguments: Any) -> bool:
        """Whether every worker is ready. Raises ``AttachError`` with the first error of any of them."""
        answers = await self._rpc(method, arguments)
        errors = [str(answer["error"]) for answer in answers if answer["error"]]
        if errors:
            raise AttachError(f"a worker refused the change: {' '.join(errors[0].split())[:300]}")
        return all(answer["ready"] for answer in answers)

    async def undo(self, epoch: int) -> dict[str, int]:
        """Another API server's change came to nothing: back to what was."""
        self._engines.go_back(epoch)
        return {"epoch": self._engines.first.bank.epoch}

    async def _tell(self, wanted: list[Wanted], bank: ProbeBank) -> None:
        if self._peers is not None:
            question = {"become": [one.__dict__ for one in wanted]}
            answers = await self._peers.ask(question, strict=True)
            if any(answer != {"epoch": bank.epoch} for answer in answers):
                raise ServerError("the API servers disagree about the attached probes; restart the server")
        self._engines.adopt(bank)

    def _alone(self) -> Any:
        return self._lock if self._peers is None else self._peers.alone()


def inside(folder: Path | None, relative: str) -> Path:
    """The file at ``relative`` below ``folder``, links followed. Raises ``ConfigurationError`` for one outside."""
    if folder is None:
        raise ConfigurationError("attaching is off: start the server with PROBEWATCH_PROBE_DIR=FOLDER")
    try:
        root = folder.resolve(strict=True)
        found = (root / relative).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):
        raise ConfigurationError(
            f"{relative!r} is no file in PROBEWATCH_PROBE_DIR; put the artifact there"
        ) from None
    if not found.is_relative_to(root) or not found.is_file():
        raise ConfigurationError(f"{relative!r} is no file in PROBEWATCH_PROBE_DIR; put the artifact there")
    return found


def check_action(name: str, action: str | None) -> None:
    """Raises ``ConfigurationError`` for an action that this version cannot carry out."""
    if action is not None and action not in AVAILABLE_ACTIONS:
        raise ConfigurationError(
            f"probe {name!r}: action {action!r} cannot be carried out; use {' or '.join(AVAILABLE_ACTIONS)}"
        )


def bank_of(before: ProbeBank, wanted: Sequence[Wanted], given: dict[str, Probe]) -> ProbeBank:
    """What sequences are judged by once the desired set is in force. ``given``: loaded probes by file."""
    attached = {seat.probe.manifest.name: seat.probe for seat in before.seats}
    probes = []
    for one in wanted:
        probe = attached[one.name] if one.file is None else given[one.file]
        changes = {"threshold": one.threshold, "default_action": one.action}
        probes.append(replace(probe, manifest=probe.manifest.model_copy(update=changes)))
    same = [one.name for one in wanted if one.file is None] == list(attached) and not any(
        one.file for one in wanted
    )
    return before.restated(probes) if same else before.follow(probes)
