"""Files that are there whole or not at all: written beside the target, synced, then renamed over it."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from probes.errors import DataError

PARTIAL: Final = ".partial-"
"""How the names of files begin that are still being written; a kill may leave one."""


def fill(path: Path, write: Callable[[Path], object]) -> None:
    """What `write` puts into the file that it is given becomes `path` in one rename. Makes the folder where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        _sync(temporary)
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, and a server may run as another user
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_target(path: Path) -> None:
    """Raise `DataError` where no file can be written: to be asked before minutes are spent on what goes into it."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not above.is_dir() or not os.access(above, os.W_OK):
        raise DataError(f"{path}: no file can be written there (folder above: {above}); give another path")


def write_bytes(path: Path, payload: bytes) -> None:
    """Write `payload` in one rename, so that no reader ever sees half of it. Makes the folder where missing."""
    fill(path, lambda temporary: temporary.write_bytes(payload))


def write_text(path: Path, text: str) -> None:
    """The same for text, in UTF-8."""
    write_bytes(path, text.encode())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
