"""LoRA adapters: a probe speaks for what it was trained on, and for nothing else."""

from __future__ import annotations

import numpy as np

from monitor.adapters import REMEMBERED_ADAPTERS, AdapterRules
from monitor.bank import ProbeBank
from monitor.events import FloatArray, StepView
from monitor.unscored import Reason, explain, nan_for, reasons
from probes import Probe
from tests.unit.monitor_fakes import alerting, ints, make_bank

DIGESTS = {"/pirate": "a" * 64, "/poet": "b" * 64}
OTHER = int(Reason.OTHER_ADAPTER)


def bound(name: str, adapter: str | None) -> Probe:
    """A probe of the model, or of the model with the adapter in that folder."""
    digest = None if adapter is None else DIGESTS[adapter]
    return alerting(
        name, binding={"model_id": "m", "config_digest": "0" * 64, "adapter_digest": digest}, layers=(1,)
    )


def view(*adapters: str | None, engine_has_adapters: bool = True) -> StepView:
    """Requests of 1, 2, 3 ... rows."""
    rows = range(1, len(adapters) + 1)
    starts = np.cumsum([0, *rows])
    zeros = np.zeros(len(adapters), np.int64)
    return StepView(
        tuple(map(str, rows)),
        starts,
        zeros,
        zeros,
        zeros,
        np.arange(starts[-1]),
        {},
        adapters if engine_has_adapters else None,
    )


def silenced(bank: ProbeBank, step: StepView, asked: list[str] | None = None) -> list[list[int]]:
    """Reasons ``[T, K]`` after the rules were applied to a step full of scores; -1 where a score stays."""

    def digest_of(folder: str) -> str | None:
        if asked is not None:
            asked.append(folder)
        return DIGESTS.get(folder)

    states = np.ones((step.rows, bank.state_columns), np.float32)
    AdapterRules(bank, digest_of).silence(states, step)
    assert (states[np.isfinite(states)] == 1).all()
    return [[int(code) for code in row] for row in reasons(states)]


def test_a_probe_of_the_model_itself_is_silent_about_every_adapter() -> None:
    bank = make_bank(bound("base", None), alerting("unbound", layers=(1,)))
    assert silenced(bank, view(None, "/pirate", None)) == [[-1, -1]] + [[OTHER] * 2] * 2 + [[-1, -1]] * 3


def test_a_probe_of_one_adapter_is_silent_about_the_model_and_about_others() -> None:
    bank = make_bank(bound("pirate", "/pirate"))
    step = view("/pirate", None, "/poet")
    assert silenced(bank, step) == [[-1]] + [[OTHER]] * 5


def test_each_probe_of_a_mixed_batch_speaks_for_its_own_requests() -> None:
    bank = make_bank(bound("base", None), bound("pirate", "/pirate"), bound("poet", "/poet"))
    found = silenced(bank, view("/poet", None, "/pirate"))
    assert found == [[OTHER, OTHER, -1]] + [[-1, OTHER, OTHER]] * 2 + [[OTHER, -1, OTHER]] * 3


def test_a_folder_that_cannot_be_told_is_nobodys_adapter() -> None:
    bank = make_bank(bound("base", None), bound("pirate", "/pirate"))
    assert silenced(bank, view("/unknown")) == [[OTHER, OTHER]]


def test_an_engine_without_adapters_leaves_everything_as_it_is() -> None:
    bank = make_bank(bound("base", None))
    assert silenced(bank, view(None, None, engine_has_adapters=False)) == [[-1]] * 3


def test_a_folder_is_read_once_and_only_if_a_probe_is_bound_to_an_adapter() -> None:
    asked: list[str] = []
    silenced(make_bank(bound("base", None)), view("/pirate", "/poet"), asked)
    assert asked == []
    silenced(make_bank(bound("pirate", "/pirate")), view("/pirate", "/poet", "/pirate", None), asked)
    assert sorted(asked) == ["/pirate", "/poet"]


def test_the_answer_for_a_folder_holds_over_many_steps() -> None:
    asked: list[str] = []

    def digest_of(folder: str) -> str | None:
        asked.append(folder)
        return DIGESTS.get(folder)

    rules = AdapterRules(make_bank(bound("pirate", "/pirate")), digest_of)
    for _ in range(3):
        states: FloatArray = np.ones((3, 1), np.float32)
        rules.silence(states, view("/pirate", "/unknown"))
        assert reasons(states)[:, 0].tolist() == [-1, OTHER, OTHER]
    assert sorted(asked) == ["/pirate", "/unknown"]


def test_another_adapter_outweighs_what_the_tap_left_there() -> None:
    bank = make_bank(bound("base", None))
    states = np.array([[1.0], [2.0], [3.0]], np.float32)
    projections = np.ones((1, 3, 1), np.float32)
    projections[0, 1:, 0] = nan_for(Reason.TAP_SILENT)
    states[1:] = np.nan
    explain(states, projections)
    step = view("/pirate", None)
    AdapterRules(bank, DIGESTS.get).silence(states, step)
    assert reasons(states)[:, 0].tolist() == [OTHER, Reason.TAP_SILENT, Reason.TAP_SILENT]
    assert step.query_start_loc.tolist() == ints(0, 1, 3).tolist()


def test_what_is_remembered_of_adapters_is_bounded() -> None:
    rules = AdapterRules(make_bank(bound("base", None)), lambda folder: None)
    for n in range(REMEMBERED_ADAPTERS + 50):
        rules.silence(np.ones((1, 1), np.float32), view(f"/adapter-{n}"))
    assert rules._foreign.cache_info().currsize == REMEMBERED_ADAPTERS
