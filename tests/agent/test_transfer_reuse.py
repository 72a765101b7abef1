"""What is on the device already is not fetched, and a patch comes where it is cheaper; nothing is trusted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from agent.config import FetchLimits, LinkLimits
from agent.errors import AgentError, FetchError
from agent.link import Link
from agent.transfer.fetch import Fetcher
from agent.transfer.patched import Rebuild
from modules.bundle import FileEntry, sha256_hex
from modules.messages import PatchOffer, Way
from support.repository import make_entry
from support.sources import Shelf

CHUNK = 50_000
OLD = random.Random(1).randbytes(20 * CHUNK)
# The last four chunks are new; one in the middle moved.
NEW = OLD[5 * CHUNK : 6 * CHUNK] + OLD[: 15 * CHUNK] + random.Random(2).randbytes(4 * CHUNK)
OLD_ENTRY, NEW_ENTRY = make_entry("old.onnx", OLD, CHUNK), make_entry("model.onnx", NEW, CHUNK)
OTHER = random.Random(4).randbytes(20 * CHUNK)
OTHER_ENTRY = make_entry("model.onnx", OTHER, CHUNK)
PATCH = b"patch:" + random.Random(5).randbytes(100_000)
LIMITS = FetchLimits(window_bytes=100_000, chunk_timeout_s=2.0, stall_s=30.0, disk_margin_bytes=0)

Make = Callable[..., Fetcher]


class Offers:
    """The hub's offers: one patch to the other file, from the old one."""

    def __init__(self, size: int = len(PATCH)) -> None:
        self.asked: list[tuple[list[str], list[str]]] = []
        self._size = size

    async def ways(self, files: Sequence[FileEntry], held: Sequence[str]) -> Mapping[str, Way]:
        self.asked.append(([entry.sha256 for entry in files], list(held)))
        offer = PatchOffer(OLD_ENTRY.sha256, sha256_hex(PATCH), self._size)
        return {OTHER_ENTRY.sha256: Way(OTHER_ENTRY.sha256, patches=(offer,))}


def rebuilding(made: bytes = OTHER, error: AgentError | None = None) -> Rebuild:
    """A decoder that knows one patch."""

    async def rebuild(base: Path, patch: Path, out: Path, size: int, deadline_s: float) -> None:
        assert (base.read_bytes(), patch.read_bytes(), size) == (OLD, PATCH, len(OTHER))
        assert deadline_s > 60
        if error is not None:
            raise error
        out.write_bytes(made)

    return rebuild


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    (tmp_path / "old.onnx").write_bytes(OLD)
    made: list[Fetcher] = []
    link = Link("cam-17", "localhost", 1, lambda: pytest.fail("no connection is wanted"), LinkLimits())

    def fetcher(shelf: Shelf, limits: FetchLimits = LIMITS, **more: object) -> Fetcher:
        library = [(tmp_path / "old.onnx", OLD_ENTRY)]
        made.append(
            Fetcher(link, tmp_path / "staging", limits, lambda digest: None, library=lambda: library, sources=[shelf],
                    **more)  # type: ignore[arg-type]
        )  # fmt: skip
        return made[-1]

    yield fetcher
    for one in made:
        one.close()


async def test_chunks_of_other_files_are_copied_and_only_the_new_ones_come(make: Make) -> None:
    shelf = Shelf("mqtt", {NEW_ENTRY.sha256: NEW})
    fetcher = make(shelf)
    told: list[tuple[int, int]] = []
    found = await fetcher.fetch([NEW_ENTRY], lambda done, total: told.append((done, total)))
    assert found[NEW_ENTRY.sha256].read_bytes() == NEW
    assert shelf.bytes_asked == 4 * CHUNK
    assert fetcher.traffic.totals() == {"mqtt": 4 * CHUNK, "reused": len(NEW) - 4 * CHUNK}
    assert told[-1] == (len(NEW), len(NEW))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


async def test_a_damaged_copy_is_found_out_and_its_chunk_fetched(make: Make, tmp_path: Path) -> None:
    (tmp_path / "old.onnx").write_bytes(OLD[:100] + b"X" + OLD[101:])
    shelf = Shelf("mqtt", {NEW_ENTRY.sha256: NEW})
    found = await make(shelf).fetch([NEW_ENTRY])
    assert found[NEW_ENTRY.sha256].read_bytes() == NEW
    assert shelf.bytes_asked == 5 * CHUNK


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(OLD[:CHUNK])],
                         ids=["gone", "short"])  # fmt: skip
