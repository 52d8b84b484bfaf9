"""What a step's bookkeeping needs of a model runner, taken the moment its forward pass is queued."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from monitor.events import StepView
from monitor.filing import Decoding
from monitor.seam.transfer import Arrays


class Capture(NamedTuple):
    """Facts known on the host at once, and tensors that are known only when the device is done."""

    rows: int
    """Real rows of the step."""
    device: Mapping[str, Tensor]
    """To be transferred; empty where the host knows everything."""
    settle: Callable[[Arrays], StepView]
    """The view, given the arrays of ``device``."""
    written: int | None = None
    """Rows that the step computed, padding included; None if that is not known."""
    decoding: Decoding | None = None
    """Set where the host knows that the step is one."""


def adapters_of(requests: Mapping[int, Any], ids: np.ndarray[Any, Any]) -> tuple[str | None, ...]:
    """``ID:FOLDER`` of each request's LoRA adapter, None for the base model. ``requests``: vLLM's, by adapter id.

    The id is new whenever an adapter is loaded, so one that is replaced in its folder is not taken for the old one.
    """
    names: dict[int, str | None] = {}
    for i in map(int, np.unique(ids)):
        names[i] = f"{i}:{requests[i].lora_path if i in requests else ''}" if i > 0 else None
    return tuple(names[int(i)] for i in ids)
