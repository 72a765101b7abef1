"""Writes that matter: a file is there whole or as it was before, also after a power cut.

Temporary file in the same folder, fsync, replace, fsync of the folder. Called by every room that keeps a small file.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Raises OSError; then the old file, or none, is what stands there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sweep(folders: Iterable[Path]) -> None:
    """Removes what is left of writes that a power cut has ended. Only while nobody writes there."""
    for folder in folders:
        for path in folder.glob(".*"):
            if _TEMPORARY.fullmatch(path.name):
                with suppress(OSError):  # on a disk that is read-only now it can wait
                    path.unlink()


def sync_folder(path: Path) -> None:
    """Makes names in the folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
