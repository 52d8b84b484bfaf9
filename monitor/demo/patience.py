"""A server whose processes wait for each other without holding a core.

vLLM's engine and workers wait in loops of ``sched_yield`` (``SpinCondition`` of its ``shm_broadcast``): the quickest
way where each has a core of its own. On two cores such a loop takes one from the worker that it waits for, and Linux
6.18 then lets other processes wait for seconds. Sleeping for microseconds instead changes nothing that is computed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

PATIENT = Path(__file__).with_name("patient")


def patient(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with ``PATIENT`` at the head of ``PYTHONPATH``: what is started in it sleeps while it waits."""
    rest = environ.get("PYTHONPATH")
    return {**environ, "PYTHONPATH": str(PATIENT) if not rest else f"{PATIENT}{os.pathsep}{rest}"}
