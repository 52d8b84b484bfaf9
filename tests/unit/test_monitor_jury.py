"""Judging probes together gives the verdicts of judging each alone, whatever is missing."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor import jury
from monitor.bank import ProbeBank
from monitor.jury import LOOP_FROM, Jury
from monitor.unscored import Reason, nan_for
from monitor.verdict import judge, of_sequence
from probes import Probe
from probes.artifact import split_golden
from probes.testing import fake_manifest, fake_tensors


def probe(index: int, **fields: object) -> Probe:
    manifest = fake_manifest(name=f"p{index}", layers=(0,), d_model=8, **fields)
    tensors, inputs, scores = split_golden(fake_tensors(manifest, index))
    return Probe(manifest, tensors, inputs, scores)


MASKS = [{}, {"prompt": "all"}, {"prompt": "last_k", "last_k": 2, "generated": False}]
PROBES = [
    probe(
        index,
        aggregation={"method": method, "min_tokens": least, **({"alpha": 0.3} if method == "ema" else {})},
        statistic=statistic,
        token_mask=MASKS[index % 3],
        threshold=None if index % 5 == 4 else 0.2,
    )
    for index, (method, least, statistic) in enumerate(
        (m, n, s)
        for m in ("mean", "max", "last", "ema")
        for n in (1, 3)
        for s in ("final", "running_sup")
        for _ in range(2)
    )
]
BANK = ProbeBank(PROBES, [0], 8, 16)


@pytest.mark.parametrize("many", [1, LOOP_FROM])
@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 12), st.integers(0, 8), st.integers(0, 2**32 - 1), st.sampled_from(["none", "one", "row"])
)
def test_together_is_as_alone(many: int, tokens: int, prompt: int, seed: int, gone: str) -> None:
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(tokens, BANK.state_columns)).astype(np.float32)
    if tokens and gone != "none":
        where = slice(None) if gone == "row" else int(rng.integers(BANK.state_columns))
        states[int(rng.integers(tokens)), where] = nan_for(Reason.TAP_SILENT)
    with mock.patch.object(jury, "LOOP_FROM", many):
        found = Jury(BANK).judge(states, prompt)
    assert list(found) == [one.manifest.name for one in PROBES]
    for seat in BANK.seats:
        alone = judge(seat.probe, states[:, seat.states], prompt)
        together = found[seat.probe.manifest.name]
        assert together.score == (None if alone.score is None else pytest.approx(alone.score, abs=1e-6))
        assert (together.flagged, together.unscored, together.peak_token, together.tokens_scored) == (
            alone.flagged,
            alone.unscored,
            alone.peak_token,
            alone.tokens_scored,
        )
        assert together.threshold == alone.threshold
    places = rng.permutation(len(PROBES))[: int(rng.integers(len(PROBES)))]
    names = [PROBES[place].manifest.name for place in places]
    assert found.worst_of(places) == of_sequence(
        found, {n: "alert" if n in names else "observe" for n in found}
    )


def test_of_equal_scores_the_first_token_is_the_peak() -> None:
    bank = ProbeBank(PROBES[:2], [0], 8, 16)
    states = np.array([[0.0, 0.0], [3.0, 1.0], [3.0, 2.0], [1.0, 2.0]], np.float32)
    found = Jury(bank).judge(states, 1)
    assert [found[one.manifest.name].peak_token for one in PROBES[:2]] == [1, 2]
