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
from monitor.desired import Wanted, load_added
from monitor.engines import Engines
from monitor.errors import AttachError, ConfigurationError, ServerError
from monitor.frontend import Frontend
from monitor.metrics import Metrics
from monitor.peers import Peers
from monitor.records import RecentRecords
from probes import Probe, load
from probes.testing import write_artifact

D_MODEL = 8


class Workers:
    """What two ranks do when called, of which the second may refuse; remembers every call."""

    def __init__(self, *fail: str) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.fail = fail
        self._names: list[str] = []

    async def __call__(self, method: str, arguments: tuple[Any, ...]) -> Any:
        self.calls.append((method, arguments))
        if "died" in self.fail:
            raise RuntimeError("engine core died\nwith a long story")
        error = "AttachError: planted" if method in self.fail else None
        if method == "probewatch_prepare":
            self._names = [one["name"] for one in arguments[0]]
        one, other = (dict.fromkeys(self._names, error) for error in (0.25, 0.5))
        return [
            {"ready": True, "error": None, "result": one},
            {"ready": error is None, "error": error, "result": other},
        ]

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


def make_engines(folder: Path, registry: CollectorRegistry | None = None) -> Engines:
    """Two engines with the probe ``first`` on taps at layers 1 and 2."""
    probe = load(folder / "first.safetensors")
    bank = ProbeBank([probe], (1, 2), D_MODEL, 2)
    recent, counted = RecentRecords(1024), registry or CollectorRegistry()

    def make(index: int) -> Frontend:
        return Frontend(bank, Metrics("m", str(index), counted), "m", recent)

    return Engines(make, [0, 1], recent)


def names(engines: Engines) -> list[str]:
    return [seat.probe.manifest.name for seat in engines.first.bank.seats]


async def test_an_attached_probe_is_prepared_announced_and_committed_in_that_order(folder: Path) -> None:
    engines, workers = make_engines(folder), Workers()
    control = Control(engines, workers, None, folder, None)
    await control.attach("second.safetensors")
    assert workers.methods == ["probewatch_prepare", "probewatch_prepared", "probewatch_commit"]
    desired, epoch = workers.calls[0][1]
    assert [(one["name"], one["file"] and Path(one["file"]).name) for one in desired] == [
        ("first", None),
        ("second", "second.safetensors"),
    ]
    assert epoch == 1
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
    engines, workers = make_engines(folder), Workers(method)
    before, control = engines.first.bank, Control(engines, workers, None, folder, None)
    with pytest.raises(AttachError, match="planted"):
        await control.attach("second.safetensors")
    assert workers.calls[-1] == ("probewatch_undo", (1,))
    assert engines.first.bank is before
    assert control.trouble is None
    workers.fail = ()
    await control.attach("second.safetensors")
    assert engines.first.bank.epoch == 2, "no epoch comes twice with other contents"


async def test_threshold_and_action_are_a_change_like_any_other(folder: Path) -> None:
    engines, workers = make_engines(folder), Workers()
    before = engines.first.bank
    control = Control(engines, workers, None, folder, None)
    await control.change("first", 7.5, "observe")
    (desired, epoch) = workers.calls[0][1]
    assert [(one["name"], one["file"], one["threshold"], one["action"]) for one in desired] == [
        ("first", None, 7.5, "observe")
    ]
    after = engines.first.bank
    assert (epoch, after.epoch) == (1, 1)
    assert after.seats[0].probe.manifest.threshold == 7.5
    assert after.actions == {"first": "observe"}
    assert len(after.shared_with(before)) == 1, "states stay where they are"
    assert before.seats[0].probe.manifest.threshold == 1.0, "sequences that run keep what they began with"


async def test_the_workers_self_test_is_told(folder: Path) -> None:
    registry = CollectorRegistry()
    engines = make_engines(folder, registry)
    control = Control(engines, Workers(), None, folder, None)

    def shown(name: str) -> list[float | None]:
        labels = [{"model_name": "m", "engine": engine, "probe": "first"} for engine in "01"]
        return [registry.get_sample_value(name, own) for own in labels]

    await control.change("first", 2.0, None)
    assert shown("probewatch_selftest_error") == [0.5, 0.5]
    assert shown("probewatch_threshold") == [2.0, 2.0]
    await control.detach("first")
    assert shown("probewatch_selftest_error") == shown("probewatch_threshold") == [None, None]


