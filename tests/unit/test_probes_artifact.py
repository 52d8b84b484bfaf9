"""Artifacts: what is written is read back, and hostile bytes end in a named error."""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import probes
from probes import artifact, manifest
from probes.testing import fake_manifest, fake_tensors, write_artifact

torch.set_num_threads(1)


def repacked(data: bytes, edit_header: object = None, **header_changes: object) -> bytes:
    """The artifact's bytes with its JSON header changed."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if callable(edit_header):
        edit_header(header)
    header.update(header_changes)
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + data[8 + length :]


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    return write_artifact(tmp_path / "good.safetensors").read_bytes()


def refused(tmp_path: Path, data: bytes) -> probes.ProbeError:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(probes.ArtifactError) as caught:
        probes.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", ["logistic", "difference_of_means"])
def test_round_trip_is_exact(tmp_path: Path, kind: str) -> None:
    found = fake_manifest(kind=kind, metrics={"auroc": 0.99, "by_family": {"D": [0.9, 1.0]}})
    tensors = fake_tensors(found)
    path = tmp_path / "deep" / "p.safetensors"
    written = artifact.write(path, found, tensors)
    again, loaded = artifact.read(path)
    assert again == written
    assert again.metrics == found.metrics
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert [p.name for p in path.parent.iterdir()] == ["p.safetensors"]


def test_failed_write_leaves_the_old_artifact_and_no_temporary(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "p.safetensors")
    before = path.read_bytes()
    tensors = {**fake_tensors(fake_manifest()), "weight": torch.full((2, 4), torch.nan)}
    with pytest.raises(probes.NonFinite):
        artifact.write(path, fake_manifest(), tensors)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


class Bomb:
    """Would create a file if it were ever unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickles_are_refused_and_never_run(tmp_path: Path, protocol: int) -> None:
    error = refused(tmp_path, pickle.dumps(Bomb(str(tmp_path / "ran")), protocol=protocol))
    if protocol >= 2:
        assert isinstance(error, probes.UnsafeFormat)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("old", [False, True])
def test_torch_files_are_refused(tmp_path: Path, old: bool) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(4)}, buffer, _use_new_zipfile_serialization=not old)
    assert isinstance(refused(tmp_path, buffer.getvalue()), probes.UnsafeFormat)


def test_zip_numpy_gguf_are_refused(tmp_path: Path) -> None:
    packed, array = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a", "b")
    np.save(array, np.zeros(3))
    for data in (packed.getvalue(), array.getvalue(), b"GGUF" + bytes(60)):
        error = refused(tmp_path, data)
        assert isinstance(error, probes.UnsafeFormat)
        assert "probewatch import" in str(error)


