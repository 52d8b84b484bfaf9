"""`probewatch calibrate`: a threshold from the user's own benign traffic, and what it will flag of it."""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from probes import benign, calibration, dataset, recorded, report, strata
from probes.benign import Benign, Outlook
from probes.dataset import Conversation
from probes.errors import CalibrationError, DataError, DatasetInvalid
from probes.hf import Activations
from probes.identity import check_binding
from probes.manifest import ACTION, ProbeManifest
from probes.probe import Probe, load
from probes.recorded import Finished
from probes.sources import Source, Sources

HELD: Final = 256
"""Conversations whose activations are held at once."""
STALE: Final = ("deployed", "deployed_trained_wordings", "robustness", "benign_strata")
"""Figures of the report card that hold at the threshold before, and not at a new one."""


def calibrate(options: argparse.Namespace) -> int:
    """Threshold from one benign set, realised false positives on another, both into the manifest."""
    probe = load(options.probe)
    _check(options)
    _check_action(probe.manifest, options.action)
    first, second = _sets(probe, options)
    try:
        revised = calibration.calibrated(
            probe.manifest,
            first.scores,
            second.scores,
            options.fpr,
            strata=first.strata,
            action=options.action,
            data_digest=first.digest,
        )
    except CalibrationError as error:
        kept = f" ({options.benign.name} was dealt in half: give twice as many, or --second)"
        raise CalibrationError(f"{error}{'' if options.second else kept}") from None
    known, told = replace(probe, manifest=revised), revised.calibration
    assert told is not None  # `calibrated` gives one
    parts = benign.by_stratum(options.by, first, second, options.fpr) if options.by else None
    outlook = Outlook(told, first, second, _stops(known, second), options.requests_per_day, parts)
    figures = {name: found for name, found in revised.metrics.items() if name not in STALE}
    figures |= {"benign_traffic": outlook.figures()} | ({"benign_strata": parts.figures()} if parts else {})
    written = known.save(options.out, created_at=datetime.now(UTC), metrics=figures).manifest
    print(report.benign_text(written))
    for line in outlook.lines():
        print(line)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raise `DataError` for what cannot be meant, before minutes are spent."""
    if not 0 < options.fpr < 1:
        raise DataError(f"--fpr {options.fpr:g}; give a share between 0 and 1")
    if options.requests_per_day is not None and not 0 < options.requests_per_day < math.inf:
        raise DataError(f"--requests-per-day {options.requests_per_day:g}; give a number above 0")
    if options.seed < 0:
        raise DataError(f"--seed {options.seed}; give 0 or more")
    if options.action is not None and not ACTION.fullmatch(options.action):
        raise DataError(f"--action {options.action!r}; give observe, alert, stop or steer:VECTOR[:SCALE]")


def _check_action(manifest: ProbeManifest, action: str | None) -> None:
    acts_at_once = action is not None and action.partition(":")[0] in ("stop", "steer")
    if acts_at_once and manifest.statistic != "running_sup":
        raise CalibrationError(
            f"action {action!r} acts on the running value, and {manifest.name!r} is judged by its "
            f"{manifest.statistic} one; train it with statistic running_sup, or take alert"
        )


def _sets(probe: Probe, options: argparse.Namespace) -> tuple[Benign, Benign]:
    sources = Sources(options.model, options.activations)
    first = _read(probe, options.benign, sources, options.by)
    if options.second is None:
        return benign.halves(first, options.seed)
    second = _read(probe, options.second, sources, options.by)
    benign.check_apart(first, second)
    return first, second


def _read(probe: Probe, path: Path, sources: Sources, by: str | None) -> Benign:
    if recorded.is_recording(path):
        recording = recorded.read(path, probe.manifest)
        return benign.of_recording(path.name, recording, _strata(recording.sequences, by, path))
    source, chats = sources.open(path)
    check_binding(probe.manifest, source.identity)
    positives = sum(chat.label == 1 for chat in chats)
    if positives:
        raise DatasetInvalid(
            f"{path}: {positives} conversations have label 1; benign traffic must not hold the concept"
        )
    parts = _strata(chats, by, path)  # refused before the model has run
    found, groups = _in_parts(probe, source, chats), dataset.groups(chats)
    return benign.of_activations(probe, path.name, found, groups, dataset.digest(chats), parts)


def _strata(
    rows: Sequence[Conversation] | Sequence[Finished], by: str | None, path: Path
) -> tuple[str, ...] | None:
    return None if by is None else strata.names(rows, by, path.name)


def _in_parts(probe: Probe, source: Source, chats: Sequence[Conversation]) -> Iterator[Activations]:
    rule = probe.manifest
    for start in range(0, len(chats), HELD):
        yield from source.activations(chats[start : start + HELD], rule.layers, rule.token_mask)


def _stops(probe: Probe, second: Benign) -> list[int] | None:
    """Answer tokens before each false alarm of the second set, found by feeding it token by token."""
    if second.tracks is None or probe.manifest.statistic != "running_sup":
        return None
    flagged = [
        track for track, score in zip(second.tracks, second.scores, strict=True) if probe.crossed(score)
    ]
    return [said for track in flagged if (said := benign.crossed_after(probe, track)) is not None]
