"""A folder for an offline installation: what is signed for it, how long it holds, and that what is written is whole."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from tuf.api.exceptions import BadVersionNumberError, ExpiredMetadataError

from cloud_hub.config import HubPaths
from cloud_hub.errors import Conflict, HubError, NotFound
from cloud_hub.offline import Offline, OfflineRequest, OfflineSet
from cloud_hub.operator.errors import FileError, VerificationFailed
from cloud_hub.operator.offline import Export, Exported
from cloud_hub.roles import Role
from cloud_hub.trust.keys import Keys
from modules.offline import NOTE_FILE, read_note
from support.clock import SetClock
from support.devices import PROFILE
from support.fleets import NOBODY, OURS, THEIRS, open_world, settle_two_fleets
from support.trust import OPERATOR, TrustWorld, find, refresh, trust_world

DAY = 86_400.0
PATH = f"modules/dev/digits/1/{PROFILE}.json"
LONG = OfflineRequest(("cam-1",), 30.0)
WEEK = OfflineRequest(("cam-1",))


@pytest.fixture
def now() -> SetClock:
    return SetClock(time.time())


@pytest.fixture
async def world(hub_paths: HubPaths, now: SetClock) -> AsyncIterator[TrustWorld]:
    async with trust_world(hub_paths, now) as world:
        await world.enrol("cam-1")
        await world.enrol("cam-2")
        await world.add_signed("digits", content=b"weights" * 50_000)
        await world.assign("cam-1", "digits")
        yield world


@pytest.fixture
def offline(world: TrustWorld, now: SetClock) -> Offline:
    return Offline(world.store, world.blobs, world.events, Keys(world.paths.keys), now)


def signed(files: dict[str, str], name: str) -> dict[str, Any]:
    part: dict[str, Any] = json.loads(files[name])["signed"]
    return part


def reader(found: OfflineSet, device: str = "cam-1") -> Callable[[str], Awaitable[bytes]]:
    async def read(filename: str) -> bytes:
        files = found.director_roots | found.director[device]
        if filename not in files:
            raise NotFound("metadata-not-found", filename)
        return files[filename].encode()

    return read


def online(world: TrustWorld, device: str = "cam-1") -> Callable[[str], Awaitable[bytes]]:
    async def read(filename: str) -> bytes:
        return await world.director.metadata(device, filename)

    return read


class Writer:
    """Exports to a folder, with the hub's rooms behind it; `fail_after` bytes the connection breaks once."""

    def __init__(self, world: TrustWorld, offline: Offline, folder: Path) -> None:
        self.world, self.offline, self.folder = world, offline, folder
        self.fail_after: int | None = None
        self.asked: list[tuple[str, int, int]] = []

    async def run(self, request: OfflineRequest = WEEK) -> Exported:
        export = Export(self.folder, self._sign, self._append, lambda total: lambda more: None)
        roots = {"image": (await self.world.image.root_json()).encode()}
        return await export.run(request, roots)

    async def _sign(self, request: OfflineRequest) -> OfflineSet:
        return await self.offline.sign(request, OPERATOR)

    async def _append(self, sha256: str, file: BinaryIO, span: tuple[int, int], count: Callable[[int], None]) -> None:
        start, end = span
        self.asked.append((sha256, start, end))
        data = await self.world.blobs.read(sha256, start, end - start)
        if self.fail_after is not None and len(data) > self.fail_after:
            file.write(data[: self.fail_after])
            self.fail_after = None
            raise OSError(5, "the connection broke")
        file.write(data)


@pytest.fixture
def writer(world: TrustWorld, offline: Offline, tmp_path: Path) -> Writer:
    return Writer(world, offline, tmp_path / "stick")


async def test_a_stock_client_installs_from_it_after_the_hubs_own_signatures_have_ended(
    world: TrustWorld, offline: Offline, now: SetClock, tmp_path: Path
) -> None:
    now.advance(-10 * DAY)  # the client's clock is the machine's
    found = await offline.sign(LONG, OPERATOR)
    stale = {name: (await world.director.metadata("cam-1", name)) for name in ("timestamp.json",)}
    updater = await refresh(reader(found), tmp_path / "client", await world.director.root_json())
    assert await find(updater, PATH) is not None

    async def old(filename: str) -> bytes:
        return stale.get(filename) or await world.director.root_file(filename)

    with pytest.raises(ExpiredMetadataError):
        await refresh(old, tmp_path / "other", await world.director.root_json())


