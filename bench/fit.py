"""The constants of ``monitor.cost`` that come closest to measured points."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares, nnls

from bench.points import FinishPoint, HostPoint, StepPoint, TapPoint
from monitor.cost import CONSTANTS, Device, Host, Load, constants
from monitor.shape import Shape

TAPS = ("launch_seconds", "tap_flops", "tap_bytes")
"""What a device takes for taps."""
Floats = npt.NDArray[np.float64]
Three = tuple[float, float, float]
_START = {
    "step_seconds": 1e-4,
    "flops": 1e11,
    "bytes": 1e10,
    "launch_seconds": 1e-5,
    "tap_flops": 1e11,
    "tap_bytes": 1e10,
}


def _fit(
    device: Device,
    names: Sequence[str],
    predict: Callable[[Device], Floats],
    found: Floats,
    limits: Mapping[str, float],
) -> Device:
    """The device with ``names`` chosen so that the logarithms of prediction and finding are closest.

    ``limits``: what no constant may exceed.
    """

    def with_values(logarithms: Floats) -> Device:
        values = {name: float(value) for name, value in zip(names, np.exp(logarithms), strict=True)}
        return replace(device, **values)  # type: ignore[arg-type]

    def misses(logarithms: Floats) -> Floats:
        return np.asarray(np.log(predict(with_values(logarithms))) - np.log(found))

    first, highest = np.log([_START[name] for name in names]), np.log([limits.get(n, np.inf) for n in names])
    # From several sides: the larger of two times has valleys.
    starts = [
        np.minimum(first + shift, highest - 0.1) for shift in itertools.product((0.0, 5.0), repeat=len(names))
    ]
    tried = [least_squares(misses, start, bounds=(-np.inf, highest), loss="soft_l1") for start in starts]
    return with_values(min(tried, key=lambda one: float(one.cost)).x)


def fit_taps(device: Device, points: Sequence[TapPoint]) -> Device:
    """``launch_seconds``, ``tap_flops`` and ``tap_bytes``, which a data sheet bounds."""

    def predict(one: Device) -> Floats:
        return np.array([one.tap_seconds(tap_shape(p.d_model), p.columns, p.rows) for p in points])

    limits = {"tap_bytes": device.bytes, "tap_flops": device.flops} if device.overlaps else {}
    return _fit(device, TAPS, predict, np.array([p.seconds for p in points]), limits)


def fit_forward(device: Device, shape: Shape, points: Sequence[StepPoint]) -> Device:
    """``step_seconds``, ``flops`` and ``bytes``, from steps of stock vLLM."""
    stock = [p for p in points if not p.columns]

    def predict(one: Device) -> Floats:
        return np.array([one.forward_seconds(shape, Load(p.requests, p.context, p.rows)) for p in stock])

    names = ("step_seconds", "flops", "bytes")
    return _fit(device, names, predict, np.array([p.seconds for p in stock]), {})


def fit_host(points: Sequence[HostPoint]) -> tuple[Three, Three]:
    """``(a, b, c)`` of the engine's process and of the API server's."""
    features = np.array([[1.0, p.requests, p.requests * p.states] for p in points])
    return _linear(features, [p.engine for p in points]), _linear(features, [p.server for p in points])


def fit_finish(points: Sequence[FinishPoint]) -> Three:
    """``(a, b, c)`` of judging a sequence."""
    return _linear(
        np.array([[1.0, p.states, p.tokens * p.states] for p in points]), [p.seconds for p in points]
    )


def _linear(features: Floats, found: Sequence[float]) -> Three:
    """Of ``features [n, 3]``; none negative, by relative error."""
    whole = np.array(found)
    a, b, c = nnls(features / whole[:, None], np.ones(len(whole)))[0].tolist()
    return a, b, c


def keep(host: Host, *measured: Device) -> None:
    """Writes the file of constants: what is given, beside the devices that others have measured."""
    given = {one.name for one in measured}
    others = [one for one in constants()[0] if one.name not in given] if CONSTANTS.exists() else []
    devices = sorted((*measured, *others), key=lambda one: one.name)
    kept = {"host": asdict(host), "devices": [asdict(one) for one in devices]}
    CONSTANTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def keep_taps(name: str, points: Sequence[TapPoint], source: str) -> None:
    """The same for the taps of a GPU, whose other constants stand on a data sheet and are in the file already."""
    devices, host = constants()
    keep(host, *with_taps(devices, name, points, source))


def with_taps(devices: Sequence[Device], name: str, points: Sequence[TapPoint], source: str) -> list[Device]:
    """The device of that name with taps fitted to ``points``, and those that have borrowed its taps so far."""
    [own] = (one for one in devices if one.name == name)
    found = replace(fit_taps(own, points), tap_source=source)
    taps = {part: getattr(found, part) for part in (*TAPS, "tap_source")}
    lends = name in own.tap_source  # or it has borrowed them itself
    same = [one for one in devices if one is own or (lends and one.tap_source == own.tap_source)]
    return [replace(one, **taps) for one in same]


def tap_shape(d_model: int) -> Shape:
    """As much of a model in bfloat16 as a tap sees."""
    return Shape(d_model, 0, 0.0, 0.0, 0.0, 0, 0.0, 2.0, 2.0)
