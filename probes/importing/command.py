"""`probewatch import` and `probewatch export-vector`."""

import argparse
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from probes.errors import ProbeError
from probes.identity import model_identity
from probes.importing import bounded
from probes.importing.convert import convert
from probes.importing.export import export
from probes.importing.foreign import Request
from probes.importing.formats import FORMATS, detect
from probes.probe import load

Written = TypeVar("Written")


def import_file(options: argparse.Namespace) -> int:
    """Convert a file; warnings go to stderr. Nothing is written where anything is wrong."""
    request = Request(
        path=options.file,
        layers_are=options.layers_are,
        layers=options.layers,
        features=options.features,
        positive_class=options.positive_class,
        model=options.model,
    )
    with warnings.catch_warnings(action="ignore"):  # numpy's and torch's, of numbers that are then refused
        with bounded.limited():
            form = options.format or detect(request)
            foreign = FORMATS[form](request)
        model = None if options.model is None else model_identity(options.model)
        probe = convert(foreign, request, options.name or _name(options.out), model)
    written = _written(options.out, lambda: probe.save(options.out))
    for note in foreign.notes:
        print(f"warning: {note}", file=sys.stderr)
    where = "bound to no model, refused at attach" if model is None else f"bound to {model.model_id}"
    shown = ", ".join(map(str, written.manifest.layers))
    print(
        f"{options.out}: {written.manifest.name}, {written.manifest.kind}, from {form}, after block {shown}, d_model "
        f"{written.manifest.d_model}; {where}"
    )
    return 0


def export_vector(options: argparse.Namespace) -> int:
    """Write a vector in another project's format."""
    probe = load(options.vector)
    _written(options.out, lambda: export(probe, options.out, options.format))
    if options.format == "gguf" and 0 in probe.manifest.layers:
        print("warning: llama.cpp refuses a file with direction.0; repeng reads it", file=sys.stderr)
    shown = ", ".join(map(str, probe.manifest.layers))
    print(f"{options.out}: {probe.manifest.name} as {options.format}, after block {shown}")
    return 0


def _written(path: Path, write: Callable[[], Written]) -> Written:
    try:
        return write()
    except OSError as error:
        raise ProbeError(
            f"{path} cannot be written ({error.strerror}); choose another place with -o"
        ) from None


def _name(path: Path) -> str:
    """A valid probe name from a file's."""
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).lstrip("._-")[:64] or "imported"
