"""Cut files into content-defined chunks, so that unchanged bytes keep their digests from version to version.

FastCDC (Xia et al., USENIX ATC 2016) by the `fastcdc` library. A chunk is what a device verifies and reuses; sizes
stay within `modules.bundle.MAX_CHUNK_BYTES`. A chunk takes about 78 bytes of a manifest of at most 4 MiB, so larger
files get larger chunks: about 10 GiB fit in one module. Called by `packaging`, in a thread.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastcdc import fastcdc

from modules.bundle import MAX_CHUNK_BYTES, Chunk, FileEntry

_KIB, _GIB = 1024, 1024**3
# (files of at most so many bytes, smallest chunk, average chunk); found by measuring: 65, 125 and 209 KiB on average.
_SIZES = ((2 * _GIB, 16 * _KIB, 64 * _KIB), (5 * _GIB, 64 * _KIB, 128 * _KIB))
_LARGEST = (128 * _KIB, 256 * _KIB)


def file_entry(path: str, source: Path, sha256: str) -> FileEntry:
    """The manifest's entry for the file at `source`, which goes to `path` inside the module."""
    size = source.stat().st_size
    if size == 0:
        return FileEntry(path, 0, sha256, ())
    smallest, average = chunk_sizes(size)
    cuts = fastcdc(str(source), min_size=smallest, avg_size=average, max_size=MAX_CHUNK_BYTES)
    with source.open("rb") as file:
        chunks = tuple(_chunk(file.read(cut.length)) for cut in cuts)
    return FileEntry(path, size, sha256, chunks)


def chunk_sizes(size: int) -> tuple[int, int]:
    """The smallest and the average chunk of a file of so many bytes."""
    return next(((smallest, average) for most, smallest, average in _SIZES if size <= most), _LARGEST)


def _chunk(data: bytes) -> Chunk:
    return Chunk(hashlib.sha256(data).hexdigest(), len(data))
