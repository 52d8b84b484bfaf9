"""API servers that ask each other: whatever the length of a question, of an answer, or of the folder's path."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from monitor.errors import ConfigurationError, ServerError
from monitor.peers import Peers


async def echo(question: dict[str, Any]) -> Any:
    if "fail" in question:
        raise ValueError("planted,\nin two lines")
    return question


async def two(folder: Path) -> tuple[Peers, Peers]:
    found = [Peers(folder, echo, name=name) for name in "ab"]
    for peers in found:
        await peers.listen()
    return found[0], found[1]


async def test_long_questions_and_answers_arrive_whole(tmp_path: Path) -> None:
    one, _ = await two(tmp_path / "peers")
    question = {"text": "x" * 2_000_000}
    assert await one.ask(question, strict=True) == [question]


async def test_a_folder_may_have_a_longer_path_than_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 50)
    folder.mkdir()
    one, two_ = await two(folder / "peers")
    assert await one.ask({"a": 1}, strict=True) == await two_.ask({"a": 1}, strict=True) == [{"a": 1}]


async def test_a_refusal_arrives_in_one_line(tmp_path: Path) -> None:
    one, _ = await two(tmp_path / "peers")
    with pytest.raises(ServerError, match="API server b refused: planted, in two lines"):
        await one.ask({"fail": 1}, strict=True)
    assert await one.ask({"fail": 1}) == []


async def test_a_process_that_has_ended_is_forgotten(tmp_path: Path) -> None:
    one, other = await two(tmp_path / "peers")
    assert other._server is not None
    other._server.close()
    (tmp_path / "peers" / "b.sock").touch()  # later Pythons remove it themselves
    assert await one.ask({"a": 1}, strict=True) == []
    assert not (tmp_path / "peers" / "b.sock").exists()


async def test_one_that_listens_and_says_nothing_ends_the_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitor.peers.PATIENCE_SECONDS", 0.05)
    folder = tmp_path / "peers"
    one = Peers(folder, echo, name="a")

    async def never(question: dict[str, Any]) -> None:
        await asyncio.sleep(5)

    silent = Peers(folder, never, name="b")
    await silent.listen()
    with pytest.raises(ServerError, match=r"API server b did not answer .*restart the server"):
        await one.ask({"a": 1}, strict=True)


def test_the_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    Peers(tmp_path / "peers", echo)
    assert stat.S_IMODE((tmp_path / "peers").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "peers")
    (tmp_path / "file").touch()
    for name in ("open", "link", "file", "absent/peers"):
        with pytest.raises(ConfigurationError, match="PROMETHEUS_MULTIPROC_DIR"):
            Peers(tmp_path / name, echo)
