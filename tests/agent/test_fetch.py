"""Files come over a real broker in verified chunks, whatever is killed, cut, filled or falsified on the way."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from agent.config import FetchLimits, StatePaths
from agent.errors import FetchError
from agent.link import Link
from agent.transfer.fetch import Fetcher
from agent.transfer.partial import Partial, Plan
from modules.bundle import FileEntry
from modules.messages import Answer, Get, Refusal
from support.hub import FakeHub, Reply
from support.links import make_link, running
from support.mosquitto import Mosquitto
from support.repository import make_entry
from support.waiting import until

WINDOW = 40_000
LIMITS = FetchLimits(window_bytes=WINDOW, chunk_timeout_s=2.0, stall_s=20.0, disk_margin_bytes=0)
# A block is at most half a window, and the last one may go beyond it.
IN_FLIGHT = WINDOW + WINDOW // 2
CHUNK = 10_000
COUNT = 24
DATA = random.Random(7).randbytes(CHUNK * COUNT - 123)
ENTRY = make_entry("model.onnx", DATA, CHUNK)


def nothing(digest: str) -> Path | None:
    return None


@pytest.fixture
async def hub(broker: Mosquitto) -> AsyncIterator[FakeHub]:
    async with FakeHub(broker, {("blob", ENTRY.sha256): DATA}) as hub:
        yield hub


@pytest.fixture
async def link(broker: Mosquitto, hub: FakeHub) -> AsyncIterator[Link]:
    async with running(make_link(broker)) as link:
        yield link


@pytest.fixture
def staging(state_dir: StatePaths) -> Path:
    return state_dir.staging


@pytest.fixture
def fetcher(link: Link, staging: Path) -> Iterator[Fetcher]:
    fetcher = Fetcher(link, staging, LIMITS, nothing)
    yield fetcher
    fetcher.close()


def asked_bytes(hub: FakeHub) -> int:
    return sum(get.length for get in hub.asked)


def asked_twice(hub: FakeHub) -> int:
    """Bytes beyond one of each."""
    return asked_bytes(hub) - len(DATA)


def partial_files(staging: Path) -> list[str]:
    return [path.suffix for path in staging.iterdir() if path.suffix]


async def test_a_file_arrives_whole_and_is_asked_for_once(fetcher: Fetcher, hub: FakeHub, staging: Path) -> None:
    told: list[tuple[int, int]] = []
    found = await fetcher.fetch([ENTRY], lambda done, total: told.append((done, total)))
    assert found == {ENTRY.sha256: staging / ENTRY.sha256}
    assert found[ENTRY.sha256].read_bytes() == DATA
    assert asked_twice(hub) == 0
    assert told[0] == (0, len(DATA))
    assert told[-1] == (len(DATA), len(DATA))
    assert partial_files(staging) == []


async def test_files_of_all_sizes_arrive_and_the_same_one_only_once(
    fetcher: Fetcher, hub: FakeHub, staging: Path
) -> None:
    contents = {"empty": b"", "one": b"1", "exact": DATA[: 2 * CHUNK], "again": b"1"}
    entries = [make_entry(path, data, CHUNK) for path, data in contents.items()]
    hub.files.update({("blob", entry.sha256): contents[entry.path] for entry in entries})
    found = await fetcher.fetch(entries)
    assert {entry.path: found[entry.sha256].read_bytes() for entry in entries} == contents
    assert len(hub.asked) == 3


async def test_a_second_fetch_asks_for_nothing(fetcher: Fetcher, hub: FakeHub) -> None:
    first = await fetcher.fetch([ENTRY])
    hub.asked.clear()
    assert await fetcher.fetch([ENTRY]) == first
    assert hub.asked == []


async def test_a_file_that_a_slot_has_is_used(link: Link, staging: Path, tmp_path: Path, hub: FakeHub) -> None:
    held = tmp_path / "held"
    held.write_bytes(DATA)
    fetcher = Fetcher(link, staging, LIMITS, lambda digest: held if digest == ENTRY.sha256 else None)
    assert await fetcher.fetch([ENTRY]) == {ENTRY.sha256: held}
    assert hub.asked == []
    fetcher.close()


async def test_a_damaged_file_of_a_slot_is_not_used(link: Link, staging: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.write_bytes(b"X" + DATA[1:])
    fetcher = Fetcher(link, staging, LIMITS, lambda digest: held)
    assert await fetcher.fetch([ENTRY]) == {ENTRY.sha256: staging / ENTRY.sha256}
    fetcher.close()


# Interruptions


PROGRAM = """
import asyncio, ssl, sys
from pathlib import Path
import msgspec
from agent.config import FetchLimits, LinkLimits
from agent.transfer.fetch import Fetcher
from agent.link import Link
from modules.bundle import FileEntry

