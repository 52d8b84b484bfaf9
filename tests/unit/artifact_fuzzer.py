"""Makes broken and hostile artifacts out of sound ones, the same for the same seed."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from probes import artifact, kinds
from probes.testing import fake_manifest, fake_tensors

FIELDS: dict[str, object] = {
    "threshold": 0.5,
    "default_action": "alert",
    "benign_quantiles": {"probabilities": [0, 0.5, 1], "values": [0, 1, 2]},
    "calibration": {"nominal_fpr": 0.01, "n": 100},
    "binding": {"model_id": "m", "config_digest": "0" * 64},
    "training": {"digest": "0" * 64, "split": "train", "n_positive": 1, "n_negative": 1},
    "metrics": {"auroc": 0.9, "by": {"a": [1, 2.5, None, "x"]}},
}
KINDS = [*kinds.KINDS, kinds.ENSEMBLE]


def deep(levels: int) -> Any:
    found: Any = []
    for _ in range(levels):
        found = [found]
    return found


HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 1e308, -1e308, 5e-324),
    *(
        math.nan,
        math.inf,
        -math.inf,
        "",
        " ",
        "\n",
        "\r\nx",
        "\0",
        "\x1b[2J",
        "\u202e",
        "\u2028",
        "\ud800",
        "💥",
    ),
    *("x" * 100_000, "../../etc/passwd", "F32", "F64", "BF16", "F8_E4M3", "steer:x", "stop", "ema", "last_k"),
    *(
        [],
        {},
        [[]],
        {"": {}},
        [0, 0],
        [0, 8],
        [8, 0],
        [0, 2**64],
        [2**62, 2**62],
        [0, 2**63],
        [-1, 4],
        [1.5, 2],
    ),
    *(deep(90), deep(190), deep(600), [1] * 5000, {"a" * 3000: 1}, {"\n": "\n"}, "9" * 5000),
]
Tree = dict[str, Any] | list[Any]


def sealed(fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> bytes:
    """An artifact whose digest is right, whatever is in it."""
    text = json.dumps({**fields, "tensors_sha256": artifact.tensors_digest(tensors)})
    return save(tensors, metadata={artifact.METADATA_KEY: text})


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: str, rest: bytes) -> bytes:
    packed = header.encode()
    return struct.pack("<Q", len(packed)) + packed + rest


def hostile(rng: random.Random) -> Any:
    """A value of its own, for the tree it goes into may be changed again."""
    return json.loads(json.dumps(rng.choice(HOSTILE)))


def places(tree: Any, levels: int = 20) -> Iterator[tuple[Tree, Any]]:
    """Every (container, key) in a JSON tree, down to some depth."""
    for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        yield tree, key
        if isinstance(value, dict | list) and levels:
            yield from places(value, levels - 1)


def vandalise(rng: random.Random, tree: Tree) -> str:
    """The tree as JSON with something replaced, removed, renamed or doubled."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        found = list(places(tree))
        if not found:
            break
        container, key = rng.choice(found)
        move = rng.random()
        if move < 0.6:
            container[key] = hostile(rng)
        elif move < 0.75:
            del container[key]
        elif isinstance(container, dict):
            new = rng.choice([value for value in HOSTILE if isinstance(value, str)])
            container[new] = container[key] if move < 0.9 else hostile(rng)
        else:
            container.insert(rng.randrange(len(container) + 1), hostile(rng))
    text = json.dumps(tree)
    if rng.random() < 0.1 and isinstance(tree, dict) and tree:
        key = rng.choice(list(tree))
        text = text[:-1] + f", {json.dumps(key)}: {json.dumps(rng.choice([*HOSTILE, *tree.values()]))}}}"
    return text


