"""Outputs that vLLM fetches later: what is to happen then rides on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monitor.seam.patching import wrap
from monitor.wire import CARRIER


def when_fetched(output: Any, complete: Callable[[Any], None]) -> None:
    """Calls ``complete`` with what ``output.get_output`` returns, once, in the order in which vLLM fetches.

    ``complete`` must not hold ``output``: a cycle would keep the step until a garbage collection.
    """
    owner = next(one for one in type(output).__mro__ if "get_output" in vars(one))
    wrap(owner, "get_output", get_output)
    setattr(output, CARRIER, complete)


def get_output(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Around vLLM's own."""
    fetched = original(self, *args, **kwargs)
    complete: Callable[[Any], None] | None = vars(self).pop(CARRIER, None)
    if complete is not None:
        complete(fetched)
    return fetched
