"""The engine of a command ends with the command, also where that was killed outright and could tell nobody."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

RUN_BY = "PROBEWATCH_RUN_BY"
"""Process id of the command, set by it."""
_PR_SET_PDEATHSIG = 1


def end_with_the_command() -> None:
    """Asks the kernel to end this process when the command's does, if that started it (Linux).

    vLLM's engine process would otherwise wait for the next request for ever, with the model in memory. Its workers end
    with it.
    """
    command = int(os.environ.get(RUN_BY) or 0)
    if sys.platform != "linux" or os.getppid() != command:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != command:  # it was killed meanwhile
        os.kill(os.getpid(), signal.SIGTERM)
