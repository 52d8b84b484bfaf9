"""Changing the probes of a running server: all ranks, engines and API servers, or none of them.

A change is prepared everywhere first (everything that can fail), then every API server learns how sequences of the new
epoch are judged, then the workers commit between two steps. Sequences that run keep the bank they began with.
What fails on the way is undone everywhere; where that fails too, the status page tells until a later change succeeds.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from monitor.bank import ProbeBank
from monitor.desired import Wanted, bank_of, load_added, wanted
from monitor.engines import Engines
from monitor.errors import AttachError, ConfigurationError, ServerError
from monitor.peers import Peers
from monitor.quiet import QuietThread
from probes import Probe, ProbeError, load
from probes.identity import ModelIdentity, check_binding
from probes.manifest import ACTION

Rpc = Callable[[str, tuple[Any, ...]], Awaitable[list[dict[str, Any]]]]
"""Calls a method of every worker of every engine; each answers ``{"ready": bool, "error": str | None, "result"}``."""

T = TypeVar("T")
logger = logging.getLogger("probewatch")

POLL_SECONDS = 0.02
PREPARE_SECONDS = 60.0


class UnknownProbe(ServerError):
    """No probe of that name is attached."""


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
        self._background = QuietThread()
        self._latest = 0
        """The highest epoch that any change had, made or undone."""
        self.trouble: str | None = None
        """Why processes of this server may disagree about the probes."""

    async def attach(self, relative: str) -> None:
        """Attaches the artifact at ``relative`` below PROBE_DIR. Raises ``AttachError`` or ``ConfigurationError``."""
        file = inside(self._probe_dir, relative)
        probe = await self._aside(self._load, file)
        async with self._alone():
            await self._become([*self._now(), wanted(probe, file)], {str(file): probe})

    async def detach(self, name: str) -> None:
        """Detaches a probe. Raises ``UnknownProbe`` or ``AttachError``."""
        async with self._alone():
            self._attached(name)
            await self._become([one for one in self._now() if one.name != name], {})

    async def change(self, name: str, threshold: float | None, action: str | None) -> None:
        """Sets what is given. Raises ``UnknownProbe``, ``ConfigurationError`` or ``AttachError``."""
        if threshold is not None and not math.isfinite(threshold):
            raise ConfigurationError(f"threshold {threshold} is not finite; give a number")
        check_action(name, action)
        async with self._alone():
            changed = _changed(self._attached(name), threshold, action)
            await self._become([changed if one.name == name else one for one in self._now()], {})

    async def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """Another API server's part of a change: ``become`` (``Wanted`` objects, and the epoch), ``undo`` (the epoch to
        go back to) or ``trouble`` (what the status page tells from now on); returns the epoch this one is in now."""
        if "become" in question:
            desired = [Wanted(**one) for one in question["become"]]
            added = await self._aside(load_added, desired)
            epoch = int(question["epoch"])
            self._latest = max(self._latest, epoch)
            self._engines.adopt(bank_of(self._engines.first.bank, desired, epoch, added))
        elif "undo" in question:
            self._engines.go_back(int(question["undo"]))
        else:
            self.trouble = question["trouble"]
        return {"epoch": self._engines.first.bank.epoch}

    async def _aside(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._background, work, *arguments)

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
        return [wanted(seat.probe) for seat in self._engines.first.bank.seats]

    def _attached(self, name: str) -> Probe:
        probes = {seat.probe.manifest.name: seat.probe for seat in self._engines.first.bank.seats}
        if name not in probes:
            raise UnknownProbe(f"no probe {name!r} is attached; attached are {', '.join(probes) or 'none'}")
        return probes[name]

    async def _become(self, desired: list[Wanted], added: dict[str, Probe]) -> None:
        if self._peers is not None:
            self._peers.check_complete()
        before = self._engines.first.bank
        # Never twice: messages of a change that was undone may still be under way.
        epoch = self._latest = max(self._latest, before.epoch) + 1
        bank = bank_of(before, desired, epoch, added)
        told = [asdict(one) for one in desired]
        try:
            await self._all("probewatch_prepare", told, epoch)
            async with asyncio.timeout(PREPARE_SECONDS):
                while not all(answer["ready"] for answer in await self._all("probewatch_prepared")):
                    await asyncio.sleep(POLL_SECONDS)
            await self._ask({"become": told, "epoch": epoch}, bank.epoch)
            self._engines.adopt(bank)
            tested = [answer["result"] for answer in await self._all("probewatch_commit", epoch)]
        except TimeoutError:
            await self._undo(before, epoch)
            raise AttachError(
                f"the workers were not ready after {PREPARE_SECONDS:g} s; attach again"
            ) from None
        except BaseException:  # a request that is cancelled too: nothing may stay half done
            await self._undo(before, epoch)
            raise
        self._engines.tested({name: max(found[name] for found in tested) for name in tested[0]})
        if self.trouble is not None:  # all processes are in one epoch again
            await self._tell_trouble(None)

    async def _undo(self, before: ProbeBank, epoch: int) -> None:
        """Takes change ``epoch`` back everywhere; what cannot go back is told on the status page."""
        self._engines.adopt(before)
        results = await asyncio.gather(
            self._all("probewatch_undo", epoch),
            self._ask({"undo": before.epoch}, before.epoch),
            return_exceptions=True,
        )
        faults = "; ".join(str(result) for result in results if isinstance(result, BaseException))
        if faults:
            trouble = f"a change of probes failed and is not undone everywhere ({faults}); restart the server"
            logger.error("probewatch: %s", trouble)
            await self._tell_trouble(trouble)

    async def _tell_trouble(self, trouble: str | None) -> None:
        self.trouble = trouble
        if self._peers is not None:
            await self._peers.ask({"trouble": trouble})

    async def _all(self, method: str, *arguments: Any) -> list[dict[str, Any]]:
        """The answers of every worker. Raises ``AttachError`` with the first error of any of them."""
        try:
            answers = await self._rpc(method, arguments)
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise AttachError(f"the workers cannot be asked ({what}); see the engine's log") from error
        errors = [str(answer["error"]) for answer in answers if answer["error"]]
        if errors:
            raise AttachError(f"a worker refused the change: {' '.join(errors[0].split())[:300]}")
        return answers

    async def _ask(self, question: dict[str, Any], epoch: int) -> None:
        """Asks the other API servers, which must be in ``epoch`` then. Raises ``ServerError``."""
        answers = [] if self._peers is None else await self._peers.ask(question, strict=True)
        if any(answer != {"epoch": epoch} for answer in answers):
            raise ServerError("the API servers disagree about the attached probes; restart the server")

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
    """Raises ``ConfigurationError`` for what is no action. The workers know which vectors there are."""
    if action is not None and not ACTION.fullmatch(action):
        raise ConfigurationError(
            f"probe {name!r}: {action[:64]!r} is no action; use observe, alert, stop or steer:VECTOR[:SCALE]"
        )


def _changed(probe: Probe, threshold: float | None, action: str | None) -> Wanted:
    changes: dict[str, Any] = {"threshold": threshold, "default_action": action}
    found = wanted(probe, **{key: value for key, value in changes.items() if value is not None})
    if found.threshold is None and found.action != "observe":
        raise ConfigurationError(
            f"probe {found.name!r} has no threshold, so it cannot {found.action}; set threshold= as well"
        )
    return found
