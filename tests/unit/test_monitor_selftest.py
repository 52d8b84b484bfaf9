"""Golden inputs of many probes in a few passes: as each alone."""

from __future__ import annotations

import dataclasses

import pytest

from monitor.bank import ProbeBank
from monitor.errors import TapError
from monitor.seam import selftest, tap
from probes import Probe
from tests.unit.monitor_fakes import make_probe

D, LAYERS = 8, (0, 1, 2)


def probes() -> list[Probe]:
    kinds = [{}, {"kind": "steering", "scoring": "cosine"}, {"layers": (0, 2)}, {"layers": (1,)}]
    return [make_probe(f"p{i}", i, **{"layers": (i % 3,), "d_model": D, **kinds[i % 4]}) for i in range(9)]


@pytest.mark.parametrize("rows", [1, 10, 1000])
def test_together_is_as_alone(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tap.define_operation("CPU")
    monkeypatch.setattr(selftest, "ROWS_TOGETHER", rows)
    bank = ProbeBank(probes(), LAYERS, D, 16)
    found = selftest.score_golden_inputs(bank, bank.weights())
    assert list(found) == [f"p{i}" for i in range(9)]
    for probe in probes():
        alone = ProbeBank([probe], LAYERS, D, 16)
        (error,) = selftest.score_golden_inputs(alone, alone.weights()).values()
        assert found[probe.manifest.name] == pytest.approx(error, abs=1e-5)


def test_the_one_that_is_off_is_named() -> None:
    tap.define_operation("CPU")
    found = probes()
    broken = dataclasses.replace(found[5], golden_scores=found[5].golden_scores + 1)
    bank = ProbeBank([*found[:5], broken, *found[6:]], LAYERS, D, 16)
    with pytest.raises(TapError, match="probe 'p5': golden scores through the tap are off by 1"):
        selftest.score_golden_inputs(bank, bank.weights())
