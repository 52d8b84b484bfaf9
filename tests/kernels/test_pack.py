"""The kernel that takes a step's scores: what it carries, and what it marks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monitor.kernels.pack import Packer
from monitor.unscored import Reason, reasons

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settled(rows: int, requests: int) -> dict[str, torch.Tensor]:
    return {
        "positions": torch.randint(0, 9999, (rows,), device=DEVICE),
        "slots": torch.randint(0, 1 << 31, (rows,), device=DEVICE),
        "starts": torch.arange(requests + 1, dtype=torch.int32, device=DEVICE),
    }


@pytest.mark.parametrize(
    ("layers", "room", "columns", "used", "rows", "written", "requests", "norms"),
    [
        (3, 40, 16, 16, 7, 16, 3, True),
        (3, 40, 16, 3, 7, 16, 3, True),
        (2, 64, 200, 150, 33, 40, 33, False),
        (1, 32, 5, 5, 1, 1, 1, False),
        (2, 50, 16, 1, 20, 50, None, True),
    ],
)
def test_it_carries_the_rows_and_marks_what_was_written(
    layers: int,
    room: int,
    columns: int,
    used: int,
    rows: int,
    written: int,
    requests: int | None,
    norms: bool,
) -> None:
    torch.manual_seed(0)
    scores = torch.randn(layers, room, columns, device=DEVICE)
    squared = torch.rand(layers, room if norms else 0, device=DEVICE)
    before, squared_before = scores.clone(), squared.clone()
    beside = {} if requests is None else settled(rows, requests)
    packed, layout = Packer(scores, squared).take(beside, rows, written, used)
    assert len(packed) == layout.words
    found = layout.split(packed.cpu().numpy())
    assert found.keys() == {"scores", *beside, *(("squared_norms",) if norms else ())}
    np.testing.assert_array_equal(found["scores"], before[:, :rows, :used].cpu())
    if norms:
        np.testing.assert_array_equal(found["squared_norms"], squared_before[:, :rows].cpu())
    for name, one in beside.items():
        np.testing.assert_array_equal(found[name], one.cpu())
    marks = reasons(scores.cpu().numpy())
    assert (marks[:, :written] == Reason.TAP_SILENT).all()
    assert torch.equal(scores[:, written:], before[:, written:])


def test_a_reason_survives_the_trip() -> None:
    packer = Packer(torch.zeros(1, 4, 2, device=DEVICE), torch.zeros(1, 0, device=DEVICE))
    packer.take({}, 4, 4, 2)
    packed, layout = packer.take({}, 4, 4, 2)
    assert (reasons(layout.split(packed.cpu().numpy())["scores"]) == Reason.TAP_SILENT).all()
