"""The tap: what the compiled graph does for the probes after a block.

``residual [n, d] @ weight [d, C]`` lands in ``scores[:n]``, and the residual's squared norm in
``squared_norms[:n]`` where a probe asks for it. On a GPU, and where nothing is compiled, it is one opaque operation.
The add that makes the residual stays a plain add outside it, so the compiler can share it with the next block's fused
norm. Inside the operation: fixed addresses, no host branch on data, nothing that outlives it; so it can be captured in
a CUDA graph. On a CPU the compiler gets the arithmetic itself (``in_graph``).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from monitor.residual import ResidualRule, residual_stream
from monitor.seam.transfer import Transfer
from monitor.unscored import Reason, nan_for

if TYPE_CHECKING:
    from monitor.kernels.pack import Packer

SCHEMA = 5
"""Raise it whenever the operation or the way it enters the graph changes: it is part of the compile key."""

SETTLED = frozenset(("positions", "slots", "starts"))
"""What the monitor's own kernel takes along, by name."""
UNWRITTEN = float(nan_for(Reason.TAP_SILENT))
WIDEST_KERNEL = 64
"""Columns up to which the monitor's own kernel multiplies."""
WIDEST_LOOP = 16
"""Columns up to which a CPU's compiler makes the product itself, in the loop that makes the next norm."""
_libraries: list[torch.library.Library] = []
"""One that is collected takes its operations with it."""


def _tap(
    residual: Tensor, weight: Tensor, scores: Tensor, squared_norms: Tensor, used: Tensor, scratch: Tensor
) -> None:
    x = residual.reshape(-1, weight.shape[0]).float()  # [n, d]; in float32 whatever the model's dtype
    n = x.shape[0]
    torch.mm(x, weight, out=scores[:n])
    if squared_norms.shape[0]:
        torch.linalg.vecdot(x, x, out=squared_norms[:n])


def in_graph(residual: Tensor, weight: Tensor, scores: Tensor, squared_norms: Tensor) -> None:
    """The same for the compiler of a CPU: to call an operation of ours between two layers costs more there than the
    product itself (docs/performance.md). ``weight`` should lie ``[C, d]`` in memory: ``laid_out``."""
    stream = residual.reshape(-1, weight.shape[0])
    n, x = stream.shape[0], stream.float()
    if weight.shape[1] <= WIDEST_LOOP:
        scores[:n] = (x.unsqueeze(1) * weight.T).sum(-1)
    else:
        scores[:n] = _rounded(stream) @ weight
    if squared_norms.shape[0]:
        squared_norms[:n] = (x * x).sum(-1)


def _rounded(x: Tensor) -> Tensor:
    """In float32, what the model's dtype can hold: the compiler makes the sum of a block in float32, and would write
    that for the product to read. Inside a loop these shifts would cost the loop its vector instructions."""
    if x.dtype == torch.bfloat16:
        return (x.view(torch.int16).to(torch.int32) << 16).view(torch.float32)
    return x.float()


def laid_out(weights: Tensor, device: torch.device) -> Tensor:
    """The columns of all taps ``[L, d, C]`` on the device, in memory as its taps read them."""
    if device.type != "cpu":
        return weights.to(device)
    return weights.transpose(1, 2).contiguous().transpose(1, 2)


