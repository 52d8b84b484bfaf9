"""Benign scores recorded from a running server: JSONL without any text, for calibration.

The first line says which statistic was recorded, each other line is one finished sequence:

    {"probewatch_scores": 1, "probe": "deception", "statistic_digest": "..", "model": "concealed-ledger"}
    {"id": "chatcmpl-1", "choice": 0, "score": -1.25, "tokens": 48}
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from probes.atomic import write_text
from probes.errors import DatasetInvalid
from probes.fields import Count, Digest, Finite, Label, Name
from probes.manifest import ProbeManifest

MARK: Final = "probewatch_scores"
Row = TypeVar("Row", bound=BaseModel)


class Header(BaseModel):
    """What was recorded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    probewatch_scores: Literal[1] = 1
    probe: Name
    statistic_digest: Digest
    """See `ProbeManifest.statistic_digest`."""
    model: Label
    """The name under which the model was served."""


class Finished(BaseModel):
    """One finished sequence: nothing of what was said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(min_length=1)]
    """Of the response."""
    choice: Count = 0
    score: Finite
    """The deployed statistic."""
    tokens: Count
    """In-mask tokens."""


class Line(Finished):
    """One line of a file, with whatever its owner has added: a field to calibrate by."""

    model_config = ConfigDict(frozen=True, extra="allow")


@dataclass(frozen=True)
class Recording:
    """The scores of one probe on the traffic of one server."""

    header: Header
    sequences: Sequence[Finished]

    @property
    def digest(self) -> str:
        """SHA-256 over statistic and scores, in the order of response and choice."""
        rows = sorted((s.id, s.choice, s.score, s.tokens) for s in self.sequences)
        return hashlib.sha256(json.dumps([self.header.statistic_digest, rows]).encode()).hexdigest()


def is_recording(path: Path) -> bool:
    """Whether a file begins like a recording."""
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.readline(4096)
    except OSError:
        return False


def write(path: Path, header: Header, sequences: Iterable[Finished]) -> None:
    """Write a recording in one rename."""
    write_text(path, "".join(line.model_dump_json() + "\n" for line in (header, *sequences)))


def read(path: Path, manifest: ProbeManifest) -> Recording:
    """The recording in a file. Raises `DatasetInvalid` where it is broken, or of another statistic."""
    try:
        lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise DatasetInvalid(
            f"{path}: cannot be read ({' '.join(str(error).split())}); check the path"
        ) from None
    header = _parse(Header, lines[0] if lines else "", f"{path} line 1")
    if header.statistic_digest != manifest.statistic_digest:
        raise DatasetInvalid(
            f"{path}: scores of {header.probe!r} with statistic {header.statistic_digest[:12]}.., "
            f"{manifest.name!r} has {manifest.statistic_digest[:12]}..; record with this very artifact attached"
        )
    found = [_parse(Line, line, f"{path} line {n}") for n, line in enumerate(lines[1:], 2)]
    repeated = len(found) - len({(one.id, one.choice) for one in found})
    if not found or repeated:
        raise DatasetInvalid(f"{path}: {len(found)} sequences, {repeated} of them again; record it anew")
    return Recording(header, found)


def _parse(model: type[Row], line: str, where: str) -> Row:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, fault["loc"])) or "line"
        raise DatasetInvalid(f"{where}: {field}: {fault['msg']}; record it anew") from None
