"""An arm's process as a fork of one that has done nothing but import vLLM, so that a benchmark has time for more
starts. Memory for weights, keys and buffers is its own; where libraries and heap begin is that of the one it was forked
from, which ``forget`` ends."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

from bench import arm
from monitor.demo.patience import patient

_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED = [
    "vllm",
    "vllm.entrypoints.llm",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.engine.core",
    "vllm.v1.worker.gpu_worker",
    "vllm.model_executor.models.llama",
    "bench.arm",
]
"""What every engine imports. Nothing of the monitor: vLLM loads plugins when an engine starts."""


def prepare() -> None:
    """Before the first: puts into this process's environment what the one to fork from reads when it starts."""
    # Arms are ended at once, and it would warn of the semaphores that they leave.
    os.environ.update(patient(os.environ), PYTHONWARNINGS="ignore::UserWarning")


class Forked:
    """As much of ``subprocess.Popen`` as an arm needs."""

    def __init__(self, env: Mapping[str, str], log: Path) -> None:
        """``env``: of the arm's process. What an interpreter reads as it starts must be in this one's already."""
        _CONTEXT.set_forkserver_preload(_IMPORTED)
        ours, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_be_an_arm, args=(theirs, log, dict(env)))
        self._process.start()
        theirs.close()
        self.stdin, self.stdout = os.fdopen(os.dup(ours.fileno()), "w"), os.fdopen(os.dup(ours.fileno()))
        ours.close()

    @property
    def pid(self) -> int:
        """Of the process, which leads a group of its own."""
        assert self._process.pid is not None
        return self._process.pid

    def wait(self) -> int:
        """Its exit status, once it has ended."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def forget() -> None:
    """The next is forked from another, newly started process."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def _be_an_arm(line: Connection, log: Path, env: Mapping[str, str]) -> None:
    os.setsid()
    logged = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for source, target in ((line.fileno(), 0), (line.fileno(), 1), (logged, 2)):
        os.dup2(source, target)
    line.close()
    sys.stdin = os.fdopen(0)
    os.environ.clear()
    os.environ.update(env)
    arm.main()
