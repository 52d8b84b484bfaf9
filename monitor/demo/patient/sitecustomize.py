"""Read at its start by every Python process with this folder on its path; see ``monitor/demo/patience.py``."""

import importlib
import os
import sys
import time

PAUSE_SECONDS = 20e-6


def pause() -> None:
    """A short sleep instead of giving way and being scheduled again at once."""
    time.sleep(PAUSE_SECONDS)


os.sched_yield = pause

# The path may lead to another of that name, the user's or the system's, which this one stands before. Python itself
# tells its errors, and finds nothing wrong where there is none.
sys.path.remove(os.path.dirname(__file__))
del sys.modules["sitecustomize"]
importlib.import_module("sitecustomize")
