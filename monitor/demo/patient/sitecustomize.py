"""Read at its start by every Python process with this folder on its path; see ``monitor/demo/patience.py``."""

import os
import time

PAUSE_SECONDS = 20e-6


def pause() -> None:
    """A short sleep instead of giving way and being scheduled again at once."""
    time.sleep(PAUSE_SECONDS)


os.sched_yield = pause
