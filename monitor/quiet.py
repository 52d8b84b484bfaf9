"""Background work that leaves the cores to the model."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import torch


def quiet_thread() -> ThreadPoolExecutor:
    """One thread, in which torch computes without helpers."""
    return ThreadPoolExecutor(1, "probewatch", initializer=_compute_alone)


def _compute_alone() -> None:
    """OpenMP gives every thread that computes a team of its own, whose members fight the model's for the cores and
    wait for work by spinning. ``torch.set_num_threads`` would change MKL for the whole process."""
    torch.get_num_threads()  # lets torch set up this thread, which would undo what follows
    set_num_threads = getattr(ctypes.CDLL(None), "omp_set_num_threads", None)
    if set_num_threads is not None:  # a torch without OpenMP
        set_num_threads(1)
