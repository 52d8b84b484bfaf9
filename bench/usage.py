"""What a process and everything it started has used."""

from __future__ import annotations

from pathlib import Path

import psutil


def family(process: psutil.Process) -> list[psutil.Process]:
    """The process and its descendants."""
    return [process, *process.children(recursive=True)]


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time so far."""
    return float(sum(sum(one.cpu_times()[:2]) for one in family(process)))


def peak_mib(process: psutil.Process) -> float:
    """Largest resident memory of each so far, added up."""
    kib = 0
    for one in family(process):
        status = Path(f"/proc/{one.pid}/status").read_text()
        kib += next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return kib / 2**10
