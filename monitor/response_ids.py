"""From vLLM's request ids back to the id of the OpenAI response that a client knows.

One response may be several requests of the engine. vLLM derives their ids from the response's:

    cmpl-X-0, cmpl-X-1 ...         the prompts of a completion
    chatcmpl-X-<32 hex>-beam-0     one step of one beam of a beam search
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

LONGEST = 1024
"""Characters of an id that is kept as it is."""
_BEAM = re.compile(r"(?P<head>.+)-[0-9a-f]{32}-beam-(?P<index>\d{1,5})")
_PROMPT = re.compile(r"(?P<head>cmpl-.+)-(?P<index>\d{1,5})")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sequence belongs."""

    response_id: str
    prompt: int
    """Index of its prompt, turn or beam within the response."""
    group: str | None
    """What the sequences of this one response share and no other response does; None if vLLM gives no such thing."""


def known_as(response_id: str) -> str:
    """The id under which the monitor keeps a response.

    A client may choose one of megabytes, which memory and disk would hold many times, and which a log or a receiver
    would refuse along with the flag: such a one is its beginning and its SHA-256.
    """
    if len(response_id) <= LONGEST:
        return response_id
    digest = hashlib.sha256(response_id.encode(errors="surrogatepass")).hexdigest()
    return f"{response_id[:64]}~sha256-{digest}"


def locate(external_id: str, internal_id: str) -> Place:
    """The place of a request. ``internal_id`` is unique; ``external_id`` may come from the client and come again."""
    if found := _BEAM.fullmatch(external_id):
        # Every step of a beam is a request of its own: the latest one stands for the beam.
        base = locate(found["head"], internal_id)
        return Place(base.response_id, int(found["index"]), f"beams of {base.response_id}")
    if found := _PROMPT.fullmatch(external_id):
        return Place(known_as(found["head"]), int(found["index"]), None)
    return Place(known_as(external_id), 0, internal_id)
