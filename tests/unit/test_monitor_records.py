"""What is shown of a judged sequence: the contract's JSON, complete and without NaN."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from monitor.bank import ProbeBank
from monitor.events import FloatArray
from monitor.records import RecentRecords, Record, detail, headline, of_response, reply, summary
from monitor.unscored import Reason, nan_for
from monitor.verdict import judge, of_sequence
from probes import Probe
from tests.unit.monitor_fakes import alerting, column, make_bank, make_probe

PROMPT = (10, 11, 12)
OUTPUT = (20, 21, 22)
"""Three prompt tokens and two outputs are fed; 22 is not."""
SCORES = (1.0, 2.0, 3.0, 4.0, 5.0)


def record_of(
    bank: ProbeBank,
    states: FloatArray,
    *,
    response_id: str = "r",
    choice: int = 0,
    known_ids: bool = True,
) -> Record:
    """Read-only states, as the frontend keeps them."""
    held = np.frombuffer(states.tobytes(), np.float32).reshape(states.shape)
    verdicts = {s.probe.manifest.name: judge(s.probe, held[:, s.states], len(PROMPT)) for s in bank.seats}
    return Record(
        response_id=response_id,
        group=None,
        choice=choice,
        model="model",
        finished_at=1.0,
        finish_reason="stop",
        verdict=of_sequence(verdicts, bank.actions),
        verdicts=verdicts,
        bank=bank,
        prompt_tokens=len(PROMPT),
        token_ids=np.array(PROMPT + OUTPUT, np.int32) if known_ids else None,
        states=held,
    )


def as_json(value: Any) -> Any:
    """Through JSON that allows no NaN and no infinity."""
    return json.loads(json.dumps(value, allow_nan=False))


def text_of(token: int) -> str:
    return f"<{token}>"


def tokens_of(record: Record, name: str = "lie") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = as_json(detail(record, text_of))["probes"][name]["tokens"]
    return found


def test_every_accepted_position_has_an_entry_and_the_last_was_never_fed() -> None:
    found = tokens_of(record_of(make_bank(alerting()), column(*SCORES)))
    assert [entry["position"] for entry in found] == [0, 1, 2, 3, 4, 5]
    assert [entry["token_id"] for entry in found] == [*PROMPT, *OUTPUT]
    assert [entry["token"] for entry in found] == ["<10>", "<11>", "<12>", "<20>", "<21>", "<22>"]
    assert [entry["phase"] for entry in found] == ["prompt"] * 3 + ["generation"] * 3
    assert [entry["score"] for entry in found] == [*SCORES, None]
    assert [entry["reason"] for entry in found] == [None] * 5 + ["not_fed"]


def test_the_mask_is_told_beside_the_score_and_does_not_hide_it() -> None:
    probe = alerting(token_mask={"prompt": "last_k", "last_k": 1, "skip_positions": (4,)})
    found = tokens_of(record_of(make_bank(probe), column(*SCORES)))
    assert [entry["masked"] for entry in found[:5]] == [True, True, False, False, True]
    assert [entry["score"] for entry in found[:5]] == list(SCORES)


@pytest.mark.parametrize("reason", Reason)
def test_a_missing_score_is_null_with_its_reason(reason: Reason) -> None:
    found = tokens_of(record_of(make_bank(alerting()), column(1, nan_for(reason), 3, 4, 5)))[1]
    assert (found["score"], found["reason"]) == (None, reason.label)


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_an_infinite_score_is_null_and_non_finite(infinite: float) -> None:
    found = tokens_of(record_of(make_bank(alerting()), column(1, 2, infinite, 4, 5)))[2]
    assert (found["score"], found["reason"]) == (None, "non_finite")


def test_prompts_given_as_embeddings_have_positions_and_no_ids() -> None:
    found = tokens_of(record_of(make_bank(alerting()), column(*SCORES), known_ids=False))
    assert [entry["position"] for entry in found] == [0, 1, 2, 3, 4, 5]
    assert {entry["token_id"] for entry in found} == {entry["token"] for entry in found} == {None}
    assert found[-1]["reason"] == "not_fed"


def test_scores_are_those_of_the_right_probe() -> None:
    bank = make_bank(alerting("a"), make_probe("b", threshold=None, default_action="observe"))
    both = np.array([[i, -10 * i] for i in range(5)], np.float32)
    record = record_of(bank, both)
    assert [entry["score"] for entry in tokens_of(record, "b")[:5]] == [-10 * i for i in range(5)]
    assert [entry["score"] for entry in tokens_of(record, "a")[:5]] == [0, 1, 2, 3, 4]


def test_what_a_reply_says() -> None:
    found = as_json(summary(record_of(make_bank(alerting(threshold=4.5)), column(*SCORES))))
    assert found == {
        "verdict": "flagged",
        "probes": {
            "lie": {"score": 5.0, "threshold": 4.5, "flagged": True, "peak_token": 4, "tokens_scored": 5}
        },
        "coverage": {"prompt": 1.0, "generated": 1.0},
    }


def test_nothing_that_is_missing_becomes_nan_in_json() -> None:
    uncalibrated = make_probe("fresh", threshold=None, default_action="observe")
    states = np.full((5, 2), nan_for(Reason.TAP_SILENT), np.float32)
    record = record_of(make_bank(alerting(), uncalibrated), states)
    found = as_json([detail(record, text_of), headline(record), of_response([record, record], text_of)])
    assert found[0]["probes"]["fresh"]["threshold"] is None
    assert found[0]["probes"]["lie"]["score"] is None
    assert found[0]["verdict"] == "unscored"
    assert found[0]["coverage"] == {"prompt": 0.0, "generated": 0.0}


def test_coverage_is_by_phase_and_needs_every_probe() -> None:
    states = np.ones((5, 2), np.float32)
    states[0, 0] = states[4, 1] = nan_for(Reason.BEFORE_ATTACH)
    coverage = record_of(make_bank(alerting("a"), alerting("b")), states).coverage
    assert coverage == {"prompt": pytest.approx(2 / 3), "generated": pytest.approx(1 / 2)}


def test_coverage_of_a_phase_that_was_never_fed_is_null() -> None:
    assert record_of(make_bank(alerting()), column(1, 2, 3)).coverage == {"prompt": 1.0, "generated": None}


def test_of_several_choices_the_worst_is_on_top_and_all_are_listed() -> None:
    bank = make_bank(alerting(threshold=4.5))
    calm = column(0, 0, 0, 0, 0)
    records = [
        record_of(bank, calm, choice=0),
        record_of(bank, column(nan_for(Reason.NON_FINITE), 0, 0, 0, 0), choice=1),
        record_of(bank, column(*SCORES), choice=2),
        record_of(bank, calm, choice=3),
    ]
    found = as_json(of_response(records, text_of))
    assert found["verdict"] == "flagged"
    assert found["id"] == "r"
    assert found["probes"]["lie"]["score"] == 5.0
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert [choice["verdict"] for choice in found["choices"]] == ["ok", "unscored", "flagged", "ok"]
    assert all(
        set(choice) == {"index", "verdict", "finish_reason", "probes", "coverage"}
        for choice in found["choices"]
    )
    assert [len(choice["probes"]["lie"]["tokens"]) for choice in found["choices"]] == [6] * 4
    assert as_json(of_response(records[:2], text_of))["verdict"] == "unscored"
    assert "choices" not in of_response(records[:1], text_of)


def test_a_reply_lists_several_choices_alike_and_without_tokens() -> None:
    bank = make_bank(alerting(threshold=4.5))
    records = [record_of(bank, column(0, 0, 0, 0, 0)), record_of(bank, column(*SCORES), choice=1)]
    found = as_json(reply(records))
    assert {key: found[key] for key in ("verdict", "probes", "coverage")} == as_json(summary(records[1]))
    assert [(choice["index"], choice["verdict"]) for choice in found["choices"]] == [
        (0, "ok"),
        (1, "flagged"),
    ]
    assert "position" not in json.dumps(found)
    assert reply(records[:1]) == summary(records[0])


def test_a_headline_names_the_acting_probes_that_flagged_and_holds_no_token() -> None:
    bank = make_bank(alerting("acts"), make_probe("watches", threshold=0.0))
    found = headline(record_of(bank, np.ones((5, 2), np.float32)))
    assert found["flagged_by"] == ["acts"]
    assert (found["prompt_tokens"], found["fed_tokens"], found["verdict"]) == (3, 5, "flagged")
    assert "tokens" not in json.dumps(as_json(found)).replace("prompt_tokens", "").replace(
        "fed_tokens", ""
    ).replace("tokens_scored", "")


def test_reading_a_record_puts_no_warning_into_the_log() -> None:
    record = record_of(make_bank(alerting()), column(*SCORES))
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else torch warns once in a process, and another test may have had it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            detail(record, text_of)
    finally:
        torch.set_warn_always(always)


def numbered(response: int, choice: int = 0) -> Record:
    return record_of(make_bank(alerting()), column(*SCORES), response_id=f"r{response}", choice=choice)


def test_only_the_latest_responses_are_remembered_each_with_all_its_choices() -> None:
    recent = RecentRecords(3)
    for response in range(5):
        for choice in (1, 0):
            recent.add(numbered(response, choice))
    assert len(recent) == 3
    assert [len(recent.of(f"r{i}")) for i in range(5)] == [0, 0, 2, 2, 2]
    assert [record.choice for record in recent.of("r4")] == [0, 1]
    assert [record.response_id for record in recent.newest(3)] == ["r4", "r4", "r3"]


def test_a_response_whose_choice_ends_late_is_not_the_oldest() -> None:
    recent = RecentRecords(2)
    for response, choice in ((0, 0), (1, 0), (0, 1), (2, 0)):
        recent.add(numbered(response, choice))
    assert [len(recent.of(f"r{i}")) for i in range(3)] == [2, 0, 1]


def test_a_response_id_that_comes_again_does_not_erase_the_first_answer() -> None:
    """A client chooses it (X-Request-Id), and may hope to overwrite a flagged answer by a harmless one."""
    recent = RecentRecords(1024)
    bank = make_bank(alerting(threshold=4.5))
    recent.add(record_of(bank, column(*SCORES)))
    recent.add(record_of(bank, column(0, 0, 0, 0, 0)))
    assert sorted(record.verdict for record in recent.newest(10)) == ["flagged", "ok"]


def test_an_unknown_response_has_no_records() -> None:
    assert RecentRecords(2).of("nobody") == []
    assert RecentRecords(2).newest(5) == []


def test_the_scores_of_a_probe_are_its_token_scores() -> None:
    probe: Probe = alerting("b", seed=4)
    expected = probe.score_tokens(probe.golden_inputs)
    states = np.vstack([probe.token_state(probe.golden_inputs).numpy(), column(0, 0)])
    found = tokens_of(record_of(make_bank(probe), states), "b")
    assert [entry["score"] for entry in found[:3]] == pytest.approx(expected.tolist())
