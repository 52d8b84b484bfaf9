"""Linear estimators of scikit-learn (joblib, pickle), and the same numbers in an npz."""

import io
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from probes.errors import FlagNeeded, MalformedArtifact, NotConvertible, TensorInvalid
from probes.importing import bounded
from probes.importing.arrays import Array, floats
from probes.importing.foreign import Floats, Foreign, Request
from probes.importing.formats.heads import folded
from probes.importing.pickles import Placeholder, class_name, load_pickle
from probes.method import Aggregation

KINDS: Final[Mapping[str, str]] = {
    "LogisticRegression": "logistic",
    "LogisticRegressionCV": "logistic",
    "LinearDiscriminantAnalysis": "lda",
    "Ridge": "ridge",
    "RidgeCV": "ridge",
    "RidgeClassifier": "ridge",
    "RidgeClassifierCV": "ridge",
    "LinearRegression": "ridge",
    "LinearSVC": "affine",
    "SGDClassifier": "affine",
}
"""scikit-learn's class -> our kind."""
SOFTMAX: Final = ("LogisticRegression", "LogisticRegressionCV", "LinearDiscriminantAnalysis")
"""Those whose class probabilities are a softmax over all classes."""
_NAMES: Final = {
    "weight": ("weight", "weights", "coef", "coef_", "w", "direction"),
    "bias": ("bias", "intercept", "intercept_", "b"),
    "mean": ("mean", "scaler_mean", "mean_", "mu"),
    "scale": ("scale", "scaler_scale", "scale_", "sigma", "std"),
    "layers": ("layers", "layer"),
}


def sklearn(request: Request) -> Foreign:
    """An estimator, or a Pipeline of StandardScaler and one. Which layer it was fitted to, no such file says."""
    found = load_pickle(bounded.read(request.path))
    return estimator(found, request, "sklearn")


def npz(request: Request) -> Foreign:
    """weight [d] or [L, d], bias, mean and scale of the scaler, layers: see `_NAMES` for their other names."""
    found = _arrays(request.path)
    picked = {role: _first(found, names) for role, names in _NAMES.items()}
    if picked["weight"] is None:
        raise MalformedArtifact(f"{request.path} has no array 'weight' (or coef, direction); name it so")
    weight = np.atleast_2d(floats(picked["weight"], "weight"))
    bias = floats(picked["bias"], "bias").reshape(-1) if picked["bias"] is not None else np.zeros(1)
    if weight.ndim != 2 or len(bias) != 1:
        raise TensorInvalid(f"weight {list(weight.shape)} and {len(bias)} biases; give [L, d] and one")
    weight, offset = folded(weight, float(bias[0]), picked["mean"], picked["scale"])
    tensors = {"weight": weight, "bias": np.asarray(offset)}
    return Foreign("npz", "affine", tensors, _layers(picked["layers"]), None, request.path.stem)


