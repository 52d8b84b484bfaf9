"""Tensors on their way to the host are what they were when the transfer began."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from monitor.seam.tap import TapBuffers
from monitor.seam.transfer import Transfer
from monitor.unscored import Reason, fill, nan_for, reasons

DEVICES = [torch.device(name) for name in ["cpu", *["cuda"] * torch.cuda.is_available()]]


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_later_overwrite_does_not_change_what_arrives(device: torch.device) -> None:
    source = torch.arange(12.0, device=device).reshape(3, 4)
    transfer = Transfer({"whole": source, "part": source[:, 1:3]})
    source.fill_(-1)
    found = transfer.arrived()
    np.testing.assert_array_equal(found["whole"], np.arange(12.0).reshape(3, 4))
    np.testing.assert_array_equal(found["part"], np.arange(12.0).reshape(3, 4)[:, 1:3])


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_transfers_in_flight_keep_apart(device: torch.device) -> None:
    buffers = TapBuffers.allocate(2, 6, 2, True, device)
    flying = []
    for step in range(5):
        buffers.scores[:, : step + 1] = float(step)
        buffers.squared_norms[:, : step + 1] = float(10 * step)
        flying.append(Transfer(buffers.read(step + 1)))
        buffers.silence(step + 1)
    with ThreadPoolExecutor(1) as thread:  # as vLLM's output thread does
        found = [thread.submit(transfer.arrived).result() for transfer in flying]
    for step, arrays in enumerate(found):
        assert arrays["scores"].shape == (2, step + 1, 2)
        assert (arrays["scores"] == step).all()
        assert (arrays["squared_norms"] == 10 * step).all()


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_survives_the_trip(reason: Reason) -> None:
    marked = np.zeros((2, 3), np.float32)
    fill(marked, reason)
    marked[1, 1] = 5.0
    found = Transfer({"states": torch.from_numpy(marked)}).arrived()["states"]
    assert reasons(found).tolist() == [[reason] * 3, [reason, -1, reason]]
    assert nan_for(reason).view(np.uint32) == found.view(np.uint32)[0, 0]


def test_it_may_be_asked_twice() -> None:
    transfer = Transfer({"x": torch.ones(3)})
    np.testing.assert_array_equal(transfer.arrived()["x"], transfer.arrived()["x"])
