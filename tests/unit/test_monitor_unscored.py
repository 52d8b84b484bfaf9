"""A missing score is a NaN that says why, and keeps saying it through every copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monitor.seam.tap import TapBuffers
from monitor.seam.transfer import Transfer
from monitor.unscored import Reason, explain, fill, nan_for, reasons

SCORES = np.array([0.0, -0.0, 1.5, -3e38, 1e-45], np.float32)


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_survives_slices_copies_concatenation_and_bytes(reason: Reason) -> None:
    array = np.zeros((5, 3), np.float32)
    fill(array[1:3, 1:], reason)  # not contiguous
    array[4, 0] = nan_for(reason)
    expected = np.full((5, 3), -1)
    expected[1:3, 1:] = reason
    expected[4, 0] = reason
    travelled = np.frombuffer(bytes(np.concatenate([array[:2], array[2:].copy()]).tobytes()), np.float32)
    travelled = np.ascontiguousarray(
        torch.from_numpy(travelled.reshape(5, 3).copy()).numpy()[:, ::-1][:, ::-1]
    )
    np.testing.assert_array_equal(reasons(travelled), expected)
    assert np.isnan(travelled[expected >= 0]).all()


def test_scores_have_no_reason() -> None:
    assert reasons(SCORES).tolist() == [-1] * len(SCORES)


@pytest.mark.parametrize(
    "bits",
    [
        0x7F800000,  # inf
        0xFF800000,  # -inf
        0x7FC00000,  # NaN of most hardware
        0xFFC00000,  # NaN of x86
        0x7FFFFFFF,  # NaN of CUDA
        0xFFFFFFFF,
    ],
)
def test_what_hardware_makes_is_non_finite(bits: int) -> None:
    found = np.array([bits], np.uint32).view(np.float32)
    assert reasons(found).tolist() == [Reason.NON_FINITE]


def test_a_reason_is_told_whatever_the_sign_of_its_nan() -> None:
    bits = np.array([nan_for(reason) for reason in Reason], np.float32).view(np.uint32) | 0x80000000
    assert reasons(bits.view(np.float32)).tolist() == list(Reason)


def test_reading_reasons_leaves_the_states_as_they_were() -> None:
    array = np.array([[1.0, nan_for(Reason.TAP_SILENT), np.inf]], np.float32)
    before = array.tobytes()
    reasons(array)
    assert array.tobytes() == before


def test_labels_are_the_names_that_dashboards_know() -> None:
    assert [reason.label for reason in Reason] == [
        "non_finite",
        "before_attach",
        "tap_silent",
        "not_delivered",
        "other_adapter",
        "detached",
        "skipped",
    ]


def test_a_silenced_tap_says_so_after_the_trip_through_torch() -> None:
    buffers = TapBuffers.allocate(2, 3, 2, True, torch.device("cpu"))
    buffers.scores[0] = 1.0
    scores = Transfer(buffers.read(3)).arrived()["scores"]
    assert (reasons(scores[0]) == -1).all()
    assert (reasons(scores[1]) == Reason.TAP_SILENT).all()
    assert buffers.silent_layers(3) == [1]


def test_states_that_arithmetic_made_nan_get_their_reason_back() -> None:
    projections = np.ones((2, 4, 3), np.float32)
    projections[1, 2, :] = nan_for(Reason.TAP_SILENT)
    projections[0, 3, 0] = np.nan
    states = np.ones((4, 2), np.float32)
    states[1, 1] = -np.inf
    states[2] = np.array(0x7FFFFFFF, np.uint32).view(np.float32)  # as arithmetic on another machine leaves it
    states[3, 0] = nan_for(Reason.NOT_DELIVERED)
    explain(states, projections)
    silent, bad = int(Reason.TAP_SILENT), int(Reason.NON_FINITE)
    assert reasons(states).tolist() == [[-1, -1], [-1, bad], [silent, silent], [bad, -1]]
    assert states[0].tolist() == [1, 1]
