"""Chunks that suit the size of a file, so that its manifest stays within its bound."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from cloud_hub.chunking import chunk_sizes, file_entry
from modules.bundle import MAX_CHUNK_BYTES, sha256_hex
from modules.manifest import MAX_MANIFEST_BYTES

GIB = 2**30
CHUNK_IN_MANIFEST = 78  # bytes of JSON: a digest, a size, and what is around them


@pytest.mark.parametrize(("gib", "mean_kib"), [(2, 60), (5, 115), (9.9, 200)])
def test_the_chunks_of_large_files_fit_in_a_manifest(gib: float, mean_kib: int, tmp_path: Path) -> None:
    smallest, average = chunk_sizes(int(gib * GIB))
    assert smallest <= average <= MAX_CHUNK_BYTES
    assert gib * GIB / (mean_kib * 1024) * CHUNK_IN_MANIFEST < MAX_MANIFEST_BYTES
    # The means are measured: on bytes without structure, with these sizes.
    from fastcdc import fastcdc

    sample = tmp_path / "sample"
    sample.write_bytes(random.Random(1).randbytes(8_000_000))
    cuts = list(fastcdc(str(sample), min_size=smallest, avg_size=average, max_size=MAX_CHUNK_BYTES))
    assert sum(cut.length for cut in cuts) / len(cuts) >= mean_kib * 1024


def test_small_files_keep_small_chunks_so_that_more_is_reused() -> None:
    assert chunk_sizes(14_000_000) == (16 * 1024, 64 * 1024)


def test_the_chunks_are_the_file(tmp_path: Path) -> None:
    data = os.urandom(1_000_000)
    (tmp_path / "file").write_bytes(data)
    entry = file_entry("model.onnx", tmp_path / "file", sha256_hex(data))
    at = 0
    for chunk in entry.chunks:
        assert sha256_hex(data[at : at + chunk.size]) == chunk.sha256
        at += chunk.size
    assert at == len(data)
