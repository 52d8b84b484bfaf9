"""Background work that leaves the cores, and the interpreter, to the model."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")

TURN_SECONDS = 0.5e-3
"""How long a thread that computes a step waits for the interpreter while background work holds it; Python's own 5 ms
are longer than many a step."""

_lock = threading.Lock()
_at_work = 0
_usual = 0.0


class QuietThread(ThreadPoolExecutor):
    """One thread, in which torch computes without helpers, and which gives way quickly while it works."""

    def __init__(self) -> None:
        super().__init__(1, "probewatch", initializer=_compute_alone)

    def submit(self, fn: Callable[..., Found], /, *args: Any, **kwargs: Any) -> Future[Found]:
        """As for any executor."""
        return super().submit(_giving_way, fn, *args, **kwargs)


def _giving_way(work: Callable[..., Found], *args: Any, **kwargs: Any) -> Found:
    with _short_turns():
        return work(*args, **kwargs)


@contextmanager
def _short_turns() -> Iterator[None]:
    """The interval is the process's; the last to finish puts it back."""
    global _at_work, _usual
    with _lock:
        if not _at_work:
            _usual = sys.getswitchinterval()
            sys.setswitchinterval(min(_usual, TURN_SECONDS))
        _at_work += 1
    try:
        yield
    finally:
        with _lock:
            _at_work -= 1
            if not _at_work:
                sys.setswitchinterval(_usual)


def _compute_alone() -> None:
    """OpenMP gives every thread that computes a team of its own, whose members fight the model's for the cores and
    wait for work by spinning. ``torch.set_num_threads`` would change MKL for the whole process."""
    torch.get_num_threads()  # lets torch set up this thread, which would undo what follows
    set_num_threads = getattr(ctypes.CDLL(None), "omp_set_num_threads", None)
    if set_num_threads is not None:  # a torch without OpenMP
        set_num_threads(1)
