"""Every shape of request id that vLLM derives from a response id leads back to it."""

from __future__ import annotations

import pytest

from monitor.response_ids import locate

HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("external", "response_id", "prompt"),
    [
        ("chatcmpl-ab12", "chatcmpl-ab12", 0),
        ("cmpl-ab12-0", "cmpl-ab12", 0),
        ("cmpl-ab12-17", "cmpl-ab12", 17),
        ("chatcmpl-ab12_3", "chatcmpl-ab12_3", 0),  # a client may end its own id so
        ("resp_ab12_1", "resp_ab12_1", 0),
        (f"chatcmpl-ab12-{HEX}-beam-4", "chatcmpl-ab12", 4),
        (f"cmpl-ab12-0-{HEX}-beam-2", "cmpl-ab12", 2),
        ("7", "7", 0),
        ("chatcmpl-my-own-name", "chatcmpl-my-own-name", 0),
    ],
)
def test_an_id_leads_back_to_its_response(external: str, response_id: str, prompt: int) -> None:
    place = locate(external, "internal")
    assert (place.response_id, place.prompt) == (response_id, prompt)


def test_two_requests_under_one_id_of_the_clients_choice_stay_apart() -> None:
    assert locate("chatcmpl-same", "a").group != locate("chatcmpl-same", "b").group


def test_the_steps_of_a_beam_stand_for_one() -> None:
    steps = [locate(f"chatcmpl-x-{HEX}-beam-1", internal) for internal in ("a", "b")]
    assert steps[0] == steps[1]
