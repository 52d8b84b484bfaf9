"""Background work gives way while it runs, and leaves the interpreter as it was."""

from __future__ import annotations

import sys
import threading

import pytest

from monitor.quiet import TURN_SECONDS, QuietThread


def test_turns_are_short_while_it_works_and_as_before_afterwards() -> None:
    usual = sys.getswitchinterval()
    first, second = QuietThread(), QuietThread()
    entered, leave = threading.Barrier(3), threading.Event()

    def work() -> float:
        entered.wait(5)
        leave.wait(5)
        return sys.getswitchinterval()

    futures = [executor.submit(work) for executor in (first, second)]
    entered.wait(5)
    assert sys.getswitchinterval() == pytest.approx(TURN_SECONDS)
    leave.set()
    assert [future.result(5) for future in futures] == [pytest.approx(TURN_SECONDS)] * 2
    assert sys.getswitchinterval() == usual


def test_what_fails_is_told_and_changes_nothing() -> None:
    usual = sys.getswitchinterval()
    future = QuietThread().submit(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        future.result(5)
    assert sys.getswitchinterval() == usual
