"""The server as a child process: its command, its start, and its end with everything it started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from monitor.client import Server
from monitor.demo.patience import patient
from monitor.errors import ConfigurationError, ServerError
from monitor.shipped import MODEL_NAME

START_SECONDS: Final = 900.0
STOP_SECONDS: Final = 15.0
POLL_SECONDS: Final = 0.5
_TAIL_BYTES: Final = 65536

_INFO = re.compile(r"INFO [\d-]+ [\d:]+ \[[^\]]*\] (?P<message>[A-Z][^=]*)$")
_PREFIX = re.compile(r"^(\([^)]*\) )?((ERROR|CRITICAL|WARNING|INFO) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
_FAILURE = re.compile(
    r"^\s*(?P<error>[\w.]*(Error|Exception|Interrupt|Exit)\b: .+|error: .+|probewatch serve: .+)$"
)
_REFUSED = "probewatch: refused"
_NOISE = (
    "Final IR op",
    "OpenMP",
    "Auto-prefetch",
    "Filesystem type",
    "Route: ",
    "Scale-out",
    "Parent process",
)
"""INFO lines that tell a newcomer nothing, besides those with settings in them."""


def serve_command(model: str, artifacts: Sequence[str], port: int) -> list[str]:
    """The command line of the child: a laptop's worth of ``probewatch serve``."""
    return [
        *(sys.executable, "-m", "monitor.cli", "serve", model),
        *(f"--probe={path}" for path in artifacts),
        "--host=127.0.0.1",
        f"--port={port}",
        f"--served-model-name={MODEL_NAME}",
        "--max-model-len=2048",
        "--max-num-seqs=32",
        "--gpu-memory-utilization=0.4",
    ]


def serve_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The child's environment: nothing of the user's own monitor settings or keys, evidence open on loopback.

    It keeps no evidence on disk; who wants some names a file of his own.
    """
    kept = {k: v for k, v in environ.items() if not k.startswith("PROBEWATCH_") and k != "VLLM_API_KEY"}
    defaults = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    # The AOT cache cannot be read back on CPU; the ordinary one makes a second start three times as fast.
    fixed = {"PROBEWATCH_OPEN_EVIDENCE": "1", "VLLM_USE_AOT_COMPILE": "0", "PYTHONUNBUFFERED": "1"}
    return patient({**defaults, **kept, **fixed, "PROBEWATCH_EVIDENCE_PATH": "off"})


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> int:
    """The port, if nobody listens on it: vLLM would find out only after minutes."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"--port {port} cannot be used ({error}); leave it out for a free one"
            ) from error
    return port


class ChildServer:
    """A server in a process group of its own, with its log in a file."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], url: str, log: Path) -> None:
        self.url = url
        self.log = log
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    command,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_death_with_parent(),
                )
        except OSError as error:
            raise ServerError(
                f"the log {log} cannot be written: {error}; choose another --keep-log"
            ) from error

    def wait_ready(self, progress: Callable[[float, str], None], stopping: Callable[[], bool]) -> bool:
        """Waits until the server answers; False if it was told to stop meanwhile. Raises if the server dies."""
        server, start = Server(self.url, timeout=2), time.monotonic()
        while not stopping():
            self.check_alive()
            if server.answers("/health"):
                return True
            elapsed = time.monotonic() - start
            if elapsed > START_SECONDS:
                raise ServerError(f"the server is not ready after {elapsed:.0f} s; its log: {self.log}")
            progress(elapsed, last_message(self._tail()))
            time.sleep(POLL_SECONDS)
        return False

    def check_alive(self) -> None:
        """Raises ``ServerError`` with the reason if the server has ended."""
        code = self._process.poll()
        if code is not None:
            raise ServerError(
                f"the server ended with status {code}: {failure(self._tail())} [log: {self.log}]"
            )

    def stop(self) -> None:
        """Ends the server and every process it started; at once if it is interrupted meanwhile."""
        try:
            self._process.terminate()  # the API server ends its engine itself; does nothing to a dead one
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _tail(self) -> list[str]:
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()


def last_message(lines: Sequence[str]) -> str:
    """The message of the last INFO line that says what the server is doing, short enough for one line."""
    for line in reversed(lines):
        match = _INFO.search(line)
        if match and not any(noise in match["message"] for noise in _NOISE):
            return match["message"].split(". ")[0][:80].strip()
    return ""


_NO_CAUSE = ("Engine core initialization failed", "See root cause above", "See stack trace for root cause")


def failure(lines: Sequence[str]) -> str:
    """Why the server died, in one line: the monitor's own refusal, else the last error, else the last line."""
    for line in reversed(lines):
        if line.startswith(_REFUSED):
            return line.strip()
    plain = [_PREFIX.sub("", line).strip() for line in lines]
    for line in reversed(plain):
        match = _FAILURE.match(line)
        # vLLM ends with errors about its own shutdown, which name no cause.
        if match and not any(said in line for said in _NO_CAUSE):
            return match["error"][:400]
    return next((line[:400] for line in reversed(plain) if line), "it wrote nothing")


def _death_with_parent() -> Callable[[], None] | None:
    """What the child runs first: the kernel shall end it even if this process is killed outright (Linux)."""
    if sys.platform != "linux":
        return None
    prctl, pr_set_pdeathsig = ctypes.CDLL(None).prctl, 1  # looked up before the fork
    return lambda: prctl(pr_set_pdeathsig, signal.SIGTERM)
