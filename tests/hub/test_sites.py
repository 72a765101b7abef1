"""Two hubs without a line to each other: what devices of one saw counts at the other, once, and only under a seal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select

from cloud_hub.blobs import FolderBlobs
from cloud_hub.errors import Conflict, HubError, NotFound, Unprocessable
from cloud_hub.events import Events
from cloud_hub.sites.book import marks
from cloud_hub.sites.form import MAGIC, Carried, Head, framed
from cloud_hub.sites.merging import Merged, Merging
from cloud_hub.sites.packing import Packing
from cloud_hub.sites.receipts import Receipt, Receipts
from cloud_hub.sites.registry import NewSite, SiteRegistry
from cloud_hub.sites.seal import Seal
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import samples, windows
from modules.messages import Batch
from support.clock import SetClock
from support.monitoring import LOOK_S, Built, Monitored, build_module, make_sample, make_window

RANDOM = np.random.default_rng(7)


class Hub:
    """One hub with one module; `monitored` takes what its devices send."""

    def __init__(self, folder: Path, store: Store, clock: SetClock) -> None:
        self.store, self.clock = store, clock
        self.blobs, self.events = FolderBlobs(folder / "blobs"), Events(store, clock)
        self.monitored = Monitored(store, self.blobs, self.events, clock)
        self.seal = Seal(folder / "site.key")
        self.registry = SiteRegistry(store, self.events, clock)
        self.packing = Packing(store, self.events, self.seal, clock)
        self.receipts = Receipts(store, self.events)

    def merging(self) -> Merging:
        return Merging(self.store, self.blobs, self.events, self.monitored.ingest, self.seal, self.clock)

    async def pack(self) -> bytes:
        return b"".join([piece async for piece in self.packing.pack("ann")])

    async def merge(self, pack: bytes, site: str = "lyon") -> Merged:
        return await self.merging().merge(site, await self.blobs.put(pack), "bob")

    async def count(self) -> tuple[int, int]:
        """Windows and samples."""
        async with self.store.read() as connection:
            found = [await connection.execute(select(func.count()).select_from(one)) for one in (windows, samples)]
            return found[0].scalar_one(), found[1].scalar_one()


@pytest.fixture
async def hubs(tmp_path: Path, migrated_database: bytes, clock: SetClock) -> AsyncIterator[tuple[Hub, Hub, Built]]:
    """A site, the centre that knows it as lyon, and the module that both have."""
    found: list[Hub] = []
    for name in ("site", "centre"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "hub.sqlite3").write_bytes(migrated_database)
        store = await Store.open(f"sqlite+aiosqlite:///{folder}/hub.sqlite3", migrate=False)
        found.append(Hub(folder, store, clock))
    site, centre = found
    rows = RANDOM.normal(size=(300, 2))
    built = await build_module(site.store, site.blobs, rows)
    await build_module(centre.store, centre.blobs, rows)
    await centre.registry.add(NewSite("lyon", site.seal.public_key), "bob")
    await site.registry.add(NewSite("centre", centre.seal.public_key), "ann")
    yield site, centre, built
    for hub in found:
        await hub.store.close()


async def see(site: Hub, built: Built, device: str, looks: int) -> None:
    """The device sends windows and samples."""
    for _ in range(looks):
        site.clock.advance(LOOK_S)
        await site.monitored.send(device, make_window(built, RANDOM.normal(size=(50, 2)), site.clock()))
        now = site.clock()
        await site.monitored.send(device, make_sample(built, f"{device}-{now}", now, RANDOM.normal(size=2)))


async def test_what_a_site_saw_counts_once_however_often_and_in_which_order_packs_come(
    hubs: tuple[Hub, Hub, Built],
) -> None:
    site, centre, built = hubs
    await see(site, built, "cam-1", 3)
    first = await site.pack()
    await see(site, built, "cam-1", 2)
    await see(site, built, "cam-2", 1)
    second = await site.pack()
    for pack in (second, first):
        await centre.merge(pack)
    done = await centre.merge(second)
    assert await centre.count() == await site.count() == (6, 6)
    assert (done.entries, done.held) == (12, 0)
    async with centre.store.read() as connection:
        devices = set((await connection.execute(select(windows.c.device))).scalars())
    assert devices == {"lyon.cam-1", "lyon.cam-2"}


async def test_a_receipt_moves_the_next_pack_behind_what_has_been_merged(hubs: tuple[Hub, Hub, Built]) -> None:
    site, centre, built = hubs
    await see(site, built, "cam-1", 3)
    done = await centre.merge(await site.pack())
    await site.receipts.take(done.receipt, await site.packing.epoch(), "ann")
    async with site.store.read() as connection:
        assert set(await marks(connection)) == {"window", "sample"}
    await see(site, built, "cam-1", 1)
    assert (await centre.merge(await site.pack())).entries == 2
    assert await centre.count() == (4, 4)


async def test_only_a_hub_that_was_added_can_write_a_receipt(hubs: tuple[Hub, Hub, Built], tmp_path: Path) -> None:
    site, centre, built = hubs
    await see(site, built, "cam-1", 1)
    done = await centre.merge(await site.pack())
    epoch = await site.packing.epoch()
    forged = Receipt(epoch, {"window": 10**6}).sealed(Seal(tmp_path / "mallory.key"))
    foreign = Receipt("0" * 32, {"window": 1}).sealed(centre.seal)
    for text, key in ((forged, "seal-invalid"), (foreign, "receipt-invalid"), ("what?", "receipt-invalid")):
        with pytest.raises(Unprocessable) as refused:
            await site.receipts.take(text, epoch, "ann")
        assert refused.value.key == key
    async with site.store.read() as connection:
        assert await marks(connection) == {}
    await site.receipts.take(done.receipt, epoch, "ann")


async def test_a_pack_that_was_changed_cut_or_sealed_by_another_adds_nothing(
    hubs: tuple[Hub, Hub, Built], tmp_path: Path
) -> None:
    site, centre, built = hubs
    await see(site, built, "cam-1", 2)
    pack = await site.pack()
    batch = Batch("window", "e", 0, ((1, b"x"),))
    unsealed = MAGIC + framed(Head("e", 0.0)) + framed(Carried("cam-1", batch))
    for bad in (pack[:-1], pack[: len(pack) // 2], pack + b"\x00\x00\x00\x01a", b"PK\x03\x04", b"", unsealed,
                pack[:200] + bytes([pack[200] ^ 1]) + pack[201:], MAGIC + b"\xff\xff\xff\xff"):  # fmt: skip
        with pytest.raises(Unprocessable) as refused:
            await centre.merge(bad)
        assert refused.value.key in ("pack-invalid", "seal-invalid")
    await centre.registry.add(NewSite("other", Seal(tmp_path / "other.key").public_key), "bob")
    with pytest.raises(Unprocessable, match="not sealed by the site"):
        await centre.merge(pack, "other")
    with pytest.raises(NotFound, match="no site paris"):
        await centre.merge(pack, "paris")
    assert await centre.count() == (0, 0)


async def test_what_the_centre_died_over_is_merged_the_next_time(
    hubs: tuple[Hub, Hub, Built], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, centre, built = hubs
    for device in ("cam-1", "cam-2", "cam-3"):
        await see(site, built, device, 2)
    pack = await site.pack()
    merging, commit, left = centre.merging(), centre.monitored.ingest.commit, 2

    class PowerCut(Exception):
        pass

    async def cut_off(device: str, batch: Batch) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise PowerCut
        return await commit(device, batch)

    monkeypatch.setattr(centre.monitored.ingest, "commit", cut_off)
    with pytest.raises(PowerCut):
        await merging.merge("lyon", await centre.blobs.put(pack), "bob")
    monkeypatch.undo()
    await centre.merge(pack)
    assert await centre.count() == (6, 6)


async def test_what_belongs_to_a_module_that_is_not_there_waits_until_it_is_or_is_left_out(
    hubs: tuple[Hub, Hub, Built],
) -> None:
    site, centre, built = hubs
    other = await build_module(site.store, site.blobs, RANDOM.normal(size=(300, 3)), 2)
    await see(site, built, "cam-1", 1)
    site.clock.advance(LOOK_S)
    await site.monitored.send("cam-1", make_window(other, RANDOM.normal(size=(50, 3)), site.clock()))
    await see(site, built, "cam-1", 1)
    pack = await site.pack()
    done = await centre.merge(pack)
    assert (done.entries, done.held) == (5, 2)
    assert done.unknown == (f"digits ({other.manifest_sha256[:12]})",)
    assert await centre.count() == (1, 2)
    skipped = await centre.merging().merge("lyon", await centre.blobs.put(pack), "bob", skip_unknown=True)
    assert (skipped.held, skipped.unknown) == (0, ())
    assert await centre.count() == (2, 2)


@pytest.mark.parametrize(
    ("new", "error"),
    [
        (NewSite("Lyon", ""), "site-invalid"), (NewSite("a.b", ""), "site-invalid"), (NewSite("", ""), "site-invalid"),
        (NewSite("x" * 21, ""), "site-invalid"), (NewSite("fine", "no key"), "site-key-invalid"),
    ],
)  # fmt: skip
async def test_a_site_that_makes_no_sense_is_refused(hubs: tuple[Hub, Hub, Built], new: NewSite, error: str) -> None:
    _, centre, _ = hubs
    with pytest.raises(HubError) as refused:
        await centre.registry.add(new, "bob")
    assert refused.value.key == error


async def test_a_name_is_given_once_until_the_site_is_removed(hubs: tuple[Hub, Hub, Built]) -> None:
    site, centre, _ = hubs
    with pytest.raises(Conflict, match="there is a site lyon already"):
        await centre.registry.add(NewSite("lyon", site.seal.public_key), "bob")
    await centre.registry.remove("lyon", "bob")
    assert await centre.registry.list() == []
    with pytest.raises(NotFound):
        await centre.registry.devices("lyon", 10, "")
