"""What a request may say to the monitor: the ``probewatch_*`` keys of ``vllm_xargs``."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from monitor.client import ADMIN_HEADER
from monitor.errors import RequestError
from monitor.steering import KEY, SALT, VectorBank, parse

PREFIX = "probewatch_"
EXPOSE = PREFIX + "expose"
SKIP = PREFIX + "skip"
STEER = KEY
KNOWN = (EXPOSE, STEER, SKIP)

may_skip: ContextVar[bool] = ContextVar("may_skip", default=False)
"""Whether the request that is being admitted came with the admin key."""


def ours(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ours. Raises ``RequestError`` for one that does not exist, or that this request may not use."""
    found = {name: value for name, value in arguments.items() if name.startswith(PREFIX)}
    for name in found:
        if name not in KNOWN:
            raise RequestError(f"vllm_xargs: {name[:64]} is not known; known are {', '.join(KNOWN)}")
    if found.get(SKIP) and not may_skip.get():
        raise RequestError(f"vllm_xargs: {SKIP} needs the server's admin key in the header {ADMIN_HEADER}")
    return found


def cache_salt(arguments: Mapping[str, Any], vectors: VectorBank | None, salt: str | None) -> str | None:
    """The salt of a request's KV cache: its own, and how it is steered, because steered keys and values are others.

    Raises ``RequestError`` for an argument that cannot be met.
    """
    if (salt or "").startswith(SALT):
        raise RequestError(f"cache_salt: {SALT!r} begins the salts of steered requests; choose another")
    asked = ours(arguments).get(STEER)
    if asked is None:
        return salt
    if vectors is None:
        parse(asked, ())  # says that there are none
        return salt
    steers = vectors.parse(asked)
    return f"{vectors.salt(steers)}:{salt or ''}" if steers else salt
