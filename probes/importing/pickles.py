"""Reads pickles without importing, or calling, anything that they name.

A pickle is a program that names functions and calls them. Here a name is looked up in `_KNOWN`, which holds this
module's own functions; of another package, an inert `Placeholder` stands for it; any other name (`os`, `builtins`,
numpy or torch beyond what an array needs) is refused before it means anything. `torch.load(weights_only=True)` does the
same for torch's own containers, with the same placeholders.
"""

import io
import math
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Final

import torch

from probes.errors import MalformedArtifact, OversizedArtifact, UnsafeFormat
from probes.importing.arrays import Array, DType, frombuffer, numbers, reconstruct, scalar, sizes
from probes.importing.bounded import MAX_BYTES, check_zip, inflate, one_line, read

LEGACY_TORCH: Final = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of `torch.save` began before it wrote zip archives."""
_FAULTS: Final = (
    pickle.UnpicklingError,
    struct.error,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    OverflowError,
    RecursionError,
    MemoryError,
    RuntimeError,
    AssertionError,
    NotImplementedError,
)


class Placeholder:
    """Stands for an object of a class that is never imported. Its attributes are what the file says of it."""

    origin = ""
    """Dotted name of the class."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def restore(self, state: object) -> None:
        """Take over a pickled state: a dict, or (dict, slots)."""
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                vars(self).update({str(name): value for name, value in part.items()})


def origin(found: object) -> str:
    """Dotted name of a placeholder's class, empty for any other object; not what the file says of the object."""
    return type(found).origin if isinstance(found, Placeholder) else ""


def class_name(found: object) -> str:
    """The last part of the name of a placeholder's class, or of any other object's."""
    return origin(found).rpartition(".")[2] or type(found).__name__


def load_pickle(data: bytes) -> object:
    """The object in a raw or joblib pickle, compressed or not; its classes are placeholders."""
    if data[:1] == b"x" or data[:2] == b"\x1f\x8b":
        data = inflate(data)
    try:
        return _Reader(io.BytesIO(data)).load()
    except _FAULTS as error:
        raise MalformedArtifact(f"the pickle is broken ({one_line(error)}); fetch the file again") from None


def load_torch(path: Path) -> object:
    """The object in a file of `torch.save`, read by torch's own weights-only loader."""
    if read(path)[:2] == b"PK":
        check_zip(path)
        named = _named_in(path)
        placeholders = [_named_placeholder(name) for name in named]
    else:
        placeholders = []
    try:
        with torch.serialization.safe_globals(placeholders):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _FAULTS as error:
        raise MalformedArtifact(
            f"torch's weights-only loader refuses it ({_first_sentence(error)}); fetch the file again"
        ) from None


def _named_in(path: Path) -> list[str]:
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except _FAULTS as error:
        raise MalformedArtifact(
            f"torch cannot read it ({_first_sentence(error)}); fetch the file again"
        ) from None


def _named_placeholder(name: str) -> Any:
    """What `safe_globals` takes: the stand-in, and the name it stands for."""
    module, _, last = name.rpartition(".")
    return _placeholder(module, last), name


def _first_sentence(error: Exception) -> str:
    return one_line(error).partition(". ")[0]


def _placeholder(module: str, name: str) -> type[Placeholder]:
    """The stand-in for a class of another package; `UnsafeFormat` for names that a probe never needs."""
    root = "" if module.startswith("numpy.random.") else module.partition(".")[0]  # an estimator's generator
    ours = {"numpy", "torch", "probes", "monitor", "copy_reg", "__builtin__"}
    if root in sys.stdlib_module_names or root in ours:
        raise UnsafeFormat(
            f"the file names {module}.{name}, which no linear probe needs; it is hostile, or no probe"
        )
    return type("Named", (Placeholder,), {"origin": f"{module}.{name}"})


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode(encoding if encoding in ("latin1", "utf-8") else "latin1")  # bytes, under protocol 2


def _ordered() -> OrderedDict[object, object]:
    return OrderedDict()  # filled by opcodes, whose keys are looked at


