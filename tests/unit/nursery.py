"""Processes of their own for tests, without the seconds that importing torch costs each: one interpreter that forks.

It has imported what is large and none of ours, nor prometheus_client, which decides at its import whether several
processes share its metrics. Each program runs as a script would: its threads are waited for, its exit handlers called.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[2]


def run(
    program: str, *processes: Sequence[object], environment: Mapping[str, str] | None = None
) -> list[str]:
    """What each process printed. They run side by side, each with its own arguments; each has to end with status 0."""
    asked = {
        "program": program,
        "processes": [[str(argument) for argument in arguments] for arguments in processes],
        "environment": dict(environment or {}),
    }
    nurse = _nurse()
    assert nurse.stdin is not None
    assert nurse.stdout is not None
    print(json.dumps(asked), file=nurse.stdin, flush=True)
    answers = json.loads(nurse.stdout.readline())
    for status, output in answers:
        assert status == 0, output
    return [output for _, output in answers]


@functools.cache
def _nurse() -> subprocess.Popen[str]:
    """Ends when its standard input does, at the latest with this process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, __file__], cwd=ROOT, env=environment, stdin=-1, stdout=-1, text=True
    )


def _main() -> None:
    import numpy
    import pydantic_settings
    import pytest
    import torch

    assert all((numpy, pydantic_settings, pytest, torch))
    gc.freeze()  # a collection in a child would copy every page
    for line in sys.stdin:
        asked = json.loads(line)
        files = [Path(tempfile.mkstemp(prefix="nursery-")[1]) for _ in asked["processes"]]
        children = []
        for arguments, file in zip(asked["processes"], files, strict=True):
            child = os.fork()
            if child == 0:
                _become(asked["program"], arguments, asked["environment"], file)
            children.append(child)
        answers = []
        for child, file in zip(children, files, strict=True):
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            answers.append((status, file.read_text()))
            file.unlink()
        print(json.dumps(answers), flush=True)


def _become(program: str, arguments: list[str], environment: dict[str, str], output: Path) -> NoReturn:
    written = os.open(output, os.O_WRONLY)
    os.dup2(written, 1)
    os.dup2(written, 2)
    os.environ.update(environment)
    sys.argv[1:] = arguments
    warnings.simplefilter("error", UserWarning)
    status = 0
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
        # What an interpreter does at its end, in this order; without taking all of torch apart, which takes seconds.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    _main()
