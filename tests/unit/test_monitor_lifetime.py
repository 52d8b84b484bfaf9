"""What a command started does not outlive it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGINE = """
import os, sys, time
from monitor import plugin
plugin.register()
print(os.getpid(), flush=True)
time.sleep(60)
"""
COMMAND = """
import os, subprocess, sys
if sys.argv[2] == "says so":
    os.environ["PROBEWATCH_RUN_BY"] = str(os.getpid())
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


def engine_after_its_command_was_killed(says: str) -> bool:
    """Whether it still runs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROBEWATCH_")}
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, ENGINE, says],
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        engine = int(command.stdout.readline())
        handle = os.pidfd_open(engine)
        command.kill()
        try:
            command.wait()
            ended = bool(select.select([handle], [], [], 10 if says == "says so" else 0.3)[0])
        finally:
            if not ended:
                os.kill(engine, signal.SIGKILL)
            os.close(handle)
    return not ended


def test_an_engine_ends_with_its_command() -> None:
    assert not engine_after_its_command_was_killed("says so")


def test_an_engine_of_somebody_else_is_left_alone() -> None:
    assert engine_after_its_command_was_killed("says nothing")
