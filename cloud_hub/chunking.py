"""Cut files into content-defined chunks, so that unchanged bytes keep their digests from version to version.

FastCDC (Xia et al., USENIX ATC 2016) by the `fastcdc` library. A chunk is also the unit of transfer; sizes stay within
`modules.bundle.MAX_CHUNK_BYTES`. Called by `packaging`, in a thread.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastcdc import fastcdc

from modules.bundle import MAX_CHUNK_BYTES, Chunk, FileEntry

MIN_CHUNK_BYTES = 16 * 1024
AVERAGE_CHUNK_BYTES = 64 * 1024


def file_entry(path: str, source: Path, sha256: str) -> FileEntry:
    """The manifest's entry for the file at `source`, which goes to `path` inside the module."""
    size = source.stat().st_size
    if size == 0:
        return FileEntry(path, 0, sha256, ())
    cuts = fastcdc(str(source), min_size=MIN_CHUNK_BYTES, avg_size=AVERAGE_CHUNK_BYTES, max_size=MAX_CHUNK_BYTES)
    with source.open("rb") as file:
        chunks = tuple(_chunk(file.read(cut.length)) for cut in cuts)
    return FileEntry(path, size, sha256, chunks)


def _chunk(data: bytes) -> Chunk:
    return Chunk(hashlib.sha256(data).hexdigest(), len(data))