def _storage(data: bytes) -> object:
    if not data.startswith(LEGACY_TORCH):
        raise ValueError("a storage in an archive of its own")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Any:
    (offset,), size, stride = sizes((offset,)), sizes(size), sizes(stride)
    held = storage._untyped_storage.nbytes() // torch.empty(0, dtype=storage.dtype).element_size()
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= held or math.prod(size) > held:
        raise ValueError("a tensor that reaches beyond its storage")
    flat = torch.tensor([], dtype=storage.dtype)
    return flat.set_(storage._untyped_storage, offset, size, stride).clone()


def _new(kind: type, _base: object, _state: object) -> object:
    if not issubclass(kind, Placeholder):
        raise TypeError("an object of no known class")
    return kind()


_KNOWN: Final[dict[tuple[str, str], Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("copyreg", "_reconstructor"): _new,
    ("copy_reg", "_reconstructor"): _new,
    ("builtins", "object"): object,
    ("__builtin__", "object"): object,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): DType,
    ("numpy", "ndarray"): Array,
    ("numpy.core.multiarray", "_reconstruct"): reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): reconstruct,
    ("numpy.core.multiarray", "scalar"): scalar,
    ("numpy._core.multiarray", "scalar"): scalar,
    ("numpy.core.numeric", "_frombuffer"): frombuffer,
    ("numpy._core.numeric", "_frombuffer"): frombuffer,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "float32"): torch.float32,
    ("torch", "float64"): torch.float64,
    ("torch", "float16"): torch.float16,
    ("torch", "bfloat16"): torch.bfloat16,
}


class _JoblibArray(Placeholder):
    """joblib writes an array's bytes behind the pickle's description of it; an array of objects as another pickle."""

    def read(self, file: BinaryIO) -> object:
        said = vars(self)
        if isinstance(said["dtype"], DType) and said["dtype"].of_objects:
            return _Reader(file).load()
        if said.get("numpy_array_alignment_bytes") is not None:
            file.read(file.read(1)[0])
        dtype, shape = said["dtype"], sizes(said["shape"])
        size = numbers(dtype).itemsize * math.prod(shape)
        if size > MAX_BYTES:
            raise OversizedArtifact(f"an array of {size} bytes, the limit is {MAX_BYTES}; this is no probe")
        return frombuffer(file.read(size), dtype, shape, said.get("order", "C"))


class _Reader(pickle._Unpickler):
    """Python's own unpickler, in which names and states mean no more than they may."""

    stack: list[Any]
    read: Callable[[int], bytes]
    append: Callable[[object], None]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
            return _JoblibArray
        return _placeholder(module, name)

    def persistent_load(self, pid: object) -> Any:
        raise UnsafeFormat("the file refers to objects outside of it; do not trust it")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Placeholder):
            Placeholder.restore(target, state)  # of the class: a state may hold a 'restore' of its own
        elif isinstance(target, Array | DType):
            target.restore(state)
        else:
            raise UnsafeFormat(f"the file changes a {type(target).__name__}; do not trust it")
        if isinstance(target, _JoblibArray):
            self.stack[-1] = _JoblibArray.read(target, self._file)

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > MAX_BYTES:
            raise OversizedArtifact(f"{size} bytes in one object, the limit is {MAX_BYTES}; this is no probe")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _looking_at(keys: Callable[[list[Any]], list[Any]], load: Callable[[_Reader], None]) -> Any:
    """`load`, where no key is a tuple: a pair of the pair before it, sixty times over, is never hashed to the end."""

    def looked_at(reader: _Reader) -> None:
        if any(isinstance(key, tuple | frozenset) for key in keys(reader.stack)):
            raise UnsafeFormat("the file has a tuple for a key, which no linear probe needs; do not trust it")
        load(reader)

    return looked_at


_KEYS: Final[dict[bytes, Callable[[list[Any]], list[Any]]]] = {
    pickle.SETITEM: lambda stack: stack[-2:-1],
    pickle.SETITEMS: lambda stack: stack[::2],
    pickle.DICT: lambda stack: stack[::2],
    pickle.ADDITEMS: lambda stack: stack,
    pickle.FROZENSET: lambda stack: stack,
}
"""Opcodes that hash what lies on the stack -> the part of it that they hash."""
_Reader.dispatch.update(
    {code[0]: _looking_at(keys, _Reader.dispatch[code[0]]) for code, keys in _KEYS.items()}
)
