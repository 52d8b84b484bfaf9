"""Several API servers, one answer: each keeps the verdicts of its own requests and asks the others for theirs.

They are processes of one server on one machine. Each listens on a Unix socket in a folder that only its user can
enter; a question is one line of JSON, the answer JSON up to the end of the stream.
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

from monitor.errors import ServerError

Answer = Callable[[dict[str, Any]], Awaitable[Any]]

logger = logging.getLogger("probewatch")

PATIENCE_SECONDS = 10.0
_LONGEST_LINE = 64 * 1024
_SUFFIX = ".sock"


class Peers:
    """This process among its peers. ``answer`` gives this process's own answer to a question."""

    def __init__(self, folder: Path, answer: Answer) -> None:
        self._folder = folder
        self._answer = answer
        self._socket = folder / f"{os.getpid()}{_SUFFIX}"
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Starts answering. Must run in the event loop that will serve."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self._socket, limit=_LONGEST_LINE)

    async def ask(self, question: dict[str, Any], strict: bool = False) -> list[Any]:
        """What the others answer. One that does not answer is left out; ``strict`` raises ``ServerError`` then, unless
        its process is gone."""
        others = [path for path in sorted(self._folder.glob(f"*{_SUFFIX}")) if path != self._socket]
        found = await asyncio.gather(*(self._ask_one(path, question, strict) for path in others))
        return [answer for answer in found if answer is not None]

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """One of all API servers at a time."""
        with (self._folder / "lock").open("w") as file:
            await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
            yield

    async def _ask_one(self, path: Path, question: dict[str, Any], strict: bool) -> Any:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    writer.write(json.dumps(question).encode() + b"\n")
                    return json.loads(await reader.read(-1))
                finally:
                    writer.close()
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)  # its process has ended
            return None
        except (OSError, ValueError, TimeoutError) as error:
            message = (
                f"API server {path.stem} did not answer ({type(error).__name__}: {error}); restart the server"
            )
            if strict:
                raise ServerError(message) from error
            logger.warning("probewatch: %s", message)
            return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._answer(json.loads(await reader.readline()))
            writer.write(json.dumps(answer).encode())
            await writer.drain()
        except Exception as error:  # a question of ours gone wrong must not end the server
            logger.warning("probewatch: a question of another API server failed: %s", error)
        finally:
            writer.close()