async def test_a_device_that_took_the_long_one_goes_on_with_the_hub(
    world: TrustWorld, offline: Offline, tmp_path: Path
) -> None:
    root = await world.director.root_json()
    found = await offline.sign(LONG, OPERATOR)
    await refresh(reader(found), tmp_path / "client", root)
    await refresh(online(world), tmp_path / "client", root)
    await world.add_signed("digits", 2)
    await world.assign("cam-1", "digits", 2)
    updater = await refresh(online(world), tmp_path / "client", root)
    assert await find(updater, PATH.replace("/1/", "/2/")) is not None


async def test_the_long_one_never_passes_as_newer_than_what_the_hub_serves(
    world: TrustWorld, offline: Offline, tmp_path: Path
) -> None:
    root = await world.director.root_json()
    found = await offline.sign(LONG, OPERATOR)
    await refresh(online(world), tmp_path / "client", root)
    with pytest.raises(BadVersionNumberError):
        await refresh(reader(found), tmp_path / "client", root)


async def test_who_can_ask_is_not_held_to_the_longer_freeze(world: TrustWorld, offline: Offline, now: SetClock) -> None:
    found = await offline.sign(LONG, OPERATOR)
    for files, served in (
        (found.director["cam-1"], await world.director.metadata("cam-1", "timestamp.json")),
        (found.image, await world.image.metadata("timestamp.json")),
    ):
        long, short = signed(files, "timestamp.json"), json.loads(served)["signed"]
        assert short["version"] == long["version"] + 1
        assert short["expires"] < long["expires"]


async def test_within_the_hubs_own_life_everybody_gets_the_same_signatures(world: TrustWorld, offline: Offline) -> None:
    found = await offline.sign(WEEK, OPERATOR)
    for name, text in found.director["cam-1"].items():
        assert (await world.director.metadata("cam-1", name)).decode() == text
    for name, text in found.image.items():
        assert (await world.image.metadata(name)).decode() == text


async def test_versions_only_grow_over_many_exports(world: TrustWorld, offline: Offline, now: SetClock) -> None:
    stamps: list[tuple[int, int]] = []
    for request in (WEEK, LONG, WEEK, LONG, LONG):
        found = await offline.sign(request, OPERATOR)
        stamps.append(
            (
                signed(found.director["cam-1"], "timestamp.json")["version"],
                signed(found.image, "timestamp.json")["version"],
            )
        )
        now.advance(10.0)
    assert stamps == sorted(set(stamps))
    assert [image for _, image in stamps] == sorted({image for _, image in stamps})


async def test_every_export_stands_in_the_trail_under_its_device(world: TrustWorld, offline: Offline) -> None:
    await offline.sign(OfflineRequest(("cam-1", "cam-2"), 30.0), "ann")
    found = await world.events.list(kind="device.exported")
    assert {(event.actor, event.subject, event.details["valid_days"]) for event in found} == {
        ("ann", "cam-1", 30.0),
        ("ann", "cam-2", 30.0),
    }


async def test_nothing_is_signed_for_a_device_that_is_not_there_or_retired(world: TrustWorld, offline: Offline) -> None:
    before = await world.director.metadata("cam-1", "timestamp.json")
    with pytest.raises(NotFound, match="ghost"):
        await offline.sign(OfflineRequest(("cam-1", "ghost"), 30.0), OPERATOR)
    await world.devices.retire("cam-2", OPERATOR)
    with pytest.raises(Conflict, match="retired"):
        await offline.sign(OfflineRequest(("cam-1", "cam-2"), 30.0), OPERATOR)
    assert await world.director.metadata("cam-1", "timestamp.json") == before


