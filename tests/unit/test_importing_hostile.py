"""Foreign files that lie or attack: one line, nothing written, no code run."""

import io
import json
import os
import pickle
import random
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probes import cli
from probes.importing import arrays, bounded, gguf, pickles

torch.set_num_threads(1)

FOREIGN = Path(__file__).parent / "foreign"
FLAGS = ("--layers", "2", "--layers-are", "resid_post")


def refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, *flags: str) -> str:
    (tmp_path / "file.pt").write_bytes(data)
    out = tmp_path / "never.safetensors"
    status = cli.main(["import", str(tmp_path / "file.pt"), "-o", str(out), *flags])
    said = capsys.readouterr().err
    assert status in (1, 2)
    assert not out.exists()
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert said.isprintable() or said[:-1].isprintable()
    return said


class Bomb:
    """Runs a command when it is unpickled by `pickle.load`."""

    def __init__(self, call: Callable[..., Any], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.call, self.arguments


def wrapped_by_torch(found: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(found, buffer)
    return buffer.getvalue()


def wrapped_by_torch_before_zip(found: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(found, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


WRAPPERS: list[Callable[[object], bytes]] = [
    pickle.dumps,
    lambda found: pickle.dumps(found, protocol=0),
    lambda found: zlib.compress(pickle.dumps(found)),
    wrapped_by_torch,
    wrapped_by_torch_before_zip,
]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("where", ["alone", "inside"])
def test_a_pickle_bomb_does_not_go_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrap: Callable[[object], bytes], where: str
) -> None:
    mark = tmp_path / "ran"
    for bomb in (
        Bomb(os.system, f"touch {mark}"),
        Bomb(eval, f"open({str(mark)!r}, 'w')"),
        Bomb(torch.hub.load_state_dict_from_url, "http://localhost/x"),
        Bomb(np.loadtxt, str(FOREIGN / "README.md")),
    ):
        data = wrap(bomb if where == "alone" else {"layers": [1], "directions": bomb})
        refusal(tmp_path, capsys, data, *FLAGS)
        assert not mark.exists()


def test_a_class_of_another_package_is_never_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    data = b"\x80\x02cevil_package\nRun\n)\x81."
    assert "is no linear estimator" in refusal(tmp_path, capsys, data, *FLAGS)


def test_an_object_cannot_pass_for_another_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A state that names a class, or brings a `restore` of its own, is data like any other."""
    state = pickle.dumps({"origin": "sklearn.linear_model.Ridge", "restore": 1, "coef_": [1.0]}, protocol=2)[
        2:-1
    ]
    data = b"\x80\x02csomewhere\nElse\n)\x81" + state + b"b" + state + b"b."
    assert "Else is no linear estimator" in refusal(tmp_path, capsys, data, *FLAGS)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x02c_codecs\nencode\n}b.", "changes a function"),
        (b"\x80\x02cnumpy\nndarray\n}b.", "changes a type"),
        (b"\x80\x02cprobes.artifact\nwrite\n.", "names probes.artifact.write"),
        (b"\x80\x02c__builtin__\neval\n.", "names __builtin__.eval"),
        (b"\x80\x02X\x01\x00\x00\x00xQ.", "objects outside"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 50) + b".", "the limit is"),
        (b"\x80\x05\x8e" + struct.pack("<Q", 1 << 50) + b".", "the pickle is broken"),
        (b"\x80\x02X\x01\x00", "the pickle is broken"),
        (b"\x80\x04" + b"(" * 100_000 + b".", "the pickle is broken"),
    ],
)
def test_opcodes_that_reach_for_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, reason: str
) -> None:
    assert reason in refusal(tmp_path, capsys, data)


def nested(levels: int) -> bytes:
    """Opcodes: a pair of the pair before it, twice, and so on; 2**levels to who looks at each part."""
    return b"K\x01" + b"2\x86" * levels


def ridge(opcodes: bytes) -> bytes:
    """A pickled Ridge whose coef_ is what the opcodes leave on the stack."""
    return b"\x80\x02csklearn.linear_model\nRidge\n)\x81}X\x05\x00\x00\x00coef_" + opcodes + b"sb."


LISTS = b"]K\x01aq\x00" + b"".join(b"0](" + b"h%c" % n * 12 + b"eq%c" % (n + 1) for n in range(7))
"""12**7 numbers in 200 bytes."""
ZEROS = b"cnumpy._core.numeric\n_frombuffer\n(" + b"\x8a\x06" + struct.pack("<Q", 1 << 40)[:6]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x02}" + nested(60) + b"Ns.", "a tuple for a key"),
        (b"\x80\x02}(" + nested(60) + b"Nu.", "a tuple for a key"),
        (b"\x80\x02(" + nested(60) + b"Nd.", "a tuple for a key"),
        (b"\x80\x04\x8f(" + nested(60) + b"\x90.", "a tuple for a key"),
        (b"\x80\x04(" + nested(60) + b"\x91.", "a tuple for a key"),
        (b"\x80\x02ccollections\nOrderedDict\n](" + nested(60) + b"Ne\x85R.", "the pickle is broken"),
        (ridge(b"cnumpy\ndtype\n" + nested(60) + b"\x85R"), "not numbers"),
        (ridge(LISTS), "numbers in lists"),
        (
            ridge(ZEROS + b"cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85RK\x01\x85X\x01\x00\x00\x00CtR"),
            "bytes of an array are",
        ),
        (wrapped_by_torch({1: torch.zeros(1).expand(1 << 40)}), "over 134217728 numbers"),
        (wrapped_by_torch({1: torch.zeros(4, device="meta")}), "not numbers"),
    ],
)
def test_a_small_file_cannot_keep_the_converter_busy(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    data: bytes,
    reason: str,
) -> None:
    monkeypatch.setattr(arrays, "MAX_LISTED", 1 << 12)
    assert reason in refusal(tmp_path, capsys, data, *FLAGS)


def test_what_no_check_foresaw_ends_at_the_limits_of_the_process() -> None:
    before = [resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU)]
    with bounded.limited():
        seconds = resource.getrlimit(resource.RLIMIT_CPU)[0]
        with pytest.raises(MemoryError):
            np.zeros(1 << 31)
    assert 0 < seconds < time.process_time() + 150
    assert before == [resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("weight", "scale"), [(1e300, 1e-300), (1e300, 1.0), (1.0, 1e300), (5e-324, 1e-300)])
def test_numbers_beyond_float32_are_one_line_or_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], weight: float, scale: float
) -> None:
    file, out = tmp_path / "f.npz", tmp_path / "o.safetensors"
    np.savez(file, weight=np.full(4, weight), bias=np.zeros(1), scale=np.full(4, scale), mean=np.ones(4))
    status, said = cli.main(["import", str(file), "-o", str(out), *FLAGS]), capsys.readouterr().err
    assert (status, out.exists(), said.count("\n")) in [(0, True, 0), (1, False, 1)]


def test_a_large_autoencoder_is_mapped_beyond_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 GiB, of which a few columns are read; the file has a hole instead of its decoder."""
    (tmp_path / "sae").mkdir()
    for file in (FOREIGN / "sae_standard").iterdir():
        (tmp_path / "sae" / file.name).write_bytes(file.read_bytes())
    weights, decoder = tmp_path / "sae" / "sae_weights.safetensors", 12 << 30
    data = weights.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    body = data[8 + length :]
    offsets = [len(body), len(body) + decoder]
    more = {"W_large": {"dtype": "U8", "shape": [decoder], "data_offsets": offsets}}
    head = json.dumps(json.loads(data[8 : 8 + length]) | more).encode()
    head += b" " * (-len(head) % 8)
    weights.write_bytes(struct.pack("<Q", len(head)) + head + body)
    os.truncate(weights, 8 + len(head) + len(body) + decoder)
    sae = ["import", str(tmp_path / "sae"), "--features", "1", "-o", str(tmp_path / "o")]
    assert cli.main(sae) == 0, capsys.readouterr().err


@pytest.mark.parametrize("code", [b"\x1b\0\0\0", b"\xfa\xfa\0\0", b"\0\xd8\0\0", 4 * b"\xff"])
def test_names_of_classes_drive_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], code: bytes
) -> None:
    """An escape, no character at all, half of one, and a number beyond them all."""
    data = (FOREIGN / "words.joblib").read_bytes()
    honest = "honest".encode("utf-32-le")
    assert honest in data
    (tmp_path / "f").write_bytes(data.replace(honest, code + honest[4:]))
    assert cli.main(["import", str(tmp_path / "f"), "-o", str(tmp_path / "o"), *FLAGS]) in (0, 1)
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())


