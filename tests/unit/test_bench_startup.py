"""What the benchmarks of servers and of their start make of planted figures."""

from __future__ import annotations

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
    assert startup.added(starts, "8 probes") == 0.75
    assert "| no |" in lines[2]
