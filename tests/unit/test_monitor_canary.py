"""The proof that the compiled model writes to every tap."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from monitor.errors import TapError
from monitor.seam.canary import require_taps
from monitor.seam.tap import TapBuffers

LAYERS = {0: 2, 2: 7}
"""Of three taps, the second is in another pipeline stage."""


def buffers() -> TapBuffers:
    found = TapBuffers.allocate(3, 16, 2, False, torch.device("cpu"))
    found.silence()
    return found


def worker(taps: TapBuffers, fires: Sequence[int], rows_short: int = 0) -> Any:
    """Its model writes to the taps that fire, all rows or some fewer."""

    def dummy_run(rows: int, **_: Any) -> None:
        for index in fires:
            taps.scores[index, : rows - rows_short] = 1.0

    runner = SimpleNamespace(max_num_reqs=8, _dummy_run=dummy_run)
    return SimpleNamespace(model_runner=runner, device=torch.device("cpu"))


def test_taps_that_fire_are_proven_and_silent_again() -> None:
    taps = buffers()
    require_taps(worker(taps, [0, 2]), taps, LAYERS)
    assert sorted(taps.silent_layers(4)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("fires", "rows_short", "silent"), [([0], 0, [7]), ([0, 1], 0, [7]), ([0, 2], 1, [2, 7])]
)
def test_a_tap_that_does_not_fire_is_named(fires: list[int], rows_short: int, silent: list[int]) -> None:
    taps = buffers()
    with pytest.raises(TapError, match=r"the taps of layers .* did not fire") as caught:
        require_taps(worker(taps, fires, rows_short), taps, LAYERS)
    assert f"layers {silent}" in str(caught.value)
