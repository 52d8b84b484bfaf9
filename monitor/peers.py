"""Several API servers, one answer: each keeps the verdicts of its own requests and asks the others for theirs.

They are processes of one server on one machine. Each listens on a Unix socket in a folder that only its user can
enter; a question is JSON up to the end of its stream, and so is the answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from monitor.errors import ConfigurationError, ServerError

Answer = Callable[[dict[str, Any]], Awaitable[Any]]

logger = logging.getLogger("probewatch")

PATIENCE_SECONDS = 10.0
_SUFFIX = ".sock"


class Peers:
    """This process among its peers. ``answer`` gives this process's own answer to a question."""

    def __init__(self, folder: Path, answer: Answer, count: int = 1, name: str | None = None) -> None:
        """``count``: of all of them. ``name``: of this one (default: its process id). Raises ``ConfigurationError``."""
        self._folder = folder
        self._answer = answer
        self._count = count
        self._name = f"{name or os.getpid()}{_SUFFIX}"
        self._reach = _reach(folder)
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Starts answering. Must run in the event loop that will serve."""
        (self._folder / self._name).unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._reach / self._name)

    def check_complete(self) -> None:
        """Raises ``ServerError`` while some API server has yet to start: it could not be told of a change."""
        found = len(list(self._folder.glob(f"*{_SUFFIX}")))
        if found < self._count:
            raise ServerError(f"{found} of {self._count} API servers have started; try again when all have")

    async def ask(self, question: dict[str, Any], strict: bool = False) -> list[Any]:
        """What the others answer. One that does not answer, or refuses, is left out; ``strict`` raises ``ServerError``
        then, unless its process is gone."""
        others = sorted(path.name for path in self._folder.glob(f"*{_SUFFIX}") if path.name != self._name)
        found = await asyncio.gather(*(self._ask_one(name, question, strict) for name in others))
        return [answer for answer in found if answer is not None]

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """One of all API servers at a time."""
        with (self._folder / "lock").open("w") as file:
            await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
            yield

    async def _ask_one(self, name: str, question: dict[str, Any], strict: bool) -> Any:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._reach / name)
                try:
                    writer.write(json.dumps(question).encode())
                    writer.write_eof()
                    reply = json.loads(await reader.read())
                finally:
                    writer.close()
            if reply.get("error") is None:
                return reply["answer"]
            message = f"API server {name.removesuffix(_SUFFIX)} refused: {reply['error']}"
        except (ConnectionRefusedError, FileNotFoundError):
            (self._folder / name).unlink(missing_ok=True)  # its process has ended
            return None
        except (OSError, ValueError, TimeoutError) as error:
            what = f"{type(error).__name__}: {error}"
            message = f"API server {name.removesuffix(_SUFFIX)} did not answer ({what}); restart the server"
        if strict:
            raise ServerError(message)
        logger.warning("probewatch: %s", message)
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                reply = {"answer": await self._answer(json.loads(await reader.read()))}
            except Exception as error:  # a question of ours gone wrong must not end the server
                logger.warning("probewatch: a question of another API server failed: %s", error)
                reply = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
            writer.write(json.dumps(reply).encode())
            await writer.drain()
        except ConnectionError as error:
            logger.warning("probewatch: another API server did not wait for its answer: %s", error)
        finally:
            writer.close()


def _reach(folder: Path) -> Path:
    """The folder by its descriptor, open as long as this process lives: the path of a Unix socket has 107 bytes at
    most, that of a folder may have more. Raises ``ConfigurationError`` where others could enter."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise ConfigurationError(
            f"the API servers cannot meet in {folder} ({error.strerror}); set PROMETHEUS_MULTIPROC_DIR to a folder of "
            "your own"
        ) from error
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigurationError(
            f"other users can enter {folder}, where the API servers meet; remove it, or set PROMETHEUS_MULTIPROC_DIR "
            "to a folder of your own"
        )
    return Path(f"/proc/self/fd/{descriptor}")
