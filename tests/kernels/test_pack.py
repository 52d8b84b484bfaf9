"""The kernel that takes a step's scores: what it carries, and what it marks."""

from __future__ import annotations

import pytest
import torch

from monitor.kernels.pack import fits, take
from monitor.unscored import Reason, reasons

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def settled(rows: int, requests: int) -> dict[str, torch.Tensor]:
    return {
        "positions": torch.randint(0, 9999, (rows,), device=DEVICE),
        "slots": torch.randint(0, 1 << 40, (rows,), device=DEVICE),
        "starts": torch.arange(requests + 1, dtype=torch.int32, device=DEVICE),
    }


@pytest.mark.parametrize(
    ("layers", "room", "columns", "rows", "written", "requests", "norms"),
    [
        (3, 40, 16, 7, 16, 3, True),
        (2, 64, 200, 33, 40, 33, False),
        (1, 32, 5, 1, 1, 1, False),
        (2, 50, 16, 20, 50, None, True),
    ],
)
def test_it_carries_the_rows_and_marks_what_was_written(
    layers: int, room: int, columns: int, rows: int, written: int, requests: int | None, norms: bool
) -> None:
    torch.manual_seed(0)
    scores = torch.randn(layers, room, columns, device=DEVICE)
    squared = torch.rand(layers, room if norms else 0, device=DEVICE)
    before, squared_before = scores.clone(), squared.clone()
    beside = {} if requests is None else settled(rows, requests)
    assert fits(beside)
    packed, layout = take(scores, squared, beside, rows, written)
    found = layout.split(packed.cpu())
    assert torch.equal(found["scores"], before[:, :rows].cpu())
    if norms:
        assert torch.equal(found["squared_norms"], squared_before[:, :rows].cpu())
    for name, one in beside.items():
        assert torch.equal(found[name], one.cpu())
    marks = reasons(scores.cpu().numpy())
    assert (marks[:, :written] == Reason.TAP_SILENT).all()
    assert torch.equal(scores[:, written:], before[:, written:])


def test_a_reason_survives_the_trip() -> None:
    scores = torch.zeros(1, 4, 2, device=DEVICE)
    take(scores, torch.zeros(1, 0, device=DEVICE), {}, 4, 4)
    packed, layout = take(scores, torch.zeros(1, 0, device=DEVICE), {}, 4, 4)
    assert (reasons(layout.split(packed.cpu())["scores"].numpy()) == Reason.TAP_SILENT).all()


def test_other_types_than_the_kernels_travel_in_another_way() -> None:
    beside = settled(3, 1)
    assert not fits({**beside, "slots": beside["slots"].int()})
    assert not fits({"blocks": beside["slots"]})
