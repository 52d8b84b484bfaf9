"""What the benchmarks of servers and of their start make of planted figures."""

from __future__ import annotations

import pytest

from bench import startup
from bench.arms import AGAIN, STOCK
from bench.serving import Offered


def test_offered_loads_have_a_pace() -> None:
    assert Offered.parse("8x64+16@4").name == "8 x (64 + 16), at 4 a second"
    assert Offered.parse("8x64+16").name == "8 x (64 + 16), at once"


def test_added_start_up_is_told_against_stock() -> None:
    starts = [
        startup.Start(name, cold, 30.0 + more + 20 * cold, 40.0 + more, 10.0 * cold, not cold, 800.0 + more)
        for name, more in ((STOCK, 0.0), (AGAIN, 0.5), ("8 probes", 1.0))
        for cold in (True, False)
    ]
    lines = startup.table(starts, [STOCK, AGAIN, "8 probes"]).splitlines()
    assert lines[-1] == "| 8 probes | warm | 31.0 | +0.8 | 41.0 | +0.8 | 0.0 | yes | 801 | +1 |", (
        "to both stock"
    )
    assert lines[4].startswith("| 8 probes | cold | 51.0 | +0.8 |")
    assert "| no |" in lines[2]


def rounds(**seconds: list[float]) -> list[startup.Start]:
    return [
        startup.Start(name.replace("_", " "), False, each, 1.0, 1.0, True, 1.0)
        for name, own in seconds.items()
        for each in own
    ]


def test_a_start_is_judged_by_its_interval_beside_stock_against_stock() -> None:
    noise = [-0.3, 0.1, 0.2, -0.1, 0.3, -0.2]
    stock, again = [20 + one for one in noise], [20 - one for one in noise]
    found = rounds(
        stock=stock,
        stock_again=again,
        little=[21.0 + one for one in noise],
        much=[23.0 + one for one in noise],
        unsure=[22.0 + one for one in noise],
    )
    null = startup.added(found, AGAIN)
    assert null.low < 0 < null.high
    assert startup.added(found, "little").value == pytest.approx(1.0)
    said = {name: startup.verdict(startup.added(found, name), null) for name in ("little", "much", "unsure")}
    assert said == {"little": "met", "much": "missed", "unsure": "unresolved"}
    slower = startup.added(rounds(stock=stock, stock_again=[one + 5 for one in again]), AGAIN)
    assert startup.verdict(startup.added(found, "little"), slower) == "unresolved", (
        "stock differs from itself"
    )
    assert startup.verdict(
        startup.added(rounds(stock=[1.0], stock_again=[1.0], little=[1.0]), "little"), null
    ) == ("unresolved"), "no interval"
