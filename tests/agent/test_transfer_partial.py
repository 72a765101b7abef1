"""What is on the disk of a file on its way: pieces, chunks, the map, and files beyond four GiB."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from agent.transfer.partial import Partial, Plan, Stretch
from agent.transfer.todo import Todo
from agent.transfer.window import PIECE_BYTES
from modules.bundle import MAX_CHUNK_BYTES, sha256_hex
from support.repository import make_entry

CHUNK = 100_000
DATA = random.Random(11).randbytes(5 * CHUNK + 77)
ENTRY = make_entry("model.onnx", DATA, CHUNK)
SYNC = 10**9
GIB = 2**30


def put(partial: Partial, start: int, stop: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    written = partial.write(start, DATA[start:stop], SYNC)
    return written.done, written.wrong


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_pieces_make_a_chunk_and_chunks_the_file(tmp_path: Path) -> None:
    partial = Partial(tmp_path, Plan.of(ENTRY))
    assert partial.missing() == [(0, len(DATA))]
    assert put(partial, PIECE_BYTES, CHUNK) == ((), ())
    assert partial.present_bytes == 0  # not verified yet
    assert partial.missing() == [(0, PIECE_BYTES), (CHUNK, len(DATA))]
    assert put(partial, 0, PIECE_BYTES) == ((0,), ())
    assert put(partial, CHUNK, len(DATA)) == ((1, 2, 3, 4, 5), ())
    assert partial.finish().read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == [ENTRY.sha256]


def test_pieces_outlive_the_process(tmp_path: Path) -> None:
    first = Partial(tmp_path, Plan.of(ENTRY))
    put(first, CHUNK, CHUNK + 2 * PIECE_BYTES)
    put(first, 0, CHUNK)
    first.close()
    second = Partial(tmp_path, Plan.of(ENTRY))
    assert second.missing() == [(CHUNK + 2 * PIECE_BYTES, len(DATA))]
    assert second.present_bytes == CHUNK
    second.close()


def test_a_spoilt_piece_costs_its_chunk_and_no_other(tmp_path: Path) -> None:
    partial = Partial(tmp_path, Plan.of(ENTRY))
    put(partial, 0, CHUNK)
    partial.write(CHUNK, bytes(PIECE_BYTES), SYNC)
    assert put(partial, CHUNK + PIECE_BYTES, 3 * CHUNK) == ((2,), (1,))
    assert partial.missing() == [(CHUNK, 2 * CHUNK), (3 * CHUNK, len(DATA))]
    partial.close()


def test_pieces_of_which_only_the_map_survived_a_power_cut_are_found_out(tmp_path: Path) -> None:
    first = Partial(tmp_path, Plan.of(ENTRY))
    put(first, 0, CHUNK + 2 * PIECE_BYTES)
    first.close()
    (tmp_path / f"{ENTRY.sha256}.part").write_bytes(b"")
    second = Partial(tmp_path, Plan.of(ENTRY))
    assert second.missing() == [(0, CHUNK), (CHUNK + 2 * PIECE_BYTES, len(DATA))]
    assert put(second, CHUNK + 2 * PIECE_BYTES, 2 * CHUNK) == ((), (1,))  # the pieces that are not there
    second.close()


@pytest.mark.parametrize("said", [b"", b"x" * 31, b"\xff" * 44, b"\xff" * 4000])
def test_a_map_that_is_none_means_that_nothing_is_here(tmp_path: Path, said: bytes) -> None:
    (tmp_path / f"{ENTRY.sha256}.map").write_bytes(said)
    partial = Partial(tmp_path, Plan.of(ENTRY))
    assert partial.missing() == [(0, len(DATA))]
    partial.close()


def test_a_partial_that_cannot_be_opened_leaves_no_file_open(tmp_path: Path) -> None:
    (tmp_path / f"{ENTRY.sha256}.map").mkdir()
    before = open_files()
    with pytest.raises(OSError, match="Is a directory"):
        Partial(tmp_path, Plan.of(ENTRY))
    assert open_files() == before


def test_a_read_error_while_resuming_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = Partial(tmp_path, Plan.of(ENTRY))
    put(partial, 0, CHUNK)
    partial.close()
    before, read = open_files(), os.pread

    def broken(file: int, count: int, offset: int) -> bytes:
        if count == CHUNK:
            raise OSError(errno.EIO, "Input/output error")
        return read(file, count, offset)

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(OSError, match="Input/output error"):
        Partial(tmp_path, Plan.of(ENTRY))
    assert open_files() == before


def test_blocks_end_where_chunks_end_and_else_where_pieces_do(tmp_path: Path) -> None:
    partial = Partial(tmp_path, Plan.of(ENTRY))
    assert partial.cut(0, len(DATA), 2 * CHUNK + 5) == 2 * CHUNK
    assert partial.cut(0, len(DATA), 40_000) == 2 * PIECE_BYTES
    assert partial.cut(0, len(DATA), 1) == PIECE_BYTES
    assert partial.cut(CHUNK + PIECE_BYTES, len(DATA), 10**6) == len(DATA)
    assert partial.cut(0, PIECE_BYTES, 10**6) == PIECE_BYTES
    partial.close()


def test_a_file_without_chunk_digests_is_trusted_only_as_a_whole(tmp_path: Path) -> None:
    plan = Plan.whole("patch", sha256_hex(DATA), len(DATA), "a-patch")
    partial = Partial(tmp_path, plan)
    assert [one.size for one in plan.stretches] == [MAX_CHUNK_BYTES, len(DATA) - MAX_CHUNK_BYTES]
    assert partial.write(0, bytes(len(DATA)), SYNC).wrong == ()
    with pytest.raises(Exception, match="patch: expected a file with sha256"):
        partial.finish()
    assert list(tmp_path.iterdir()) == []


def huge_plan(size: int) -> Plan:
    """Zeros but for the last chunk."""
    zeros, last = sha256_hex(bytes(MAX_CHUNK_BYTES)), sha256_hex(b"\1" * MAX_CHUNK_BYTES)
    count = size // MAX_CHUNK_BYTES
    stretches = (*[Stretch(zeros, MAX_CHUNK_BYTES)] * (count - 1), Stretch(last, MAX_CHUNK_BYTES))
    return Plan("large.bin", "e" * 64, size, stretches)


def test_a_file_of_five_gib_is_planned_written_and_resumed_beyond_two_to_the_32(tmp_path: Path) -> None:
    plan = huge_plan(5 * GIB)
    partial = Partial(tmp_path, plan)
    todo = Todo([partial])
    first = todo.take(512 * 1024)
    assert (first.start, first.stop) == (0, 512 * 1024)
    at = plan.size - MAX_CHUNK_BYTES
    assert at > 2**32
    assert partial.write(at, b"\1" * MAX_CHUNK_BYTES, SYNC).done == (len(plan.stretches) - 1,)
    middle = 2**32 + PIECE_BYTES  # in the middle of a chunk that begins exactly there
    partial.write(middle, bytes(PIECE_BYTES), SYNC)
    partial.close(sync=True)
    resumed = Partial(tmp_path, plan)
    assert resumed.missing() == [(0, middle), (middle + PIECE_BYTES, at)]
    assert resumed.read(len(plan.stretches) - 1) == b"\1" * MAX_CHUNK_BYTES
    assert (tmp_path / f"{'e' * 64}.part").stat().st_blocks * 512 < 2 * 2**20  # sparse
    resumed.discard()


def test_asking_for_a_file_of_five_gib_goes_through_each_of_its_bytes_once(tmp_path: Path) -> None:
    plan = Plan.whole("large.bin", "e" * 64, 5 * GIB + 1, "large")
    todo, at = Todo([Partial(tmp_path, plan)]), 0
    while at < plan.size:
        block = todo.take(8 * 2**20)
        assert block.start == at
        at = block.stop
    assert todo.short