async def main(port, ca, certificate, key, staging, entry):
    context = ssl.create_default_context(cafile=ca)
    context.load_cert_chain(certificate, key)
    link = Link("cam-17", "localhost", int(port), lambda: context, LinkLimits())
    task = asyncio.create_task(link.run())
    fetcher = Fetcher(link, Path(staging), FetchLimits(window_bytes=40_000, disk_margin_bytes=0), lambda digest: None)
    await fetcher.fetch([msgspec.json.decode(entry, type=FileEntry)])
    task.cancel()
    fetcher.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("at", [1, 2, 9, 17, COUNT])
async def test_a_fetch_killed_at_a_chunk_resumes_and_loses_at_most_the_window(
    broker: Mosquitto, hub: FakeHub, staging: Path, at: int
) -> None:
    certificate, key = broker.client("cam-17").write(broker.folder / "clients", "cam-17")
    arguments = [str(broker.port), str(broker.folder / "server-ca.crt"), str(certificate), str(key), str(staging)]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments, msgspec.json.encode(ENTRY).decode()])

    process = start()

    def kill_at(get: Get) -> Reply:
        if len(hub.asked) == at:
            process.kill()
        return hub.from_files(get)

    hub.answer = kill_at
    await until(lambda: process.poll() is not None, "the first run to be killed")
    assert process.wait() < 0
    assert not (staging / ENTRY.sha256).exists()
    hub.answer = hub.from_files
    second = start()
    await until(lambda: second.poll() is not None, "the second run")
    assert second.wait() == 0
    assert (staging / ENTRY.sha256).read_bytes() == DATA
    assert asked_twice(hub) <= IN_FLIGHT


async def test_the_broker_killed_and_restarted_during_a_fetch(
    fetcher: Fetcher, hub: FakeHub, broker: Mosquitto, staging: Path
) -> None:
    fetching = asyncio.create_task(fetcher.fetch([ENTRY]))
    await until(lambda: len(hub.asked) >= 5, "the first chunks")
    await broker.kill()
    await broker.start()
    found = await fetching
    assert found[ENTRY.sha256].read_bytes() == DATA
    assert asked_twice(hub) <= IN_FLIGHT


async def test_the_hub_silent_and_back_during_a_fetch(link: Link, staging: Path, hub: FakeHub) -> None:
    fetcher = Fetcher(link, staging, msgspec.structs.replace(LIMITS, chunk_timeout_s=0.3), nothing)
    hub.answer = lambda get: None if 5 <= len(hub.asked) < 15 else hub.from_files(get)
    found = await fetcher.fetch([ENTRY])
    assert found[ENTRY.sha256].read_bytes() == DATA
    fetcher.close()


async def test_a_busy_hub_is_asked_again(fetcher: Fetcher, hub: FakeHub) -> None:
    hub.answer = lambda get: Refusal("busy", "later") if len(hub.asked) % 3 == 0 else hub.from_files(get)
    found = await fetcher.fetch([ENTRY])
    assert found[ENTRY.sha256].read_bytes() == DATA


