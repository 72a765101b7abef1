"""Tar archives made the same way everywhere, as pieces: bytes, and places where a file's content goes.

The layer with a module's files is not shipped: hub and device make it, byte for byte, from the files themselves, so
that files travel and are patched as in any module. Owner root, time 0, nobody may write. Pure: who reads the pieces
opens the files. Used by `modules.images`.
Source: POSIX.1-2001 ustar with GNU's long names and sizes; OCI image specification 1.1, layer.md.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import BinaryIO

import msgspec

from modules.errors import ModuleError

_BLOCK = tarfile.BLOCKSIZE
_READ = 1024 * 1024


class LayerError(ModuleError):
    """A file that goes into a layer is not what it was when the layer was made."""

    key = "image-damaged"


class Content(msgspec.Struct, frozen=True):
    """Here the bytes of the file at `path` go: so many, with this SHA-256 (hex)."""

    path: str
    size: int
    sha256: str


Piece = bytes | Content


class Member(msgspec.Struct, frozen=True):
    """One file of an archive, and what it is made of."""

    name: str
    pieces: tuple[Piece, ...]
    mode: int = 0o444


def archive(members: Iterable[Member]) -> tuple[Piece, ...]:
    """A whole tar archive, in the order given; each folder comes once, before what is in it."""
    pieces: list[Piece] = []
    seen: set[str] = set()
    for member in members:
        for folder in reversed(PurePosixPath(member.name).parents):
            if str(folder) != "." and str(folder) not in seen:
                seen.add(str(folder))
                pieces.append(_header(f"{folder}/", 0, 0o755, tarfile.DIRTYPE))
        total = size(member.pieces)
        pieces.append(_header(member.name, total, member.mode, tarfile.REGTYPE))
        pieces += member.pieces
        pieces.append(bytes(-total % _BLOCK))
    pieces.append(bytes(2 * _BLOCK))
    return tuple(pieces)


def module_layer(root: str, files: Mapping[str, Content]) -> tuple[Piece, ...]:
    """The layer that puts files, by their path, below `root`."""
    return archive(Member(f"{root}/{path}", (content,)) for path, content in sorted(files.items()))


def size(pieces: Iterable[Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece.size for piece in pieces)


def stream(pieces: Iterable[Piece], opened: Callable[[str], BinaryIO]) -> Iterator[bytes]:
    """The bytes. `opened` opens a file by its path. Raises LayerError at a file that is not as promised, OSError."""
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
            continue
        digest, left = hashlib.sha256(), piece.size
        with opened(piece.path) as file:
            while left and (block := file.read(min(_READ, left))):
                digest.update(block)
                left -= len(block)
                yield block
            more = file.read(1)
        if left or more or digest.hexdigest() != piece.sha256:
            raise LayerError(f"{piece.path}: expected {piece.size} bytes with SHA-256 {piece.sha256}, got others")


def digest(pieces: Iterable[Piece], opened: Callable[[str], BinaryIO]) -> str:
    """As sha256:... Raises as `stream`."""
    total = hashlib.sha256()
    for block in stream(pieces, opened):
        total.update(block)
    return f"sha256:{total.hexdigest()}"


def _header(name: str, size: int, mode: int, kind: bytes) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.type = size, mode, kind
    return entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
