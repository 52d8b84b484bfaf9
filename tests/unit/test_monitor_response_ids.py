"""Every shape of request id that vLLM derives from a response id leads back to it."""

from __future__ import annotations

import pytest

from monitor.response_ids import LONGEST, known_as, locate

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


def test_an_id_of_megabytes_is_kept_as_its_beginning_and_its_digest() -> None:
    longest = "chatcmpl-" + "x" * (LONGEST - 9)
    assert locate(longest, "u").response_id == known_as(longest) == longest
    first, second = (f"cmpl-{'x' * 10_000_000}{end}" for end in "ab")
    kept = {locate(f"{one}-3", "u") for one in (first, second)}
    assert {place.response_id for place in kept} == {known_as(first), known_as(second)}
    assert {place.prompt for place in kept} == {3}
    assert all(len(place.response_id) < 200 and place.response_id.startswith("cmpl-xx") for place in kept)
    assert known_as(known_as(first)) == known_as(first)
