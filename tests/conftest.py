"""What every test stands on: which tests need an engine, in what order they run, and nothing from outside."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

ENGINE_TESTS = Path(__file__).parent / "engine"
BROWSER_TESTS = Path(__file__).parent / "browser"

# A test never asks the network for anything, and never inherits the configuration of whoever runs it.
os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
for name in [name for name in os.environ if name.startswith("PROBEWATCH_")]:
    del os.environ[name]


# What the tests import are millions of objects that never go; looking for garbage among them took a tenth of the time.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish() -> None:
    """From here on the collector looks at what tests make, and at nothing that was imported."""
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the storm is (``make storm`` asks for more)."""
    parser.addoption(
        "--storm-requests", type=int, default=400, metavar="N", help="requests of tests/engine/test_storm.py"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a browser or an engine, and run it last: a broken unit shows before minutes pass."""
    for item in items:
        if item.path.is_relative_to(BROWSER_TESTS):
            item.add_marker(pytest.mark.browser)
        if item.path.is_relative_to(ENGINE_TESTS):
            item.add_marker(pytest.mark.engine)
    items.sort(key=lambda item: [item.get_closest_marker(name) is not None for name in ("engine", "browser")])
