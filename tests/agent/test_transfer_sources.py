"""Blocks come from the best source that works, and from the next when it does not; several downloads take turns."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from agent.config import FetchLimits, LinkLimits
from agent.errors import FetchError, LinkDown, LinkError, LinkTimeout, Refused
from agent.link import Link
from agent.transfer.fetch import Fetcher
from agent.transfer.partial import Partial, Plan, Written
from agent.transfer.pull import Pull
from agent.transfer.schedule import Gate
from agent.transfer.source import Source
from agent.transfer.traffic import Traffic
from modules.bundle import FileEntry
from support.repository import make_entry
from support.sources import Shelf
from support.waiting import until

LIMITS = FetchLimits(window_bytes=100_000, chunk_timeout_s=2.0, stall_s=30.0, disk_margin_bytes=0)
CHUNK = 50_000
DATA = random.Random(3).randbytes(20 * CHUNK)
ENTRY = make_entry("model.onnx", DATA, CHUNK)
FILES = {ENTRY.sha256: DATA}

Make = Callable[..., Fetcher]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Fetcher] = []
    # Never connected: these downloads do not go over MQTT.
    link = Link("cam-17", "localhost", 1, lambda: pytest.fail("no connection is wanted"), LinkLimits())

    def fetcher(*sources: Source, limits: FetchLimits = LIMITS, gate: Gate | None = None) -> Fetcher:
        staging = tmp_path / "staging"
        made.append(Fetcher(link, staging, limits, lambda digest: None, sources=sources, gate=gate))
        return made[-1]

    yield fetcher
    for one in made:
        one.close()


def spoil(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


async def test_the_first_source_gives_all_while_it_can(make: Make) -> None:
    first, second = Shelf("gateway", FILES), Shelf("mqtt", FILES)
    fetcher = make(first, second)
    found = await fetcher.fetch([ENTRY])
    assert found[ENTRY.sha256].read_bytes() == DATA
    assert (first.bytes_asked, second.asked) == (len(DATA), [])
    assert fetcher.traffic.totals() == {"gateway": len(DATA)}


@pytest.mark.parametrize(
    "error",
    [LinkDown("no route"), LinkTimeout("silent"), Refused("none here", "not-found"), Refused("no", "not-allowed"),
     LinkError("nonsense", "bad-answer"), Refused("later", "busy")],
    ids=["down", "silent", "not-found", "not-allowed", "bad-answer", "busy"],
)  # fmt: skip
async def test_a_source_that_fails_is_passed_over(make: Make, error: Exception) -> None:
    async def fail(sha256: str, offset: int, length: int) -> bytes | None:
        raise error

    first, second = Shelf("https", FILES, fail), Shelf("mqtt", FILES)
    found = await make(first, second).fetch([ENTRY])
    assert found[ENTRY.sha256].read_bytes() == DATA
    # What was under way when the failure showed, and now and then a look whether it is better; not more.
    assert len(first.asked) < len(second.asked) + 8


async def test_a_source_that_breaks_in_the_middle_costs_what_was_under_way(make: Make) -> None:
    async def break_later(sha256: str, offset: int, length: int) -> bytes | None:
        if offset >= len(DATA) // 2:
            raise LinkDown("the gateway was switched off")
        return None

    first, second = Shelf("gateway", FILES, break_later), Shelf("mqtt", FILES)
    found = await make(first, second).fetch([ENTRY])
    assert found[ENTRY.sha256].read_bytes() == DATA
    assert second.bytes_asked <= len(DATA) // 2 + 2 * LIMITS.window_bytes
    assert first.bytes_asked >= len(DATA) // 2


async def test_a_source_that_hangs_is_passed_over_when_its_time_is_up(make: Make) -> None:
    async def hang(sha256: str, offset: int, length: int) -> bytes | None:
        await asyncio.sleep(0.2)  # its time limit, as any source must keep
        raise LinkTimeout("nothing came")

    first, second = Shelf("https", FILES, hang), Shelf("mqtt", FILES)
    await make(first, second).fetch([ENTRY])
    assert first.bytes_asked <= LIMITS.window_bytes


@pytest.mark.parametrize("lie", [spoil, lambda data: data[:-1], lambda data: data + b"x", lambda data: b""],
                         ids=["one-bit", "short", "long", "empty"])  # fmt: skip
async def test_wrong_bytes_from_one_source_are_made_good_by_another(make: Make, lie: Callable[[bytes], bytes]) -> None:
    async def lying(sha256: str, offset: int, length: int) -> bytes | None:
        return lie(DATA[offset : offset + length])

    liar, honest = Shelf("gateway", FILES, lying), Shelf("mqtt", FILES)
    fetcher = make(liar, honest)
    found = await fetcher.fetch([ENTRY])
    assert found[ENTRY.sha256].read_bytes() == DATA
    assert fetcher.traffic.totals()["mqtt"] >= len(DATA)
    assert liar.bytes_asked <= len(DATA) // 2  # what was under way and unwritten when the first lie showed


async def test_a_chunk_made_of_pieces_is_blamed_on_who_spoilt_it(make: Make) -> None:
    """The first source gives wrong pieces of the first chunk and then breaks; the second one must not pay for it."""

    async def lie_then_break(sha256: str, offset: int, length: int) -> bytes | None:
        if offset >= 16_384:
            raise LinkDown("gone")
        return spoil(DATA[offset : offset + length])

    limits = msgspec.structs.replace(LIMITS, block_bytes=16_384)
    liar, honest = Shelf("gateway", FILES, lie_then_break), Shelf("mqtt", FILES)
    found = await make(liar, honest, limits=limits).fetch([ENTRY])
    assert found[ENTRY.sha256].read_bytes() == DATA


async def test_when_every_source_lies_the_fetch_ends_with_the_chunk(make: Make) -> None:
    async def lying(sha256: str, offset: int, length: int) -> bytes | None:
        return spoil(DATA[offset : offset + length])

    sources = [Shelf(name, FILES, lying) for name in ("gateway", "mqtt")]
    with pytest.raises(FetchError, match=r"model.onnx, chunk \d+: .* 4 times") as caught:
        await make(*sources).fetch([ENTRY])
    assert caught.value.key == "chunk-mismatch"


async def test_when_every_source_refuses_the_last_reason_is_told(make: Make) -> None:
    async def refuse(sha256: str, offset: int, length: int) -> bytes | None:
        raise Refused("belongs to no module of yours", "not-allowed")

    with pytest.raises(FetchError, match="belongs to no module of yours") as caught:
        await make(Shelf("https", FILES, refuse), Shelf("mqtt", FILES, refuse)).fetch([ENTRY])
    assert caught.value.key == "refused"


async def test_sources_that_stay_away_are_offline_not_stalled(make: Make) -> None:
    async def down(sha256: str, offset: int, length: int) -> bytes | None:
        raise LinkDown("no route")

    limits = msgspec.structs.replace(LIMITS, offline_s=0.5, stall_s=0.01)
    with pytest.raises(FetchError, match=r"no connection for 0\.5 s") as caught:
        await make(Shelf("https", FILES, down), limits=limits).fetch([ENTRY])
    assert caught.value.key == "offline"


async def test_pieces_smaller_than_a_chunk_are_fetched_once_after_an_interruption(make: Make) -> None:
    limits = msgspec.structs.replace(LIMITS, window_bytes=32_768, block_bytes=16_384)
    stop = asyncio.Event()

    async def stop_in_a_chunk(sha256: str, offset: int, length: int) -> bytes | None:
        if offset > 5 * CHUNK + 16_384:
            stop.set()
            await asyncio.Event().wait()
        return None

    first = Shelf("mqtt", FILES, stop_in_a_chunk)
    fetching = asyncio.create_task(make(first, limits=limits).fetch([ENTRY]))
    await stop.wait()
    await until(lambda: first.under_way >= 32_768, "the window to be full")
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    second = Shelf("mqtt", FILES)
    await make(second, limits=limits).fetch([ENTRY])
    assert first.bytes_asked + second.bytes_asked - len(DATA) <= 32_768 + 16_384


# Several at once


def entries(count: int) -> tuple[list[FileEntry], dict[str, bytes]]:
    data = [random.Random(number).randbytes(10 * CHUNK) for number in range(count)]
    made = [make_entry(f"model-{number}.onnx", one, CHUNK) for number, one in enumerate(data)]
    return made, {entry.sha256: one for entry, one in zip(made, data, strict=True)}


async def at_once(work: Callable[[], Written]) -> Written:
    return work()


async def test_downloads_at_the_same_time_take_turns(tmp_path: Path) -> None:
    made, files = entries(2)
    shelf = Shelf("mqtt", files)
    pull = Pull([shelf], LIMITS, at_once, Gate(), Traffic())
    partials = [Partial(tmp_path, Plan.of(entry)) for entry in made]
    await asyncio.gather(*(pull.run([partial], lambda count: None) for partial in partials))
    assert [partial.missing() for partial in partials] == [[], []]
    order = [sha256 for sha256, _, _ in shelf.asked]
    both = order[order.index(made[1].sha256) :]
    both = both[: len(both) - both[::-1].index(made[0].sha256)]  # while there was something left of each
    assert len(both) >= 10
    assert sum(first != second for first, second in pairwise(both)) >= len(both) * 3 // 4
    assert shelf.most_under_way <= LIMITS.window_bytes + LIMITS.window_bytes // 2  # one window for both
    for partial in partials:
        partial.discard()


async def test_the_same_file_wanted_twice_at_once_comes_once(make: Make) -> None:
    shelf = Shelf("mqtt", FILES)
    fetcher = make(shelf)
    first, second = await asyncio.gather(fetcher.fetch([ENTRY]), fetcher.fetch([ENTRY]))
    assert first == second
    assert shelf.bytes_asked == len(DATA)


async def test_a_download_that_is_cancelled_gives_its_share_of_the_window_back(make: Make) -> None:
    made, files = entries(2)
    held = asyncio.Event()

    async def hold_the_first(sha256: str, offset: int, length: int) -> bytes | None:
        if sha256 == made[0].sha256:
            held.set()
            await asyncio.Event().wait()
        return None

    fetcher = make(Shelf("mqtt", files, hold_the_first))
    first = asyncio.create_task(fetcher.fetch([made[0]]))
    await held.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    found = await fetcher.fetch([made[1]])
    assert found[made[1].sha256].read_bytes() == files[made[1].sha256]


async def test_a_chunk_that_is_wanted_in_many_places_comes_once_or_nearly(make: Make) -> None:
    data = DATA[:CHUNK] * 40
    entry = make_entry("zeros.bin", data, CHUNK)
    shelf = Shelf("mqtt", {entry.sha256: data})
    fetcher = make(shelf)
    found = await fetcher.fetch([entry])
    assert found[entry.sha256].read_bytes() == data
    assert shelf.bytes_asked <= LIMITS.window_bytes * 4
    assert fetcher.traffic.totals()["reused"] >= 30 * CHUNK


# Hours and deadlines


async def test_outside_the_allowed_hours_a_download_waits_and_says_until_when(make: Make) -> None:
    now, opened = datetime(2026, 11, 21, 12, 0, tzinfo=UTC), asyncio.Event()

    async def pause(seconds: float) -> None:
        await opened.wait()

    gate = Gate(["22:00-06:00"], now=lambda: now, pause=pause)
    shelf = Shelf("mqtt", FILES)
    limits = msgspec.structs.replace(LIMITS, deadline_s=30.0)
    fetcher = make(shelf, limits=limits, gate=gate)
    fetching = asyncio.create_task(fetcher.fetch([ENTRY]))
    await until(lambda: bool(fetcher.waiting), "the download to wait")
    assert fetcher.waiting == "outside the allowed hours, waiting until 22:00"
    assert shelf.asked == []
    now = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
    opened.set()
    await fetching
    assert fetcher.waiting == ""


async def test_a_download_that_takes_too_long_ends(make: Make) -> None:
    limits = msgspec.structs.replace(LIMITS, deadline_s=0.0)
    with pytest.raises(FetchError, match=r"not here after 0\.0 s") as caught:
        await make(Shelf("mqtt", FILES), limits=limits).fetch([ENTRY])
    assert caught.value.key == "deadline"
