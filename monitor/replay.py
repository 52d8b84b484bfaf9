"""Asking ``probes.words``, a program of its own: a replay shares neither interpreter nor memory with serving."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monitor.words import SECONDS, NoWords, Run

LOWEST, FIRST_TO_DIE = 19, "1000"
"""It computes where nobody else wants the processor, and is what the kernel ends for want of memory."""


def replay(closing: Callable[[], bool] = lambda: False) -> Run:
    """Runs ``probes.words`` as a program. It sees no GPU and no key of ours. ``closing``: whether to give up."""

    def run(question: dict[str, Any]) -> dict[str, Any]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PROBEWATCH_", "VLLM_"))
        }
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "probes.words"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
        )
        with child:
            _step_back(child.pid)  # before it has imported anything
            told = _awaited(child, json.dumps(question).encode(), closing)
        return told

    return run


def _awaited(child: subprocess.Popen[bytes], question: bytes, closing: Callable[[], bool]) -> dict[str, Any]:
    begun = time.monotonic()
    given: bytes | None = question
    while True:
        try:
            out, _ = child.communicate(given, timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            given = None
            late = time.monotonic() - begun > SECONDS
            if late or closing():
                child.kill()
                why = (
                    f"took longer than {SECONDS} s on the host's processor"
                    if late
                    else "ended with the server"
                )
                raise NoWords(f"the replay {why}") from None
    if child.returncode:
        raise NoWords(f"the replay ended with status {child.returncode} (-9: no memory, -14: no time)")
    try:
        found: dict[str, Any] = json.loads(out)
    except ValueError as error:
        raise NoWords(f"the replay answered no JSON ({error}); its model cannot be replayed here") from error
    return found


def _step_back(pid: int) -> None:
    with contextlib.suppress(OSError):  # it may be over already
        os.setpriority(os.PRIO_PROCESS, pid, LOWEST)
        Path(f"/proc/{pid}/oom_score_adj").write_text(FIRST_TO_DIE)
