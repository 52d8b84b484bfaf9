"""Device tensors on their way to the host, behind the work that is queued already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, np.ndarray[Any, Any]]
Split = Callable[[Any], Arrays]


class Transfer:
    """Copies what is given as it is now; whatever is queued after may overwrite it. Arrays are on the host already.

    From a CUDA device nothing waits: the copy is queued behind the forward pass on its own stream (another stream would
    cost the host more than the copy costs the device), and ``arrived`` blocks until it is there. It may be called from
    another thread than the one that made the transfer.
    """

    def __init__(
        self,
        given: Mapping[str, Tensor | np.ndarray[Any, Any]],
        packed: Tensor | None = None,
        split: Split | None = None,
    ) -> None:
        """``packed``: a tensor that nobody else writes, travelling as it is; ``split`` finds what it holds."""
        self._arrays: Arrays = {}
        self._tensors: dict[str, Tensor] = {}
        self._split = split
        self._event: torch.cuda.Event | None = None
        for name, one in given.items():
            if isinstance(one, np.ndarray):
                self._arrays[name] = one.copy()
            else:
                self._tensors[name] = self._queue(one)
        self._packed = None if packed is None else self._queue(packed)
        if self._event is not None:
            self._event.record()

    def _queue(self, tensor: Tensor) -> Tensor:
        kind = tensor.device.type
        if kind == "cpu":
            return tensor.clone()
        if kind != "cuda":
            return tensor.cpu()
        if self._event is None:
            self._event = torch.cuda.Event(blocking=True)
        return tensor.to("cpu", non_blocking=True)

    def arrived(self) -> Arrays:
        """The tensors as arrays on the host."""
        if self._event is not None:
            self._event.synchronize()
        found = self._arrays
        if self._tensors:
            found = {**found, **{name: tensor.numpy() for name, tensor in self._tensors.items()}}
        if self._packed is not None and self._split is not None:
            found = {**found, **self._split(self._packed.numpy())}
        return found
