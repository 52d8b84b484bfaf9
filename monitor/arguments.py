"""What a request may say to the monitor: the ``probewatch_*`` keys of ``vllm_xargs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monitor.errors import RequestError
from monitor.steering import KEY as STEER
from monitor.steering import VectorBank, parse

PREFIX = "probewatch_"
EXPOSE = PREFIX + "expose"
KNOWN = (EXPOSE, STEER)


def ours(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ours. Raises ``RequestError`` for one that does not exist."""
    found = {name: value for name, value in arguments.items() if name.startswith(PREFIX)}
    for name in found:
        if name not in KNOWN:
            raise RequestError(f"vllm_xargs: {name[:64]} is not known; known are {', '.join(KNOWN)}")
    return found


def cache_salt(arguments: Mapping[str, Any], vectors: VectorBank | None, salt: str | None) -> str | None:
    """The salt of a request's KV cache: its own, and how it is steered, because steered keys and values are others.

    Raises ``RequestError`` for an argument that cannot be met.
    """
    asked = ours(arguments).get(STEER)
    if asked is None:
        return salt
    if vectors is None:
        parse(asked, ())  # says that there are none
        return salt
    steers = vectors.parse(asked)
    return f"{vectors.salt(steers)}:{salt or ''}" if steers else salt
