"""Programs beside Python that tests run; ``deploy/local/test-tools`` brings them."""

from __future__ import annotations

import shutil

import pytest


def program(*names: str) -> str:
    """Path of the first of these that is installed; a test that needs it fails without."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(f"{names[0]} is not installed; run deploy/local/test-tools (make test does)")
    return found