def _tap_where_used(
    residual: Tensor, weight: Tensor, scores: Tensor, squared_norms: Tensor, used: Tensor, scratch: Tensor
) -> None:
    """For the CPU, which may look at data: a tap that no probe reads only says that it was there."""
    if int(used):
        _tap(residual, weight, scores, squared_norms, used, scratch)
    else:
        scores[: residual.numel() // weight.shape[0]] = 0


def _tap_on_gpu(
    residual: Tensor, weight: Tensor, scores: Tensor, squared_norms: Tensor, used: Tensor, scratch: Tensor
) -> None:
    """With few columns one launch, in place of a conversion of the whole stream and a product for which the library
    makes two; with many the library is quicker (docs/performance.md)."""
    if weight.shape[1] > WIDEST_KERNEL:
        _tap(residual, weight, scores, squared_norms, used, scratch)
        return
    from monitor.kernels.score import score

    score(residual.reshape(-1, weight.shape[0]).contiguous(), weight, scores, squared_norms, scratch)


def define_operation(dispatch_key: str) -> None:
    """Registers ``torch.ops.probewatch.tap`` once in this process."""
    operation = _tap_on_gpu if dispatch_key != "CPU" and has_triton() else _tap
    register("tap", operation, _tap_where_used, ["scores", "squared_norms", "scratch"], dispatch_key)


def make_scratch(d_model: int, columns: int, device: torch.device) -> Tensor:
    """What the programs of a GPU's launch tell each other; taps on one stream share it. Empty elsewhere."""
    if device.type != "cuda" or not has_triton() or columns > WIDEST_KERNEL:
        return torch.zeros(0, device=device)
    from monitor.kernels.score import plan

    return torch.zeros(plan(d_model, columns).scratch, device=device)


def register(
    name: str,
    operation: Callable[..., None],
    on_cpu: Callable[..., None],
    mutates: list[str],
    dispatch_key: str,
) -> None:
    """Makes ``torch.ops.probewatch.<name>``, once in this process; on a CPU it runs ``on_cpu`` in its place."""
    if hasattr(torch.ops.probewatch, name):
        return
    library = torch.library.Library("probewatch", "FRAGMENT")
    library.define(name + torch.library.infer_schema(operation, mutates_args=mutates))
    library.impl(name, on_cpu if dispatch_key == "CPU" else operation, dispatch_key=dispatch_key)
    library._register_fake(name, lambda *_: None)
    _libraries.append(library)


@functools.cache
def has_triton() -> bool:
    """Whether the monitor's own kernels can be used on this process's GPU."""
    return torch.cuda.is_available() and importlib.util.find_spec("triton") is not None


@dataclass
class TapBuffers:
    """Where all taps of a model write. ``L`` tapped layers, ``N`` rows at most in a step, ``C`` columns."""

    scores: Tensor
    """[L, N, C] float32"""
    squared_norms: Tensor
    """[L, N] float32, or [L, 0] where no probe needs it"""

    @classmethod
    def allocate(cls, layers: int, rows: int, columns: int, norms: bool, device: torch.device) -> TapBuffers:
        """Buffers that no tap has written yet."""
        buffers = cls(
            torch.empty(layers, rows, columns, device=device),
            torch.empty(layers, rows if norms else 0, device=device),
        )
        buffers.silence()
        return buffers

    def __post_init__(self) -> None:
        on_host = self.scores.device.type == "cpu"
        self._host = (
            {"scores": self.scores.numpy(), "squared_norms": self.squared_norms.numpy()} if on_host else {}
        )
        """The same memory, where the host sees it: NumPy takes a part of it in a fraction of torch's time."""
        self._packer: Packer | None = None
        if not on_host and has_triton():
            from monitor.kernels.pack import Packer

            self._packer = Packer(self.scores, self.squared_norms)

    def send(
        self, rows: int, written: int | None, beside: Mapping[str, Tensor], used: int | None = None
    ) -> Transfer:
        """The first ``rows`` and the first ``used`` columns (None: all), and ``beside``, on their way to the host; what
        the step has written (None: any row) is marked as unwritten. Nothing waits for the device."""
        if self._host:
            transfer = Transfer({**self.read(rows, used), **beside})
            self.silence(rows)
            return transfer
        if self._packer is not None and (not beside or beside.keys() >= SETTLED):
            room, columns = self.scores.shape[1:]
            packed, layout = self._packer.take(
                beside, rows, room if written is None else written, columns if used is None else used
            )
            others = {name: beside[name] for name in beside.keys() - SETTLED}
            return Transfer(others, packed, layout.split)
        transfer = Transfer({**self.read(rows, used), **beside})
        self.silence(written)  # a graph also writes padding rows, which a later step must not find there
        return transfer

    @property
    def on_host(self) -> bool:
        """Whether the taps write where the host sees it."""
        return bool(self._host)

    def compile_kernels(self, dtype: torch.dtype, weight: Tensor, scratch: Tensor) -> None:
        """So that none is compiled while a graph is captured or a request waits. ``dtype``: of the model's stream."""
        if self.on_host or not has_triton():
            return
        from monitor.kernels.score import compile_for

        if len(scratch):
            compile_for(dtype, weight, self.scores[0], self.squared_norms[0], scratch)
        starts = torch.zeros(2, dtype=torch.int32, device=weight.device)
        one = torch.zeros(1, dtype=torch.int64, device=weight.device)
        for settled in ({}, {"starts": starts, "positions": one, "slots": one}):
            self.send(1, None, settled).arrived()

    def silence(self, rows: int | None = None) -> None:
        """Marks the first rows (None: all) as unwritten, so that a tap that does not fire is seen and not believed."""
        scores: Any = self._host.get("scores", self.scores)
        scores[:, :rows] = UNWRITTEN

    def read(self, rows: int, used: int | None = None) -> dict[str, Any]:
        """Views ``scores [L, rows, used]`` and, where a probe asks for them, ``squared_norms [L, rows]``: arrays where
        the host sees the memory, else tensors."""
        everywhere: dict[str, Any] = {"scores": self.scores, "squared_norms": self.squared_norms}
        held = self._host or everywhere
        found = {"scores": held["scores"][:, :rows, :used]}
        if self.squared_norms.shape[1]:
            found["squared_norms"] = held["squared_norms"][:, :rows]
        return found

    @property
    def arrays(self) -> list[Tensor]:
        """What the taps write, each ``[L, N, ...]``."""
        return [array for array in (self.scores, self.squared_norms) if array.shape[1]]

    def silent_layers(self, rows: int) -> list[int]:
        """Indices of the tapped layers of which some of the first rows were not written.

        Dummy inputs may give NaN honestly, so this compares bits with the mark of ``silence``.
        """
        bits = self.scores[:, :rows].cpu().numpy().view(np.uint32)
        mark = nan_for(Reason.TAP_SILENT).view(np.uint32)
        return [int(i) for i in np.flatnonzero((bits == mark).any(axis=(1, 2)))]


def used_layers(weights: Tensor) -> Tensor:
    """``[L]`` int64: which taps do something, given the columns ``weights [L, d, C]`` of all."""
    return weights.flatten(1).any(dim=1).long()


def install(
    block: nn.Module,
    rule: ResidualRule,
    weight: Tensor,
    scores: Tensor,
    squared_norms: Tensor,
    used: Tensor,
    scratch: Tensor,
) -> None:
    """Puts a tap after ``block``. Must happen before the model is traced for the first time.

    ``used`` [1] int64: whether a probe reads this tap. The tensors become non-persistent buffers: not parameters (the
    loader refuses ones it cannot fill), not module wrappers (names of weights would change).
    """
    for name, tensor in {
        "weight": weight,
        "scores": scores,
        "squared_norms": squared_norms,
        "used": used,
        "scratch": scratch,
    }.items():
        block.register_buffer(f"probewatch_{name}", tensor, persistent=False)
    block.register_forward_hook(functools.partial(_after_block, rule))


def _after_block(rule: ResidualRule, block: Any, inputs: Any, output: Any) -> None:
    if block.probewatch_weight.is_cpu and torch.compiler.is_compiling():
        in_graph(
            residual_stream(rule, output),
            block.probewatch_weight,
            block.probewatch_scores,
            block.probewatch_squared_norms,
        )
        return
    torch.ops.probewatch.tap(
        residual_stream(rule, output),
        block.probewatch_weight,
        block.probewatch_scores,
        block.probewatch_squared_norms,
        block.probewatch_used,
        block.probewatch_scratch,
    )