def test_header_that_starts_like_a_pickle_is_read(tmp_path: Path) -> None:
    # A header of 0x0280 + k * 0x10000 bytes puts pickle's own first two bytes at the front of a sound file.
    data = write_artifact(tmp_path / "p.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    target = 0x0280 + 0x10000
    padded = struct.pack("<Q", target) + data[8 : 8 + length].ljust(target) + data[8 + length :]
    assert padded[:2] == b"\x80\x02"
    path = tmp_path / "padded.safetensors"
    path.write_bytes(padded)
    assert probes.load(path).manifest.name == "fake"


def test_every_truncation_is_refused(tmp_path: Path, good: bytes) -> None:
    for n in [*range(64), *range(64, len(good), 37), len(good) - 1]:
        error = refused(tmp_path, good[:n])
        assert isinstance(error, probes.TruncatedArtifact), (n, error)


def test_faults_are_named(tmp_path: Path, good: bytes) -> None:
    def without_metadata(header: dict[str, object]) -> None:
        del header["__metadata__"]

    deep = b'{"a":' + b"[" * 100_000
    found = fake_manifest()
    tensors = fake_tensors(found)
    text = manifest.revise(found, tensors_sha256=artifact.tensors_digest(tensors)).model_dump_json()

    def packed(**changes: torch.Tensor) -> bytes:
        return save({**tensors, **changes}, metadata={"probewatch": text})

    cases: list[tuple[bytes, type[probes.ProbeError]]] = [
        (repacked(good, without_metadata), probes.ManifestInvalid),
        (repacked(good, __metadata__={"probewatch": "{"}), probes.ManifestInvalid),
        (repacked(good, __metadata__={"probewatch": "[" * 50_000}), probes.ManifestInvalid),
        (struct.pack("<Q", len(deep)) + deep, probes.MalformedArtifact),
        (struct.pack("<Q", 2**62) + b"{" + bytes(99), probes.OversizedArtifact),
        (good + b"trailing", probes.MalformedArtifact),
        (b"hello, this is a text file", probes.MalformedArtifact),
        (packed(weight=tensors["weight"].double()), probes.TensorInvalid),
        (packed(weight=torch.zeros(2, 5)), probes.TensorInvalid),
        (packed(extra=torch.zeros(2)), probes.TensorInvalid),
        (packed(golden_scores=torch.zeros(2)), probes.TensorInvalid),
        (packed(weight=torch.full((2, 4), torch.inf)), probes.NonFinite),
        (packed(weight=torch.zeros(2, 4)), probes.DigestMismatch),
        (save({"weight": torch.zeros(2)}, metadata={"probewatch": text}), probes.TensorInvalid),
        (save({f"t{i}": torch.zeros(1) for i in range(99)}, {"probewatch": text}), probes.OversizedArtifact),
    ]
    for data, expected in cases:
        assert type(refused(tmp_path, data)) is expected


def test_wrong_golden_scores_are_refused(tmp_path: Path) -> None:
    tensors = fake_tensors(fake_manifest())
    tensors["golden_scores"] = tensors["golden_scores"] + 0.1
    path = tmp_path / "p.safetensors"
    artifact.write(path, fake_manifest(), tensors)
    with pytest.raises(probes.GoldenMismatch, match=r"off by 0\.1"):
        probes.load(path)


def test_directories_pipes_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing", tmp_path / "nul\0"):
        with pytest.raises(probes.ArtifactError, match=r"check the path|not a regular file"):
            probes.load(path)


def test_two_thousand_mutations_end_in_a_named_error_or_a_sound_probe(tmp_path: Path, good: bytes) -> None:
    rng = random.Random(0)
    (length,) = struct.unpack("<Q", good[:8])
    loaded, messages = 0, []
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            end = rng.choice((8, 8 + length, len(data)))
            at = rng.randrange(min(end, len(data)))
            move = rng.random()
            if move < 0.6:
                data[at] = rng.randrange(256)
            elif move < 0.8:
                del data[at : at + rng.randrange(1, 9)]
            else:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
        try:
            found, _tensors = artifact.parse_bytes(bytes(data))
        except probes.ArtifactError as error:
            messages.append(str(error))
        else:
            loaded += (
                1  # a changed letter of a label, a changed figure: the tensors are still the signed ones
            )
            assert found.d_model == 4
    assert loaded < 1000
    assert not any("\n" in message for message in messages)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for candidate in (data, struct.pack("<Q", len(data) + 1) + b"{" + data):
        with pytest.raises(probes.ArtifactError):
            artifact.parse_bytes(candidate)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "../../etc/passwd"}, "name"),
        ({"name": "Ünïcode"}, "name"),
        ({"layers": (2, 1)}, "sorted and unique"),
        ({"layers": (1, 1)}, "sorted and unique"),
        ({"layers": ()}, "layers"),
        ({"layers": (-1,)}, "layers"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": float("inf")}, "threshold"),
        ({"default_action": "explode"}, "observe, alert, stop or steer:VECTOR"),
        ({"default_action": "alert"}, "without a threshold"),
        ({"default_action": "steer:a b", "threshold": 0.0}, "steer:VECTOR"),
        ({"token_mask": {"prompt": "last_k"}}, "last_k"),
        ({"token_mask": {"prompt": "none", "generated": False}}, "selects no token"),
        ({"aggregation": {"method": "ema"}}, "alpha"),
        ({"aggregation": {"method": "mean", "alpha": 0.1}}, "alpha"),
        ({"aggregation": {"method": "mean", "min_tokens": 0}}, "min_tokens"),
        ({"benign_quantiles": {"probabilities": [0, 1], "values": [1, 0]}}, "decrease"),
        ({"benign_quantiles": {"probabilities": [0, 0], "values": [0, 1]}}, "increase strictly"),
        ({"benign_quantiles": {"probabilities": [0, 1], "values": [0, float("nan")]}}, "values"),
        ({"benign_quantiles": {"probabilities": [0, 1], "values": [0, 1, 2]}}, "one value for each"),
        ({"metrics": {"a": {"b": [float("nan")]}}}, "metrics"),
        ({"calibration": {"nominal_fpr": 0.01, "n": 100, "realised_n": 5}}, "go together"),
        ({"created_at": datetime(2026, 1, 1)}, "time zone"),
        ({"surprise": 1}, "surprise"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_manifest_faults_name_the_field(changes: dict[str, object], words: str) -> None:
    with pytest.raises(probes.ManifestInvalid, match=words) as caught:
        fake_manifest(**changes)
    assert "\n" not in str(caught.value)


def test_unknown_kind_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(probes.ManifestInvalid, match="logistic/logit"):
        artifact.write(tmp_path / "p.safetensors", fake_manifest(kind="tarot"), fake_tensors(fake_manifest()))


def test_quantiles_interpolate() -> None:
    q = manifest.Quantiles(probabilities=(0.0, 0.25, 0.5, 0.75, 1.0), values=(0.0, 1.0, 2.0, 5.0, 9.0))
    assert q.iqr == pytest.approx(4.0)
    assert q.at(0.625) == pytest.approx(3.5)
    assert q.at(-1) == 0.0
    assert q.at(2) == 9.0
    assert q.deciles()[4] == pytest.approx(2.0)
    assert len(q.deciles()) == 9
