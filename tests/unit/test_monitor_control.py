"""The control plane without an engine: what a change leaves in every process, and that a failed one leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from monitor.bank import ProbeBank
from monitor.control import Control, UnknownProbe, inside
from monitor.engines import Engines
from monitor.errors import AttachError, ConfigurationError, ServerError
from monitor.frontend import Frontend
from monitor.metrics import Metrics
from monitor.peers import Peers
from monitor.records import RecentRecords
from probes import load
from probes.testing import write_artifact

D_MODEL = 8


class Workers:
    """What two ranks do when called, of which the second may refuse; remembers every call."""

    def __init__(self, fail: str | None = None) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._fail = fail

    async def __call__(self, method: str, arguments: tuple[Any, ...]) -> Any:
        self.calls.append((method, arguments))
        error = "AttachError: planted" if method == self._fail else None
        return [{"ready": True, "error": None}, {"ready": error is None, "error": error}]

    @property
    def methods(self) -> list[str]:
        return [method for method, _ in self.calls]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(["first", "second", "third"]):
        write_artifact(
            tmp_path / f"{name}.safetensors",
            seed=seed,
            name=name,
            layers=(1,),
            d_model=D_MODEL,
            threshold=1.0,
            default_action="alert",
        )
    return tmp_path


def make_engines(folder: Path) -> Engines:
    """Two engines with the probe ``first`` on taps at layers 1 and 2."""
    probe = load(folder / "first.safetensors")
    bank = ProbeBank([probe], (1, 2), D_MODEL, 2)
    recent, registry = RecentRecords(1024), CollectorRegistry()

    def make(index: int) -> Frontend:
        return Frontend(bank, Metrics("m", str(index), registry), "m", recent)

    return Engines(make, [0, 1], recent)


def names(engines: Engines) -> list[str]:
    return [seat.probe.manifest.name for seat in engines.first.bank.seats]


async def test_an_attached_probe_is_prepared_announced_and_committed_in_that_order(folder: Path) -> None:
    engines, workers = make_engines(folder), Workers()
    control = Control(engines, workers, None, folder, None)
    await control.attach("second.safetensors")
    assert workers.methods == ["probewatch_prepare", "probewatch_prepared", "probewatch_commit"]
    keep, add, epoch = workers.calls[0][1]
    assert (keep, [Path(file).name for file, _ in add], epoch) == (["first"], ["second.safetensors"], 1)
    assert names(engines) == ["first", "second"]
    assert all(frontend.bank is engines.first.bank for frontend in engines.all)


async def test_a_detached_probe_leaves_its_place_to_the_next(folder: Path) -> None:
    engines, workers = make_engines(folder), Workers()
    control = Control(engines, workers, None, folder, None)
    await control.attach("second.safetensors")
    with pytest.raises(AttachError, match="room for 2"):
        await control.attach("third.safetensors")
    await control.detach("first")
    await control.attach("third.safetensors")
    assert names(engines) == ["second", "third"]
    places = {seat.probe.manifest.name: seat.states.start for seat in engines.first.bank.seats}
    assert places == {"second": 1, "third": 0}


@pytest.mark.parametrize("method", ["probewatch_prepare", "probewatch_prepared", "probewatch_commit"])
async def test_what_a_worker_cannot_prepare_changes_nothing(folder: Path, method: str) -> None:
    engines, workers = make_engines(folder), Workers(fail=method)
    before = engines.first.bank
    with pytest.raises(AttachError, match="planted"):
        await Control(engines, workers, None, folder, None).attach("second.safetensors")
    assert workers.methods[-1] == "probewatch_discard"
    assert engines.first.bank is before


async def test_threshold_and_action_reach_servers_and_workers_without_new_taps(folder: Path) -> None:
    engines, workers = make_engines(folder), Workers()
    control = Control(engines, workers, None, folder, None)
    await control.change("first", 7.5, "observe")
    assert workers.calls == [("probewatch_restate", ([("first", 7.5, "observe")],))]
    assert engines.first.bank.seats[0].probe.manifest.threshold == 7.5
    assert engines.first.bank.actions == {"first": "observe"}


async def test_nonsense_is_refused_by_name(folder: Path) -> None:
    control = Control(make_engines(folder), Workers(), None, folder, None)
    with pytest.raises(UnknownProbe, match="attached are first"):
        await control.detach("nobody")
    with pytest.raises(ConfigurationError, match="finite"):
        await control.change("first", float("nan"), None)
    with pytest.raises(ConfigurationError, match="explode"):
        await control.change("first", None, "explode")
    with pytest.raises(AttachError, match="must differ"):
        await control.attach("first.safetensors")


@pytest.mark.parametrize(
    "path", ["../out.safetensors", "/etc/passwd", "link.safetensors", "absent", ".", "a\0b", "x" * 5000]
)
def test_nothing_outside_the_folder_is_reached(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "probes"
    folder.mkdir()
    (tmp_path / "out.safetensors").write_bytes(b"secret")
    (folder / "link.safetensors").symlink_to(tmp_path / "out.safetensors")
    with pytest.raises(ConfigurationError, match="PROBEWATCH_PROBE_DIR"):
        inside(folder, path)


class Server:
    """Two API servers of one server, in one process."""

    def __init__(self, folder: Path, workers: Workers) -> None:
        self.engines = [make_engines(folder) for _ in range(2)]
        self.peers = [Peers(folder / "peers", self._answer(i)) for i in range(2)]
        for i, peers in enumerate(self.peers):
            peers._socket = folder / "peers" / f"{i}.sock"
        self.controls = [
            Control(engines, workers, None, folder, peers)
            for engines, peers in zip(self.engines, self.peers, strict=True)
        ]

    def _answer(self, index: int) -> Callable[[dict[str, Any]], Any]:
        async def answer(question: dict[str, Any]) -> Any:
            return await self.controls[index].accept(question["become"])

        return answer


@pytest.fixture
async def server(folder: Path) -> Server:
    found = Server(folder, Workers())
    for peers in found.peers:
        await peers.listen()
    return found


async def test_every_api_server_learns_of_a_change(server: Server) -> None:
    await server.controls[0].attach("second.safetensors")
    await server.controls[1].change("second", 9.0, None)
    await server.controls[1].detach("first")
    for engines in server.engines:
        assert names(engines) == ["second"]
        assert engines.first.bank.seats[0].probe.manifest.threshold == 9.0
        assert engines.first.bank.epoch == 2


async def test_changes_from_two_api_servers_take_turns(server: Server) -> None:
    await asyncio.gather(
        server.controls[0].change("first", 2.0, None), server.controls[1].attach("second.safetensors")
    )
    assert [names(engines) for engines in server.engines] == [["first", "second"]] * 2


async def test_an_api_server_that_refuses_stops_the_change(server: Server) -> None:
    server.controls[1].accept = None  # type: ignore[assignment,method-assign]
    with pytest.raises(ServerError, match="did not answer"):
        await server.controls[0].attach("second.safetensors")
    assert names(server.engines[0]) == ["first"]