def archive(header: bytes, flag: int = 0) -> bytes:
    """An npz whose one array has this header."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr("weight.npy", header)
    data = bytearray(buffer.getvalue())
    data[6] |= flag
    data[data.rfind(b"PK\x01\x02") + 8] |= flag
    return bytes(data)


def npy(shape: str) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(32)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (archive(npy("(4,)"), flag=1), "encrypted"),
        (archive(npy("(1 << 40,)")), "malformed node"),
        (archive(npy(f"({1 << 40},)")), "Unable to allocate"),
        (archive(npy("(" * 30)), "cannot be read"),
        (archive(b"no array"), "no array 'weight'"),
        (archive(npy("(4,)")).replace(bytes(16), b"\x01" * 16), "Bad CRC-32"),
    ],
)
def test_an_npz_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, reason: str
) -> None:
    assert reason in refusal(tmp_path, capsys, data, *FLAGS)


def test_bombs_of_size_are_not_unpacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (bounded, pickles):
        monkeypatch.setattr(module, "MAX_BYTES", 1 << 20)
    packed = io.BytesIO()
    np.savez_compressed(packed, weight=np.zeros(1 << 20))
    assert "unpacks to" in refusal(tmp_path, capsys, packed.getvalue())
    assert "unpacks to over" in refusal(tmp_path, capsys, zlib.compress(bytes(1 << 22)))
    monkeypatch.setattr(bounded, "read", lambda path, limit=1 << 20: _READ(path, min(limit, 1 << 20)))
    assert "the limit is" in refusal(tmp_path, capsys, b"GGUF" + bytes(1 << 21))


_READ = bounded.read


def gguf_header(tensors: int, pairs: int, rest: bytes = b"") -> bytes:
    return gguf.MAGIC + struct.pack("<IQQ", 3, tensors, pairs) + rest


def entry(sizes: tuple[int, ...], offset: int = 0, kind: int = 0) -> bytes:
    name = b"direction.1"
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gguf_header(1 << 60, 0), "entries, the limit"),
        (gguf_header(0, 1 << 60), "entries, the limit"),
        (gguf_header(0, 1, struct.pack("<Q", 1 << 62)), "text of"),
        (gguf_header(1, 0, entry((1 << 62, 1 << 62))), "numbers; this is no control vector"),
        (gguf_header(1, 0, entry((1 << 20,))), "beyond the file's end"),
        (gguf_header(2, 0, 2 * entry((4,))), "two tensors of one name"),
        (gguf_header(1, 0, entry((4,), offset=1 << 62)), "beyond the file's end"),
        (gguf_header(1, 0, entry((4,), kind=12) + bytes(64)), "GGML type 12"),
        (gguf_header(1, 0, entry((1,) * 9)), "has 9 axes"),
        (gguf.MAGIC + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF", "more are announced"),
        (
            gguf_header(0, 1, struct.pack("<Q", 1) + b"k" + struct.pack("<II", 9, 9) + bytes(8)),
            "architecture",
        ),
        (gguf.write({"general.architecture": "llama"}, {}), "architecture 'llama'"),
        (gguf.write({"general.architecture": "controlvector"}, {}), "holds no direction"),
    ],
)
def test_gguf_headers_that_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, reason: str
) -> None:
    assert reason in refusal(tmp_path, capsys, data)


def vector(**rows: Any) -> bytes:
    tensors = {name.replace("_", "."): np.asarray(row, np.float32) for name, row in rows.items()}
    return gguf.write({"general.architecture": "controlvector"}, tensors)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (vector(direction_1=[1.0, np.nan]), "NaN or infinity"),
        (vector(direction_1=[1.0, np.inf]), "NaN or infinity"),
        (vector(direction_1=[0.0, 0.0]), "needs a length"),
        (vector(direction_1=[1.0, 2.0], direction_2=[1.0]), "differ in length"),
        (vector(direction_1=[[1.0, 2.0], [3.0, 4.0]]), "give [d]"),
        (vector(direction_99999=[1.0]), "a layer below 0 or above 65535"),
        (vector(direction_01=[1.0, 2.0], direction_1=[1.0, 3.0]), "'direction.01' is no direction.N"),
        (pickle.dumps({"layers": [10**5000], "directions": [[1.0]]}), "a layer below 0 or above 65535"),
        (json.dumps({"directions": {"1": [1], "01": [2]}}).encode(), "no 'directions' by layer"),
        (
            pickle.dumps(
                {"layers": [1], "directions": [[1.0]], "scaler_mean": [[0.0]], "scaler_scale": [[0.0]]}
            ),
            "scale of 0",
        ),
        (pickle.dumps({"layers": [1, 2], "directions": [[1.0]]}), "for 2 layers"),
        (pickle.dumps({"layers": "ab", "directions": [[1.0]]}), "no list of numbers"),
        (pickle.dumps({"layers": [1], "directions": "text"}), "not numbers"),
        (pickle.dumps({"layers": [1], "directions": [[1e300]]}), "does not fit float32"),
        (pickle.dumps({"layers": [0], "directions": [[1.0]]}), "not the output of a block"),
        (b"[" * 100_000, "cannot be told"),
        (b'{"directions":' * 50_000, "no JSON"),
        (json.dumps({"directions": {"../x": [1]}}).encode(), "no 'directions' by layer"),
        (b"", "cannot be told"),
        (b"PK\x03\x04", "broken zip"),
    ],
)
def test_content_that_makes_no_probe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, reason: str
) -> None:
    assert reason in refusal(tmp_path, capsys, data)


def test_layers_and_weights_must_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = io.BytesIO()
    np.savez(packed, weight=np.ones((1, 4)), layers=[2, 3])
    said = refusal(tmp_path, capsys, packed.getvalue(), "--layers-are", "hf")
    assert "weights for [1] layers, and 2 layers named" in said


def test_what_is_no_linear_probe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = b"\x80\x02csklearn.neural_network\nMLPClassifier\n)\x81."
    assert "MLPClassifier is no linear estimator" in refusal(tmp_path, capsys, data, *FLAGS)
    data = b"\x80\x02cmodels_under_pressure.probes.sklearn_probes\nPytorchProbe\n)\x81."
    assert "PytorchProbe: a SklearnProbe is a linear head" in refusal(tmp_path, capsys, data, *FLAGS)


def test_pipes_and_folders_are_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae" / "cfg.json").write_bytes((FOREIGN / "sae_standard" / "cfg.json").read_bytes())
    os.mkfifo(tmp_path / "sae" / "sae_weights.safetensors")
    sae = ["import", str(tmp_path / "sae"), "--features", "1", "-o", str(tmp_path / "o")]
    assert cli.main(sae) == 1
    assert cli.main(["import", str(tmp_path / "pipe"), "-o", str(tmp_path / "o")]) == 1
    assert cli.main(["import", str(tmp_path), "-o", str(tmp_path / "o")]) == 1
    assert cli.main(["import", str(tmp_path / "absent"), "-o", str(tmp_path / "o")]) == 1
    assert capsys.readouterr().err.count("\n") == 4
    nowhere = "/proc/nowhere/o.safetensors"
    assert cli.main(["import", str(FOREIGN / "repeng.gguf"), "-o", nowhere]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["repeng.gguf", "steering_vector.pt", "pipeline.joblib", "pipeline_compressed.joblib", "pipeline_5.pkl"],
)
def test_damaged_files_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Cut anywhere, bytes changed anywhere: a sound artifact, or a refusal of one printable line."""
    whole, dice = (FOREIGN / name).read_bytes(), random.Random(name)
    for _ in range(40):
        data = bytearray(whole[: dice.randrange(len(whole))] if dice.random() < 0.3 else whole)
        for _ in range(dice.randrange(1, 4)):
            if data:
                data[dice.randrange(len(data))] = dice.randrange(256)
        (tmp_path / "file").write_bytes(data)
        status = cli.main(["import", str(tmp_path / "file"), "-o", str(tmp_path / "o.safetensors"), *FLAGS])
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]
        assert len(said) == (0 if status == 0 else 1)
        assert all(line.isprintable() for line in said)
