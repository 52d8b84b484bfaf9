"""How much memory this host, or the container that the process lives in, still has."""

from __future__ import annotations

from pathlib import Path

MIB = 2**20
_LIMITS = (
    ("memory.max", "memory.current"),  # cgroup v2
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),  # v1
)


def free_mib(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """MiB that can be taken: what the kernel calls available, and no more than the container's limit leaves.

    The page cache counts as taken in the second, so it errs to the safe side. 0 where neither can be read.
    """
    found = [*_available(proc / "meminfo"), *_below_limit(cgroup)]
    return min(found, default=0) // MIB


def _available(meminfo: Path) -> list[int]:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]


def _below_limit(cgroup: Path) -> list[int]:
    found = []
    for limit, usage in _LIMITS:
        try:
            found.append(int((cgroup / limit).read_text()) - int((cgroup / usage).read_text()))
        except (OSError, ValueError):  # not there, or "max": no limit
            continue
    return found