class Fuzzer:
    """Makes case after case from sound artifacts of every kind."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.sound = []
        for kind, scoring in KINDS:
            made = fake_manifest(kind=kind, scoring=scoring, **FIELDS)
            self.sound.append((json.loads(made.model_dump_json()), fake_tensors(made)))
        self.bytes = [sealed(fields, tensors) for fields, tensors in self.sound]
        self.makers: list[Callable[[], bytes]] = [
            self.bits, self.bits, self.cut, self.length, self.header, self.header, self.lying_tensors,
            self.manifest, self.manifest, self.manifest, self.values, self.shapes, self.foreign,
        ]  # fmt: skip

    def case(self) -> tuple[str, bytes]:
        maker = self.rng.choice(self.makers)
        return maker.__name__, maker()

    def bits(self) -> bytes:
        data = bytearray(self.rng.choice(self.bytes))
        for _ in range(self.rng.choice((1, 1, 2, 8, 64))):
            end = self.rng.choice((8, 1500, len(data)))
            data[self.rng.randrange(min(end, len(data)))] ^= 1 << self.rng.randrange(8)
        return bytes(data)

    def cut(self) -> bytes:
        data = self.rng.choice(self.bytes)
        at, n = self.rng.randrange(len(data)), self.rng.randrange(1, 200)
        return self.rng.choice((data[:at], data[at:], data[:at] + data[at + n :], data + data[at : at + n]))

    def length(self) -> bytes:
        data = self.rng.choice(self.bytes)
        (right,) = struct.unpack("<Q", data[:8])
        near = right + self.rng.randrange(-300, 300)
        lie = self.rng.choice(
            (near, 0, 1, 2**21, 2**21 + 1, 2**31, 2**63, 2**64 - 1, self.rng.getrandbits(64))
        )
        return struct.pack("<Q", lie) + data[8:]

    def header(self) -> bytes:
        header, rest = split(self.rng.choice(self.bytes))
        return joined(vandalise(self.rng, header), rest)

    def lying_tensors(self) -> bytes:
        header, rest = split(self.rng.choice(self.bytes))
        own = {key: value for key, value in header.items() if key != "__metadata__"}
        text = vandalise(self.rng, own)
        return joined(text[:-1] + f', "__metadata__": {json.dumps(header["__metadata__"])}}}', rest)

    def manifest(self) -> bytes:
        fields, _ = self.rng.choice(self.sound)
        text = vandalise(self.rng, copy.deepcopy(fields))
        header, rest = split(self.rng.choice(self.bytes))
        header["__metadata__"] = {artifact.METADATA_KEY: text}
        return joined(json.dumps(header), rest)

    def values(self) -> bytes:
        fields, tensors = self.rng.choice(self.sound)
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        for _ in range(self.rng.choice((1, 1, 3))):
            flat = self.rng.choice(list(changed.values())).reshape(-1)
            value = self.rng.choice((math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e-45, 0.0, -0.0, 1e30))
            where = slice(None) if self.rng.random() < 0.3 else self.rng.randrange(len(flat))
            flat[where] = value
        return sealed(fields, changed)

    def shapes(self) -> bytes:
        fields, tensors = self.rng.choice(self.sound)
        changed = dict(tensors)
        name = self.rng.choice(list(changed))
        shape = [self.rng.choice((0, 1, 2, 3, 4, 5)) for _ in range(self.rng.randrange(5))]
        dtype = self.rng.choice(
            (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool)
        )
        changed[name] = torch.zeros(shape, dtype=dtype)
        if self.rng.random() < 0.2:
            changed[self.rng.choice(("extra", "\n", "x" * 5000))] = torch.zeros(1)
        return sealed(fields, changed)

    def foreign(self) -> bytes:
        packed = io.BytesIO()
        kind = self.rng.randrange(5)
        if kind == 0:
            return pickle.dumps(Bomb(), protocol=self.rng.randrange(6))
        if kind == 1:
            torch.save(
                {"weight": torch.zeros(2)}, packed, _use_new_zipfile_serialization=self.rng.random() < 0.5
            )
        elif kind == 2:
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr("data.pkl", pickle.dumps(Bomb()))
        elif kind == 3:
            np.save(packed, np.array([Bomb()], object), allow_pickle=True)
        else:
            packed.write(
                self.rng.choice((b"GGUF", b"\x1f\x8b", b"x\x9c", b"\x89HDF")) + self.rng.randbytes(64)
            )
        return packed.getvalue()


class Bomb:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("a-file-was-run",)
