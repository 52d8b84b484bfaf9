"""What the monitor costs, by arithmetic: bytes, operations and host time of an engine step. No torch, no vLLM.

An engine step of ``r`` running requests, each holding ``T`` tokens, computes ``n`` rows (``n = r`` while all decode):

    forward = step + work(2 n P + 4 n T A layers, W + r T kv)
    tap     = launch + work(2 n d C, 2 n d b + 4 d C + 4 n C)         for each tapped layer
    host    = a + b r + c r K                                         in the engine's process; in the API server's
    finish  = a + b K + c G K                                            once a sequence, in the API server's

``P`` parameters multiply a token, ``W`` bytes of weights are read, ``A`` is heads times their width, ``kv`` bytes hold
a token's keys and values; ``C`` is a tap's width in columns, ``b`` the bytes of a number of the stream (written once
more than without a tap, and read once), ``K`` the numbers that a token's scores take, ``G`` the tokens that count.
``work(operations, bytes)`` is the larger of the two times on a device that overlaps them (a GPU), their sum on one
that does not (a CPU core).

The constants lie in ``cost.json``, beside the command that measured them (``python -m bench.growth --write``) or the
data sheet that they stand on. No engine reaches the limits of a data sheet, and that knows nothing of vLLM's own work
between launches (``step``): there the share of a step is an upper bound, far above the truth for a small model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from monitor.shape import Shape

CONSTANTS = Path(__file__).with_name("cost.json")


@dataclass(frozen=True)
class Taps:
    """What is attached."""

    layers: int
    """Tapped ones."""
    columns: int
    """Of each tap."""
    states: int
    """Numbers that a token's scores take."""


@dataclass(frozen=True)
class Load:
    """One engine step."""

    requests: int
    context: int
    """Tokens that each request holds."""
    rows: int
    """Tokens fed in the step."""

    @classmethod
    def decoding(cls, requests: int, context: int) -> Load:
        """Every request is fed one token."""
        return cls(requests, context, requests)


@dataclass(frozen=True)
class Work:
    """Operations and bytes moved."""

    flops: float
    bytes: float


def forward_work(shape: Shape, load: Load) -> Work:
    """Of the model, in one step. All experts of a mixture are read: with some requests every one has a customer."""
    flops = 2 * load.rows * shape.active + 4 * load.rows * load.context * shape.attention * shape.layers
    return Work(flops, shape.read * shape.weight_bytes + load.requests * load.context * shape.kv_bytes)


def tap_work(shape: Shape, columns: int, rows: int) -> Work:
    """Of one tap, in one step."""
    stream, matrix = 2 * rows * shape.d_model * shape.number_bytes, 4 * shape.d_model * columns
    return Work(2 * rows * shape.d_model * columns, stream + matrix + 4 * rows * columns)


@dataclass(frozen=True)
class Device:
    """Constants of a device; those of a CPU are of one core."""

    name: str
    source: str
    """The command that measured the forward constants, or the data sheet."""
    tap_source: str
    overlaps: bool
    step_seconds: float
    flops: float
    """A second, of the model's own products."""
    bytes: float
    """A second."""
    launch_seconds: float
    """Of a tap."""
    tap_flops: float
    """A second: taps multiply in float32."""
    tap_bytes: float
    """A second."""

    def forward_seconds(self, shape: Shape, load: Load) -> float:
        """Of one step of the model alone."""
        work = forward_work(shape, load)
        return self.step_seconds + self._time(work, self.flops, self.bytes)

    def tap_seconds(self, shape: Shape, columns: int, rows: int) -> float:
        """Of one tap."""
        return self.launch_seconds + self._time(
            tap_work(shape, columns, rows), self.tap_flops, self.tap_bytes
        )

    def _time(self, work: Work, flops: float, bytes_: float) -> float:
        parts = work.flops / flops, work.bytes / bytes_
        return max(parts) if self.overlaps else sum(parts)


@dataclass(frozen=True)
class Host:
    """Host time of a step with ``n`` requests and ``K`` numbers a token: ``a + b n + c n K`` seconds, each."""

    source: str
    engine: tuple[float, float, float]
    """In the engine's process, which waits for it."""
    server: tuple[float, float, float]
    """In the API server's."""
    finish: tuple[float, float, float]
    """Once a sequence of ``G`` tokens that count: ``a + b K + c G K``."""

    def engine_seconds(self, requests: int, states: int) -> float:
        """Of worker and scheduler."""
        return _affine(self.engine, requests, states)

    def server_seconds(self, requests: int, states: int) -> float:
        """Of the accounting beside the API server."""
        return _affine(self.server, requests, states)

    def finish_seconds(self, tokens: int, states: int) -> float:
        """Of the verdicts on a sequence that has ended."""
        return _affine(self.finish, states, tokens)


def _affine(constants: tuple[float, float, float], count: int, each_has: int) -> float:
    fixed, each, number = constants
    return fixed + each * count + number * count * each_has


@dataclass(frozen=True)
class Cost:
    """Of one step, in seconds."""

    forward: float
    taps: float
    engine: float
    server: float

    @property
    def ratio(self) -> float:
        """Throughput beside stock vLLM's where the engine waits for its own host work and for nobody else's."""
        return self.forward / (self.forward + self.taps + self.engine)

    @property
    def ratio_hidden(self) -> float:
        """The same where host work hides behind the device (asynchronous scheduling with time to spare)."""
        return self.forward / (self.forward + self.taps)


def cost(shape: Shape, taps: Taps, load: Load, device: Device, host: Host) -> Cost:
    """Of one step on one device."""
    return Cost(
        forward=device.forward_seconds(shape, load),
        taps=taps.layers * device.tap_seconds(shape, taps.columns, load.rows),
        engine=host.engine_seconds(load.requests, taps.states),
        server=host.server_seconds(load.requests, taps.states),
    )


def constants(path: Path = CONSTANTS) -> tuple[list[Device], Host]:
    """As ``cost.json`` has them."""
    found = json.loads(path.read_text(encoding="utf-8"))
    host = found["host"]
    devices = [Device(**one) for one in found["devices"]]
    return devices, Host(host["source"], *(tuple(host[name]) for name in ("engine", "server", "finish")))
