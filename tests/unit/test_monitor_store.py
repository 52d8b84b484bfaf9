"""The score store: rows live and die with their KV slots."""

from __future__ import annotations

import numpy as np
import pytest

from monitor.errors import AttachError
from monitor.store import ScoreStore
from monitor.unscored import Reason, fill, nan_for, reasons
from tests.unit.monitor_fakes import ints


def test_what_was_never_written_is_unscored_and_says_why() -> None:
    store = ScoreStore(6, 2, 1)
    assert (reasons(store.read(ints(0, 3, 5))) == Reason.BEFORE_ATTACH).all()


def test_a_slot_holds_the_score_of_its_latest_token() -> None:
    store = ScoreStore(8, 1, 1)
    store.write(ints(6, 2), np.array([[1], [2]], np.float32))
    store.write(ints(2, 3), np.array([[20], [30]], np.float32))  # slot 2 went to another request
    assert store.read(ints(2, 6, 3, 2))[:, 0].tolist() == [20, 1, 30, 20]


def test_rows_read_do_not_change_when_their_slots_are_written_again() -> None:
    store = ScoreStore(4, 1, 1)
    store.write(ints(0, 1), np.array([[1], [2]], np.float32))
    held = store.read(ints(0, 1))
    store.write(ints(0, 1), np.array([[8], [9]], np.float32))
    assert held[:, 0].tolist() == [1, 2]


def test_an_unscored_token_takes_the_place_of_the_score_before_it() -> None:
    store = ScoreStore(2, 2, 1)
    store.write(ints(0, 1), np.ones((2, 2), np.float32))
    missing = np.empty((1, 2), np.float32)
    fill(missing, Reason.TAP_SILENT)
    store.write(ints(1), missing)
    assert reasons(store.read(ints(0, 1))).tolist() == [[-1, -1], [Reason.TAP_SILENT, Reason.TAP_SILENT]]


def test_copied_blocks_carry_scores_and_reasons_and_leave_the_source() -> None:
    store = ScoreStore(12, 1, 1)
    rows = np.arange(4, dtype=np.float32).reshape(4, 1)
    rows[3] = nan_for(Reason.TAP_SILENT)
    store.write(ints(4, 5, 6, 7), rows)
    store.write(ints(0, 11), np.array([[50], [60]], np.float32))
    store.copy_blocks([(1, 2)], 4)
    for first in (4, 8):
        assert store.read(ints(first, first + 1, first + 2))[:, 0].tolist() == [0, 1, 2]
        assert reasons(store.read(ints(first + 3))).item() == Reason.TAP_SILENT
    assert store.read(ints(0)).item() == 50


def test_a_copied_block_is_independent_of_its_source() -> None:
    store = ScoreStore(4, 1, 1)
    store.write(ints(0, 1), np.array([[1], [2]], np.float32))
    store.copy_blocks([(0, 1)], 2)
    store.write(ints(0), np.array([[9]], np.float32))
    assert store.read(ints(2, 3))[:, 0].tolist() == [1, 2]


def test_a_store_beyond_the_limit_is_refused_with_the_setting_to_raise() -> None:
    with pytest.raises(AttachError, match=r"^[^\n]*16 MiB[^\n]*PROBEWATCH_SCORE_STORE_MIB=15[^\n]*$"):
        ScoreStore(2**20, 4, 15)
    assert ScoreStore(2**18, 4, 4).mib == 4


def test_a_store_that_forgets_keeps_no_score_and_can_be_written_again() -> None:
    store = ScoreStore(4, 1, 1)
    store.forget()
    assert (reasons(store.read(ints(0, 3))) == Reason.BEFORE_ATTACH).all()
    store.write(ints(1, 2), np.array([[1], [2]], np.float32))
    store.forget()
    assert (reasons(store.read(ints(0, 1, 2, 3))) == Reason.NOT_DELIVERED).all()
    store.write(ints(2), np.array([[5]], np.float32))
    assert np.isfinite(store.read(ints(0, 1, 2, 3))[:, 0]).tolist() == [False, False, True, False]
    store.forget()
    assert not np.isfinite(store.read(ints(2))).any()
