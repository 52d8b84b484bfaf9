"""Device tensors on their way to the host, beside the stream that computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, np.ndarray[Any, Any]]
Split = Callable[[Tensor], dict[str, Tensor]]

_PACKED = "packed"
_side_streams: dict[torch.device, torch.cuda.Stream] = {}


class Transfer:
    """Copies what is given as it is now; whatever is queued after may overwrite it. Arrays are on the host already.

    From a CUDA device nothing waits: the copy is queued behind the forward pass, and ``arrived`` blocks until it is
    there. It may be called from another thread than the one that made the transfer.
    """

    def __init__(
        self,
        given: Mapping[str, Tensor | np.ndarray[Any, Any]],
        packed: Tensor | None = None,
        split: Split = dict,
    ) -> None:
        """``packed``: a tensor that nobody else writes, travelling as it is; ``split`` finds what it holds."""
        self._arrays: Arrays = {}
        self._split = split
        self._staged: dict[str, Tensor] = {} if packed is None else {_PACKED: packed}
        for name, one in given.items():
            if isinstance(one, np.ndarray):
                self._arrays[name] = one.copy()
            else:
                self._staged[name] = one.clone()
        self._host = self._staged
        self._event: torch.cuda.Event | None = None
        if not self._staged:
            return
        device = next(iter(self._staged.values())).device
        if device.type == "cuda":
            self._queue(device)
        elif device.type != "cpu":
            self._host = {name: tensor.cpu() for name, tensor in self._staged.items()}

    def _queue(self, device: torch.device) -> None:
        if device not in _side_streams:
            _side_streams[device] = torch.cuda.Stream(device)
        side = _side_streams[device]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            self._host = {name: t.to("cpu", non_blocking=True) for name, t in self._staged.items()}
            self._event = torch.cuda.Event(blocking=True)
            self._event.record(side)

    def arrived(self) -> Arrays:
        """The tensors as arrays on the host."""
        if self._event is not None:
            self._event.synchronize()
        self._staged = {}
        parts = dict(self._host)
        if _PACKED in parts:
            parts.update(self._split(parts.pop(_PACKED)))
        return {**self._arrays, **{name: tensor.numpy() for name, tensor in parts.items()}}