_BROKEN: Final = (
    ValueError,
    OSError,
    LookupError,
    EOFError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    zlib.error,
    zipfile.BadZipFile,
    tokenize.TokenError,
)
"""What numpy and zipfile raise at a file that is no npz: encrypted, cut, of a header that is no Python, ..."""


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of numbers in an archive."""
    bounded.check_zip(path)
    try:
        with np.load(io.BytesIO(bounded.read(path)), allow_pickle=False) as archive:
            held = {name: archive[name] for name in archive.files}
    except _BROKEN as error:
        raise MalformedArtifact(
            f"{path} cannot be read ({bounded.one_line(error)}); write it again"
        ) from None
    # What does not begin as an array is handed out as bytes.
    return {name: a for name, a in held.items() if isinstance(a, np.ndarray) and a.dtype.kind in "fiub"}


def _layers(said: object) -> tuple[int, ...] | None:
    if said is None:
        return None
    numbers = floats(said, "layers").reshape(-1)
    if (numbers != numbers.round()).any() or (abs(numbers) > 1 << 16).any():
        raise TensorInvalid(f"layers {numbers[:8].tolist()} are no layer numbers; give whole ones")
    return tuple(int(n) for n in numbers)


def estimator(found: object, request: Request, name: str) -> Foreign:
    """A linear estimator, its scaler folded; weights of all layers in one row."""
    scaler, final = _parts(found)
    said, kind = vars(final), KINDS[class_name(final)]
    weight = np.atleast_2d(floats(said.get("coef_"), "coef_"))
    bias = floats(said.get("intercept_", 0.0), "intercept_").reshape(-1)
    bias = np.broadcast_to(bias, (len(weight),)) if len(bias) == 1 else bias
    if weight.ndim != 2 or len(bias) != len(weight):
        raise TensorInvalid(
            f"coef_ {list(weight.shape)} and {len(bias)} intercepts do not fit; fetch the file again"
        )
    mean, scale = _scaling(scaler)
    rows = [folded(row[None], float(b), mean, scale) for row, b in zip(weight, bias, strict=True)]
    if len(rows) == 1:
        row, offset = rows[0]
        tensors: dict[str, Floats] = {"weight": row, "bias": np.asarray(offset)}
        return _signed(Foreign(name, kind, tensors, None, None, request.path.stem), said, request)
    return _multiclass(rows, final, request, name)


def _signed(found: Foreign, said: Mapping[str, object], request: Request) -> Foreign:
    """A probe of one score, so that it rises with `--positive-class`; a warning where that is not said."""
    if "classes_" not in said:
        if request.positive_class is not None:
            raise NotConvertible("a regression has no classes, its score is its value; omit --positive-class")
        return found
    classes = _classes(said["classes_"], 2)
    if request.positive_class is None:
        other, alarming = classes
        note = f"the score rises with class {alarming} of {other}, {alarming}; --positive-class {other} turns it round"
        return replace(found, notes=(*found.notes, note))
    if request.positive_class not in classes:
        raise FlagNeeded(f"the classes are {', '.join(classes)}; say which alarms with --positive-class NAME")
    sign = 1.0 if request.positive_class == classes[1] else -1.0
    return replace(found, tensors={key: sign * tensor for key, tensor in found.tensors.items()})


def _multiclass(
    rows: Sequence[tuple[Floats, float]], final: Placeholder, request: Request, name: str
) -> Foreign:
    one_by_one = vars(final).get("multi_class") == "ovr" or vars(final).get("solver") == "liblinear"
    if class_name(final) not in SOFTMAX or one_by_one:
        raise NotConvertible(
            f"{class_name(final)} with {len(rows)} outputs is no softmax over classes; fit a LogisticRegression"
        )
    classes = _classes(vars(final).get("classes_"), len(rows))
    if request.positive_class not in classes:
        raise FlagNeeded(
            f"the classes are {', '.join(classes)[:200]}; say which alarms with --positive-class NAME"
        )
    first = classes.index(request.positive_class)
    order = [first, *(i for i in range(len(rows)) if i != first)]
    return Foreign(
        format=name,
        kind="multiclass",
        scoring="log_odds",
        tensors={
            "weight": np.stack([rows[i][0] for i in order], axis=-1),  # [1, D, C]
            "bias": np.array([rows[i][1] for i in order]),
        },
        layers=None,
        convention=None,
        concept=request.positive_class,
        aggregation=Aggregation(method="mean_log_odds"),
    )


def _classes(found: object, count: int) -> list[str]:
    """Their names; numbers in their order where they are objects, which are not read."""
    held = found.value if isinstance(found, Array) else found
    if held is None:
        return [str(i) for i in range(count)]
    if isinstance(held, np.ndarray) and held.dtype.kind == "U":
        names = ["".join(c if c.isprintable() else "?" for c in str(name)) for name in held.reshape(-1)]
    else:
        names = [f"{n:g}" for n in floats(held, "classes_").reshape(-1)]
    if len(names) != count:
        raise TensorInvalid(f"{len(names)} classes for {count} rows of coef_; fetch the file again")
    return names


def _parts(found: object) -> tuple[Placeholder | None, Placeholder]:
    """(StandardScaler or None, the estimator) of an estimator, a Pipeline, or a dict of the two."""
    if isinstance(found, Placeholder) and class_name(found) == "Pipeline":
        steps = [
            step[1] for step in vars(found).get("steps", ()) if isinstance(step, tuple) and len(step) == 2
        ]
    elif isinstance(found, dict):
        steps = [part for part in found.values() if isinstance(part, Placeholder)]
        steps.sort(key=lambda part: class_name(part) != "StandardScaler")
    else:
        steps = [found]
    scalers, final = steps[:-1], steps[-1] if steps else None
    if not isinstance(final, Placeholder) or class_name(final) not in KINDS:
        raise NotConvertible(f"{class_name(final)} is no linear estimator; {', '.join(KINDS)} can be read")
    if len(scalers) > 1 or any(class_name(scaler) != "StandardScaler" for scaler in scalers):
        names = ", ".join(class_name(scaler) for scaler in scalers)
        raise NotConvertible(f"steps {names[:100]} before the estimator; one StandardScaler can be folded")
    scaler = scalers[0] if scalers else None
    return (scaler if isinstance(scaler, Placeholder) else None), final


def _scaling(scaler: Placeholder | None) -> tuple[object, object]:
    if scaler is None:
        return None, None
    said = vars(scaler)
    mean = said.get("mean_") if said.get("with_mean", True) else None
    scale = said.get("scale_") if said.get("with_std", True) else None
    return mean, scale


def _first(found: Mapping[str, object], names: Sequence[str]) -> object:
    return next((found[name] for name in names if name in found), None)
