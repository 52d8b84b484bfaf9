"""Device tensors on their way to the host, beside the stream that computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, np.ndarray[Any, Any]]

_side_streams: dict[torch.device, torch.cuda.Stream] = {}


class Transfer:
    """Copies ``tensors`` as they are now; whatever is queued after may overwrite them.

    On a CUDA device nothing waits: the copy is queued behind the forward pass, and ``arrived`` blocks until it is
    there. It may be called from another thread than the one that made the transfer.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._staged = {name: tensor.clone() for name, tensor in tensors.items()}
        self._host = self._staged
        self._event: torch.cuda.Event | None = None
        device = next(iter(tensors.values())).device
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
        return {name: tensor.numpy() for name, tensor in self._host.items()}