async def test_a_cancelled_fetch_keeps_what_has_arrived(fetcher: Fetcher, hub: FakeHub, staging: Path) -> None:
    fetching = asyncio.create_task(fetcher.fetch([ENTRY]))
    await until(lambda: len(hub.asked) >= 10, "the first chunks")
    fetching.cancel()
    with suppress(asyncio.CancelledError):
        await fetching
    await fetcher.fetch([ENTRY])
    assert asked_twice(hub) <= IN_FLIGHT


async def test_a_map_that_claims_what_is_not_there_is_not_believed(fetcher: Fetcher, staging: Path) -> None:
    partial = Partial(staging, Plan.of(ENTRY))
    partial.write(0, DATA, 1)
    partial.close()
    (staging / f"{ENTRY.sha256}.part").write_bytes(bytes(len(DATA)))
    found = await fetcher.fetch([ENTRY])
    assert found[ENTRY.sha256].read_bytes() == DATA


async def test_a_map_of_other_chunks_is_not_believed(fetcher: Fetcher, staging: Path, hub: FakeHub) -> None:
    partial = Partial(staging, Plan.of(make_entry("model.onnx", DATA, 2 * CHUNK)))
    partial.write(0, DATA[: 2 * CHUNK], 1)
    partial.close()
    await fetcher.fetch([ENTRY])
    assert asked_bytes(hub) == len(DATA)


async def test_a_connection_that_never_comes_is_offline(broker: Mosquitto, staging: Path) -> None:
    fetcher = Fetcher(make_link(broker), staging, msgspec.structs.replace(LIMITS, offline_s=0.1), nothing)
    with pytest.raises(FetchError, match=r"no connection for 0.1 s; what has arrived is kept") as caught:
        await fetcher.fetch([ENTRY])
    assert caught.value.key == "offline"
    fetcher.close()


async def test_a_hub_that_never_answers_is_a_stall(link: Link, staging: Path, hub: FakeHub) -> None:
    fetcher = Fetcher(link, staging, msgspec.structs.replace(LIMITS, stall_s=0.3, chunk_timeout_s=0.2), nothing)
    hub.answer = lambda get: None
    with pytest.raises(FetchError, match="nothing arrived for") as caught:
        await fetcher.fetch([ENTRY])
    assert caught.value.key == "stalled"
    fetcher.close()


# Wrong bytes


def tampered(get: Get) -> Answer:
    data = DATA[get.offset : get.offset + get.length]
    return Answer(len(DATA), get.offset, bytes([data[0] ^ 1]) + data[1:])


async def test_a_chunk_tampered_with_once_is_asked_for_again(fetcher: Fetcher, hub: FakeHub) -> None:
    spoilt: set[int] = set()

    def once(get: Get) -> Reply:
        first = get.offset not in spoilt
        spoilt.add(get.offset)
        return tampered(get) if first else hub.from_files(get)

    hub.answer = once
    found = await fetcher.fetch([ENTRY])
    assert found[ENTRY.sha256].read_bytes() == DATA
    assert asked_twice(hub) == len(spoilt) * CHUNK - (CHUNK - ENTRY.chunks[-1].size)


@pytest.mark.parametrize(
    "lie",
    [
        tampered,
        lambda get: Answer(len(DATA), get.offset, DATA[get.offset : get.offset + get.length - 1]),
        lambda get: Answer(len(DATA), get.offset, DATA[get.offset : get.offset + get.length] + b"more"),
        lambda get: Answer(len(DATA), get.offset + 1, DATA[get.offset : get.offset + get.length]),
        lambda get: Answer(len(DATA), get.offset, b""),
    ],
    ids=["one-bit", "short", "long", "other-place", "empty"],
)
async def test_a_chunk_that_stays_wrong_ends_the_fetch_and_nothing_of_it_is_kept(
    fetcher: Fetcher, hub: FakeHub, staging: Path, lie: Callable[[Get], Reply]
) -> None:
    hub.answer = lambda get: lie(get) if get.offset == 5 * CHUNK else hub.from_files(get)
    with pytest.raises(FetchError, match=r"model.onnx, chunk 5: expected 10000 bytes with sha256 .* 2 times") as caught:
        await fetcher.fetch([ENTRY])
    assert caught.value.key == "chunk-mismatch"
    assert not (staging / ENTRY.sha256).exists()


