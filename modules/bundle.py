"""The files of a module: path, size, digest and chunk list. No archives: files are stored and moved by digest.

Pure functions over bytes and entries. Cutting files into chunks is the hub's `packaging`; fetching them is the
agent's `fetch`.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePosixPath

import msgspec

from modules.errors import ChunkError

# A chunk is also the unit of transfer, so one chunk with its header stays far below the broker's 1 MiB packets.
MAX_CHUNK_BYTES = 256 * 1024
DIGEST_PATTERN = r"^[0-9a-f]{64}$"
MAX_PATH = 200


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of a file: SHA-256 (hex) and size in bytes."""

    sha256: str
    size: int


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a module. The chunks, in order, are the whole file."""

    path: str
    size: int
    sha256: str
    chunks: tuple[Chunk, ...]

    def __post_init__(self) -> None:
        check_path(self.path)
        check_digest(self.sha256)
        for chunk in self.chunks:
            check_digest(chunk.sha256)
            if not 0 < chunk.size <= MAX_CHUNK_BYTES:
                raise ChunkError(f"{self.path}: expected chunks of 1 to {MAX_CHUNK_BYTES} bytes, got {chunk.size}")
        total = sum(chunk.size for chunk in self.chunks)
        if total != self.size:
            raise ChunkError(f"{self.path}: expected chunks of {self.size} bytes in all, got {total}")


def sha256_hex(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def check_digest(text: str) -> str:
    """The digest itself, so that it may be used as a file name. Raises ChunkError on anything else."""
    if not re.fullmatch(DIGEST_PATTERN, text):
        raise ChunkError(f"digest: expected 64 lower-case hexadecimal digits, got {text[:80]!r}")
    return text


def check_path(path: str) -> str:
    """A path that stays inside its folder on every file system. Raises ChunkError on anything else."""
    parts = PurePosixPath(path).parts
    plain = re.fullmatch(r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", path) is not None
    if not plain or ".." in parts or "." in parts or len(path) > MAX_PATH or path != "/".join(parts):
        raise ChunkError(f"path: expected a plain relative path of at most {MAX_PATH} characters, got {path[:80]!r}")
    return path