async def test_a_list_that_ends_before_the_export_would_is_refused(offline: Offline, now: SetClock) -> None:
    now.advance(300 * DAY)
    with pytest.raises(HubError, match=r"ends at .*; ask for fewer days") as caught:
        await offline.sign(OfflineRequest(("cam-1",), 90.0), OPERATOR)
    assert caught.value.key == "offline-expires"


async def test_a_folder_is_written_whole_and_says_so(writer: Writer, world: TrustWorld) -> None:
    found = await writer.run(OfflineRequest(("cam-1", "cam-2")))
    note = read_note((writer.folder / NOTE_FILE).read_bytes())
    assert (note.devices, note.complete, note.files) == (("cam-1", "cam-2"), True, 2)
    assert (found.modules, found.files) == (1, 2)
    assert sorted(path.name for path in (writer.folder / "director").iterdir()) == ["cam-1", "cam-2"]


async def test_an_interrupted_export_goes_on_in_the_middle_of_a_file(writer: Writer) -> None:
    writer.fail_after = 100_000
    with pytest.raises(FileError, match="connection broke; what is there stays, run the same command again"):
        await writer.run()
    assert not read_note((writer.folder / NOTE_FILE).read_bytes()).complete
    await writer.run()
    assert (100_000, 350_000) in [(start, end) for _, start, end in writer.asked]
    assert read_note((writer.folder / NOTE_FILE).read_bytes()).complete


async def test_an_export_again_fetches_only_what_is_new_and_takes_the_rest_away(
    writer: Writer, world: TrustWorld
) -> None:
    await writer.run(OfflineRequest(("cam-1", "cam-2")))
    assert (await writer.run()).fetched_bytes == 0
    assert [path.name for path in (writer.folder / "director").iterdir()] == ["cam-1"]
    await world.add_signed("digits", 2, b"other")
    await world.assign("cam-1", "digits", 2)
    assert (await writer.run()).fetched_bytes > 0
    sizes = sorted(path.stat().st_size for path in (writer.folder / "blobs").iterdir())
    assert (len(sizes), sizes[0]) == (2, 5)


async def test_a_file_that_went_bad_on_the_stick_is_fetched_again(writer: Writer) -> None:
    await writer.run()
    largest = max((writer.folder / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"x" * largest.stat().st_size)
    assert (await writer.run()).fetched_bytes == 350_000


async def test_somebody_elses_folder_is_left_alone(writer: Writer) -> None:
    writer.folder.mkdir()
    (writer.folder / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(FileError, match="expected an empty folder or an earlier export"):
        await writer.run()
    assert [path.name for path in writer.folder.iterdir()] == ["holiday.jpg"]


async def test_a_root_that_is_not_the_pinned_one_is_found_before_the_stick_leaves(
    writer: Writer, tmp_path: Path
) -> None:
    async with trust_world(HubPaths(tmp_path), SetClock(time.time())) as other:
        export = Export(writer.folder, writer._sign, writer._append, lambda total: lambda more: None)
        with pytest.raises(VerificationFailed):
            await export.run(WEEK, {"image": (await other.image.root_json()).encode()})
    assert not read_note((writer.folder / NOTE_FILE).read_bytes()).complete


async def test_operators_export_their_own_devices_for_a_week_and_only_admins_for_longer(tmp_path: Path) -> None:
    async with open_world(tmp_path) as fleets:
        await settle_two_fleets(fleets)
        operator, admin = await fleets.token(Role.OPERATOR, "site=lab"), await fleets.token(Role.ADMIN, "")

        async def status(token: str, device: str, days: float) -> tuple[int, str]:
            answer = await fleets.ask(token, "POST", "/offline", {"devices": [device], "valid_days": days})
            return answer.status, json.loads(answer.text).get("error", {}).get("key", "")

        assert await status(operator, OURS, 8) == (403, "role-missing")
        assert await status(operator, THEIRS, 7) == await status(operator, NOBODY, 7) == (404, "device-not-found")
        assert (await status(await fleets.token(Role.PUBLISHER, ""), OURS, 7))[0] == 403
        for days in (0.0, -1.0, 91.0):
            assert (await status(admin, OURS, days))[0] in (400, 422)
        assert not await fleets.rooms.events.list(kind="device.exported")
