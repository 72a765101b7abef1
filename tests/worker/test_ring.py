"""The ring of a module's last predictions: bounded, found again after a crash, and never more than the policy lets."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.rings import Rings
from agent.sampling.keeping import Kept, open_ring
from agent.sampling.ring import START, Record, Ring
from agent.sampling.strata import Strata
from modules.commands import AskSamples
from modules.manifest import SamplingPolicy
from modules.tensors import Tensor
from worker.test_strata import NAMES

SIZE = 16 * 1024


@pytest.fixture
def handle(tmp_path: Path) -> Iterator[int]:
    handle = os.open(tmp_path / "ring", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(handle, 0, SIZE)
    yield handle
    os.close(handle)


def record(number: int, rows: int = 1, size: int = 100) -> Record:
    x = Tensor("x", "UINT8", (rows, size), bytes([number % 256]) * size * rows)
    return Record(float(number), tuple(f"{number}#{row}" for row in range(rows)), (x,), ())


def held(ring: Ring) -> list[tuple[int, Record]]:
    """All records, newest first, as they are read."""
    found = [(entry.first, ring.read(entry)) for entry in ring.newest()]
    return [(first, read) for first, read in found if read is not None]


def test_the_newest_records_are_kept_as_they_were_whatever_their_sizes(handle: int) -> None:
    ring, chance = Ring(handle, rows=10_000, age_s=1e9), random.Random(7)
    written: list[tuple[int, Record]] = []
    for number in range(2000):
        one = record(number, chance.randint(1, 5), chance.randint(0, 400))
        first = ring.append(one)
        assert first == (written[-1][0] + len(written[-1][1].ids) if written else 1)
        written.append((first, one))
        kept = held(ring)
        assert kept == written[: -len(kept) - 1 : -1]
        assert ring.kept == sum(len(one.ids) for _, one in kept)
        if number % 50 == 0:
            again = Ring(handle, rows=10_000, age_s=1e9)
            assert (held(again), again.next_row, again.kept) == (kept, ring.next_row, ring.kept)
            again.close()
    assert len(held(ring)) > 5
    ring.close()


def test_rows_and_age_bound_what_is_kept_and_what_goes_is_blanked(handle: int) -> None:
    ring = Ring(handle, rows=5, age_s=10.0)
    for number in range(1, 4):
        ring.append(record(number, rows=2))
    assert [first for first, _ in held(ring)] == [5, 3]
    assert bytes([1]) * 50 not in os.pread(handle, SIZE, 0)
    ring.expire(12.5)
    assert [first for first, _ in held(ring)] == [5]
    assert bytes([2]) * 50 not in os.pread(handle, SIZE, 0)
    ring.clear()
    assert not any(os.pread(handle, SIZE, START))
    assert ring.append(record(9)) == 7  # numbers are never given twice
    assert ring.append(record(10, rows=6)) == 0  # more rows than may be kept
    assert ring.append(record(11, size=SIZE)) == 0
    ring.close()


def test_a_ring_that_was_torn_by_a_power_cut_begins_anew_and_keeps_counting(handle: int) -> None:
    ring = Ring(handle, rows=100, age_s=1e9)
    for number in range(20):
        ring.append(record(number))
    ring.close()
    os.pwrite(handle, b"torn", START + 300)
    again = Ring(handle, rows=100, age_s=1e9)
    assert held(again) == []
    assert again.append(record(30)) == 21
    again.close()


@pytest.mark.parametrize("size", [0, 100, 400])
def test_a_file_that_is_too_small_keeps_nothing_and_does_not_fail(tmp_path: Path, size: int) -> None:
    handle = os.open(tmp_path / "small", os.O_RDWR | os.O_CREAT)
    os.truncate(handle, size)
    assert open_ring(None, handle, SamplingPolicy(ring_rows=10), frozenset()) is None
    os.close(handle)


def test_any_bytes_are_a_ring_or_an_empty_one(handle: int) -> None:
    chance = random.Random(3)
    ring = Ring(handle, rows=100, age_s=1e9)
    for number in range(30):
        ring.append(record(number))
    sound = os.pread(handle, SIZE, 0)
    for _ in range(300):
        at = chance.randrange(0, 2000)
        os.pwrite(handle, sound, 0)
        os.pwrite(handle, chance.randbytes(chance.randint(1, 60)), at)
        again = Ring(handle, rows=100, age_s=1e9)
        assert all(number.at < 100 for _, number in held(again))
        again.append(record(50))
        again.close()
    ring.close()


def kept(handle: int, rows: int = 100) -> Kept:
    found = open_ring(None, handle, SamplingPolicy(ring_rows=rows), frozenset({"x", "y"}))
    assert found is not None
    return found


def fill(ring: Kept) -> None:
    """Rows 1 to 12, at times 1 to 6; the third of each pair of features grows."""
    for number in range(1, 7):
        x = np.array([[number, 1], [number + 0.5, 1]], np.float32)
        tensors = (Tensor("x", "FP32", (2, 2), x.tobytes()), Tensor("word", "BYTES", (1, 1), b"\1\0\0\0a"))
        ring.append(float(number), (f"p{number}#0", f"p{number}#1"), tensors, ())


@pytest.mark.parametrize(
    ("asked", "places"),
    [
        ({}, list(range(12, 0, -1))),
        ({"first": 3, "last": 5}, [5, 4, 3]),
        ({"first": 11}, [12, 11]),
        ({"id": "p2#1"}, [4]),
        ({"id": "p2"}, [4, 3]),
        ({"id": "p"}, []),
        ({"since": 2.0, "until": 4.0}, [6, 5, 4, 3]),
        ({"stratum": "hot"}, [12, 11, 10]),
        ({"stratum": "base"}, [9, 8, 7, 6, 5, 4, 3, 2, 1]),
        ({"stratum": "hot", "last": 10}, [10]),
    ],
)
def test_rows_are_found_by_id_number_time_and_stratum(handle: int, asked: dict[str, float], places: list[int]) -> None:
    from modules.sampling import Stratum

    ring = kept(handle)
    fill(ring)
    policy = SamplingPolicy(strata=(Stratum("hot", 1.0, "between", "x[heat]", at_least=5.5),))
    found = list(ring.find(AskSamples("m", **asked), Strata(policy, NAMES, "y")))  # type: ignore[arg-type]
    assert [place for place, _, _ in found] == places
    for place, at, row in found:
        assert at == (place + 1) // 2
        assert row.inputs["x"].tolist() == [[at + (place % 2 == 0) * 0.5, 1.0]]
        assert row.inputs["word"].tolist() == [[b"a"]]  # a tensor without rows of its own belongs to each


def test_a_policy_that_keeps_nothing_any_more_blanks_what_was_kept(handle: int) -> None:
    ring = kept(handle)
    fill(ring)
    assert open_ring(ring, handle, SamplingPolicy(ring_rows=3), frozenset()) is ring
    assert open_ring(ring, handle, SamplingPolicy(), frozenset()) is None
    assert not any(os.pread(handle, SIZE, START))


def test_the_file_is_as_large_as_the_policy_says_and_goes_with_its_slot(tmp_path: Path) -> None:
    rings, slots = Rings(tmp_path / "rings"), tmp_path / "slots"
    (slots / "aaa").mkdir(parents=True)
    file = rings.open("aaa", SamplingPolicy(ring_rows=10, ring_bytes=8192))
    assert file is not None
    assert os.fstat(file.handle).st_size == 8192
    os.pwrite(file.handle, b"kept", 0)
    second = rings.open("aaa", SamplingPolicy(ring_rows=10, ring_bytes=8192))  # while the first worker drains
    assert second is not None
    assert os.pread(second.handle, 4, 0) == bytes(4)
    second.close()
    file.close()
    file = rings.open("aaa", SamplingPolicy(ring_rows=10, ring_bytes=8192))
    assert file is not None
    assert os.pread(file.handle, 4, 0) == b"kept"
    file.close()
    file = rings.open("aaa", SamplingPolicy())
    assert file is not None
    assert os.fstat(file.handle).st_size == 0
    file.grow(SamplingPolicy(ring_rows=1, ring_bytes=4096))
    assert os.fstat(file.handle).st_size == 4096
    file.grow(SamplingPolicy())  # a worker has mapped it
    assert os.fstat(file.handle).st_size == 4096
    file.close()
    rings.prune(slots)
    assert len(list((tmp_path / "rings").iterdir())) == 1
    (slots / "aaa").rmdir()
    rings.prune(slots)
    assert list((tmp_path / "rings").iterdir()) == []