async def test_chunks_that_do_not_make_the_signed_file(fetcher: Fetcher, hub: FakeHub, staging: Path) -> None:
    other = replace_digest(ENTRY, "0" * 64)
    hub.files["blob", "0" * 64] = DATA
    with pytest.raises(FetchError, match="expected a file with sha256 0000") as caught:
        await fetcher.fetch([other])
    assert caught.value.key == "file-mismatch"
    assert list(staging.iterdir()) == []


async def test_a_file_that_the_hub_does_not_have(fetcher: Fetcher, hub: FakeHub) -> None:
    hub.files.clear()
    with pytest.raises(FetchError, match="no blob file") as caught:
        await fetcher.fetch([ENTRY])
    assert caught.value.key == "not-found"


def replace_digest(entry: FileEntry, sha256: str) -> FileEntry:
    return msgspec.structs.replace(entry, sha256=sha256)


# The disk


async def test_no_room_is_said_before_anything_is_asked_for(link: Link, staging: Path, hub: FakeHub) -> None:
    fetcher = Fetcher(link, staging, msgspec.structs.replace(LIMITS, disk_margin_bytes=2**60), nothing)
    with pytest.raises(FetchError, match=f"expected {len(DATA)} bytes and {2**60} to spare, got") as caught:
        await fetcher.fetch([ENTRY])
    assert caught.value.key == "disk-full"
    assert hub.asked == []
    assert list(staging.iterdir()) == []
    fetcher.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs more rights than this user has")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_a_disk_that_fills_up_meanwhile_fails_cleanly_and_gets_its_space_back(
    link: Link, small_disk: Path, hub: FakeHub
) -> None:
    fetcher = Fetcher(link, small_disk / "staging", LIMITS, nothing)

    def fill(get: Get) -> Reply:
        if len(hub.asked) == 5:
            with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        return hub.from_files(get)

    hub.answer = fill
    with pytest.raises(FetchError, match="No space left on device; the partial files were removed") as caught:
        await fetcher.fetch([ENTRY])
    assert caught.value.key == "disk-full"
    assert list((small_disk / "staging").iterdir()) == []
    (small_disk / "filler").unlink()
    hub.answer = hub.from_files
    found = await fetcher.fetch([ENTRY])
    assert found[ENTRY.sha256].read_bytes() == DATA
    fetcher.close()


async def test_a_folder_that_cannot_be_used_is_said_so(link: Link, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    fetcher = Fetcher(link, tmp_path / "file" / "staging", LIMITS, nothing)
    with pytest.raises(FetchError, match="Not a directory") as caught:
        await fetcher.fetch([ENTRY])
    assert caught.value.key == "io"
    fetcher.close()


async def test_a_link_in_the_place_of_a_partial_file_is_not_followed(
    fetcher: Fetcher, staging: Path, tmp_path: Path
) -> None:
    os.symlink(tmp_path / "elsewhere", staging / f"{ENTRY.sha256}.part")
    with pytest.raises(FetchError) as caught:
        await fetcher.fetch([ENTRY])
    assert caught.value.key == "io"
    assert not (tmp_path / "elsewhere").exists()


async def test_clearing_keeps_what_is_named(fetcher: Fetcher, staging: Path) -> None:
    for name in ("a" * 64, f"{'a' * 64}.part", f"{'b' * 64}.part", f"{'b' * 64}.map"):
        (staging / name).write_bytes(b"x")
    fetcher.clear({"a" * 64})
    assert sorted(path.name for path in staging.iterdir()) == ["a" * 64, f"{'a' * 64}.part"]