async def test_a_file_that_is_not_what_its_manifest_says_is_no_harm(
    make: Make, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(tmp_path / "old.onnx")
    found = await make(Shelf("mqtt", {NEW_ENTRY.sha256: NEW})).fetch([NEW_ENTRY])
    assert found[NEW_ENTRY.sha256].read_bytes() == NEW


async def test_reuse_can_be_switched_off(make: Make) -> None:
    shelf = Shelf("mqtt", {NEW_ENTRY.sha256: NEW})
    await make(shelf, FetchLimits(reuse=False, disk_margin_bytes=0)).fetch([NEW_ENTRY])
    assert shelf.bytes_asked == len(NEW)


# Patches


async def test_a_patch_comes_in_the_place_of_the_file(make: Make, tmp_path: Path) -> None:
    shelf, offers = Shelf("mqtt", {sha256_hex(PATCH): PATCH}), Offers()
    fetcher = make(shelf, offering=offers, rebuild=rebuilding())
    told: list[tuple[int, int]] = []
    found = await fetcher.fetch([OTHER_ENTRY], lambda done, total: told.append((done, total)))
    assert found[OTHER_ENTRY.sha256].read_bytes() == OTHER
    assert offers.asked == [([OTHER_ENTRY.sha256], [OLD_ENTRY.sha256])]
    assert fetcher.traffic.totals() == {"mqtt": len(PATCH), "patched": len(OTHER) - len(PATCH)}
    assert told[-1] == (len(OTHER), len(OTHER))
    assert [path.name for path in (tmp_path / "staging").iterdir()] == [OTHER_ENTRY.sha256]


@pytest.mark.parametrize(
    ("rebuild", "files"),
    [
        (rebuilding(error=AgentError("the decoder was killed", "patch")), {sha256_hex(PATCH): PATCH}),
        (rebuilding(made=OTHER[:-1]), {sha256_hex(PATCH): PATCH}),
        (rebuilding(made=OTHER[:-1] + b"\0"), {sha256_hex(PATCH): PATCH}),
        (rebuilding(), {sha256_hex(PATCH): bytes(len(PATCH))}),
        (rebuilding(), {sha256_hex(PATCH): PATCH[:-1]}),
    ],
    ids=["decoder-failed", "shorter", "other-bytes", "wrong-patch", "short-patch"],
)
async def test_whatever_is_wrong_with_a_patch_the_file_comes_in_blocks_and_the_patch_not_again(
    make: Make, rebuild: Rebuild, files: dict[str, bytes], tmp_path: Path
) -> None:
    shelf = Shelf("mqtt", {**files, OTHER_ENTRY.sha256: OTHER})
    fetcher = make(shelf, offering=Offers(), rebuild=rebuild)
    found = await fetcher.fetch([OTHER_ENTRY])
    assert found[OTHER_ENTRY.sha256].read_bytes() == OTHER
    found[OTHER_ENTRY.sha256].unlink()
    before = len([name for name, _, _ in shelf.asked if name == sha256_hex(PATCH)])
    await fetcher.fetch([OTHER_ENTRY])
    assert len([name for name, _, _ in shelf.asked if name == sha256_hex(PATCH)]) == before
    assert not list((tmp_path / "staging").glob("*.made"))


async def test_a_patch_that_is_hardly_smaller_is_not_fetched(make: Make) -> None:
    shelf = Shelf("mqtt", {OTHER_ENTRY.sha256: OTHER})
    found = await make(shelf, offering=Offers(9 * len(OTHER) // 10), rebuild=rebuilding()).fetch([OTHER_ENTRY])
    assert found[OTHER_ENTRY.sha256].read_bytes() == OTHER


async def test_a_patch_that_was_interrupted_goes_on_where_it_was(make: Make) -> None:
    stop = asyncio.Event()

    async def stop_late(sha256: str, offset: int, length: int) -> bytes | None:
        if offset >= 60_000:
            stop.set()
            await asyncio.Event().wait()
        return None

    first = Shelf("mqtt", {sha256_hex(PATCH): PATCH}, stop_late)
    limits = FetchLimits(window_bytes=32_768, block_bytes=16_384, disk_margin_bytes=0)
    fetching = asyncio.create_task(make(first, limits, offering=Offers(), rebuild=rebuilding()).fetch([OTHER_ENTRY]))
    await stop.wait()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    second = Shelf("mqtt", {sha256_hex(PATCH): PATCH})
    fetcher = make(second, limits, offering=Offers(), rebuild=rebuilding())
    fetcher.clear({OTHER_ENTRY.sha256})  # as the update's next attempt does
    await fetcher.fetch([OTHER_ENTRY])
    assert second.bytes_asked <= len(PATCH) - 60_000 + 32_768 + 16_384


async def test_a_hub_that_offers_nothing_is_no_hindrance(make: Make) -> None:
    class Silent(Offers):
        async def ways(self, files: Sequence[FileEntry], held: Sequence[str]) -> Mapping[str, Way]:
            raise FetchError("no answer", "stalled")

    found = await make(Shelf("mqtt", {OTHER_ENTRY.sha256: OTHER}), offering=Silent(), rebuild=rebuilding()).fetch(
        [OTHER_ENTRY]
    )
    assert found[OTHER_ENTRY.sha256].read_bytes() == OTHER