async def test_what_cannot_be_undone_is_told_until_a_change_succeeds(folder: Path) -> None:
    engines, workers = make_engines(folder), Workers("probewatch_commit", "probewatch_undo")
    control = Control(engines, workers, None, folder, None)
    with pytest.raises(AttachError, match="planted"):
        await control.detach("first")
    assert control.trouble is not None
    assert "planted" in control.trouble
    assert control.trouble.endswith("restart the server")
    workers.fail = ()
    await control.change("first", 3.0, None)
    assert control.trouble is None


async def test_workers_that_cannot_be_asked_are_a_refusal_of_one_line(folder: Path) -> None:
    control = Control(make_engines(folder), Workers("died"), None, folder, None)
    with pytest.raises(AttachError, match="engine core died with a long story"):
        await control.detach("first")
    assert control.trouble is not None
    assert "\n" not in control.trouble


async def test_a_change_whose_request_is_cancelled_is_undone(folder: Path) -> None:
    engines, workers, started = make_engines(folder), Workers(), asyncio.Event()

    async def hanging(method: str, arguments: tuple[Any, ...]) -> Any:
        if method == "probewatch_commit":
            started.set()
            await asyncio.sleep(60)
        return await workers(method, arguments)

    control = Control(engines, hanging, None, folder, None)
    task = asyncio.create_task(control.detach("first"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(engines) == ["first"]
    assert workers.calls[-1] == ("probewatch_undo", (1,))


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
        self.workers = workers
        self.engines = [make_engines(folder) for _ in range(2)]
        self.peers = [Peers(folder / "peers", self._answer(i), count=2, name=str(i)) for i in range(2)]
        self.controls = [
            Control(engines, workers, None, folder, peers)
            for engines, peers in zip(self.engines, self.peers, strict=True)
        ]

    def _answer(self, index: int) -> Callable[[dict[str, Any]], Any]:
        async def answer(question: dict[str, Any]) -> Any:
            return await self.controls[index].answer(question)

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
        assert engines.first.bank.epoch == 3


async def test_changes_from_two_api_servers_take_turns(server: Server) -> None:
    await asyncio.gather(
        server.controls[0].change("first", 2.0, None), server.controls[1].attach("second.safetensors")
    )
    assert [names(engines) for engines in server.engines] == [["first", "second"]] * 2


async def test_an_api_server_that_refuses_stops_the_change_and_says_why(server: Server) -> None:
    server.engines[1].adopt(server.engines[1].first.bank.follow([], epoch=7))
    with pytest.raises(ServerError, match="API server 1 refused: change 1 comes after change 7"):
        await server.controls[0].change("first", 2.0, None)
    assert [names(engines) for engines in server.engines] == [["first"]] * 2
    assert server.controls[0].trouble is None


async def test_an_api_server_that_cannot_go_back_is_told_by_all(server: Server) -> None:
    server.engines[1].adopt(server.engines[1].first.bank.follow([], epoch=7))
    for frontend in server.engines[1].all:
        del frontend._banks[0]
    with pytest.raises(ServerError, match="API server 1 refused"):
        await server.controls[0].change("first", 2.0, None)
    assert "disagree" in str(server.controls[0].trouble)
    assert server.controls[1].trouble == server.controls[0].trouble, "any of them tells"


async def test_a_file_that_is_not_the_same_for_every_api_server_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(desired: list[Wanted]) -> dict[str, Probe]:
        write_artifact(Path(str(desired[-1].file)), seed=99, name="second", layers=(1,), d_model=D_MODEL)
        return load_added(desired)

    monkeypatch.setattr("monitor.control.load_added", other)
    with pytest.raises(ServerError, match="'second' is not the same in every process; attach it again"):
        await server.controls[0].attach("second.safetensors")
    assert [names(engines) for engines in server.engines] == [["first"]] * 2
    assert server.controls[0].trouble is None


async def test_a_failed_commit_takes_every_api_server_back(server: Server) -> None:
    server.workers.fail = ("probewatch_commit",)
    with pytest.raises(AttachError, match="planted"):
        await server.controls[0].attach("second.safetensors")
    assert [engines.first.bank.epoch for engines in server.engines] == [0, 0]
    server.workers.fail = ()
    await server.controls[1].attach("third.safetensors")
    assert [engines.first.bank.epoch for engines in server.engines] == [2, 2]


async def test_nothing_is_changed_while_an_api_server_has_yet_to_start(folder: Path) -> None:
    server = Server(folder, Workers())
    await server.peers[0].listen()
    with pytest.raises(ServerError, match="1 of 2 API servers have started; try again"):
        await server.controls[0].detach("first")
    assert server.workers.calls == []
    await server.peers[1].listen()
    await server.controls[0].detach("first")
    assert [names(engines) for engines in server.engines] == [[], []]
