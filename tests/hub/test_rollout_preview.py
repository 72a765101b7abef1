"""A dry run: which devices a rollout would reach, how many bytes they would load, how long it would take."""

from __future__ import annotations

from datetime import datetime

import msgspec
import pytest
from sqlalchemy import insert, update

from cloud_hub.blobs import FolderBlobs
from cloud_hub.configuration import book
from cloud_hub.configuration.document import Document
from cloud_hub.desired import Assignment
from cloud_hub.errors import BadRequest, Conflict, HubError, NotFound, Unprocessable
from cloud_hub.events import Events
from cloud_hub.roles import Role, Scope
from cloud_hub.rollouts.approval import Approval
from cloud_hub.rollouts.maintenance import MaintenanceWindow
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.preview import SHOWN, Preview, Previews
from cloud_hub.rollouts.rate import Rate
from cloud_hub.rollouts.status import MAX_SHOWN
from cloud_hub.rollouts.targeting import Targeting
from cloud_hub.rollouts.transfers import Transfer
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices, executions, rollouts
from cloud_hub.store.tables import modules as module_table
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Health, Lineage, Manifest, encode_manifest
from support.clock import SetClock
from support.reporting import PROFILE, Fleet, device_row

A, B, C = (letter * 1000 for letter in (b"a", b"b", b"c"))


class World:
    """The fleet of the rollouts' tests, whose two versions have manifests."""

    def __init__(self, store: Store, blobs: FolderBlobs, events: Events, clock: SetClock) -> None:
        self.fleet = Fleet(store, events, clock)
        self.previews = Previews(store, blobs, Targeting(clock), clock, patched=True)
        self.store, self.blobs, self.clock = store, blobs, clock

    async def furnish(self) -> None:
        await self.fleet.furnish()
        for version, chunks in ((1, (A, B)), (2, (A, B, C))):
            whole = b"".join(chunks)
            parts = tuple(Chunk(sha256_hex(chunk), len(chunk)) for chunk in chunks)
            file = FileEntry("model.onnx", len(whole), sha256_hex(whole), parts)
            lineage, health = Lineage("digits", version), Health(probation_s=90.0)
            manifest = Manifest("digits", version, PROFILE, lineage, (), (), (file,), health=health)
            digest = await self.blobs.put(encode_manifest(manifest))
            async with self.store.write() as connection:
                change = update(module_table).where(module_table.c.version == version)
                await connection.execute(change.values(manifest_sha256=digest, size=len(whole)))

    async def ask(self, **changes: object) -> Preview:
        return await self.ask_within(Scope(), **changes)

    async def ask_within(self, scope: Scope, **changes: object) -> Preview:
        new = NewRollout("digits", 2, "site=lab", groups=("1", "50%", "rest"))
        return await self.previews.ask(msgspec.structs.replace(new, **changes), scope)

    async def assign(self, version: int, *ids: str) -> None:
        async with self.store.write() as connection:
            for device in ids:
                await self.fleet.desired.assign(connection, device, Assignment("digits", version, PROFILE, "r0"))

    async def tag(self, device: str, **tags: str) -> None:
        async with self.store.write() as connection:
            change = update(devices).where(devices.c.id == device)
            await connection.execute(change.values(tags={"site": "lab", **tags}))

    async def took(self, *seconds: float, module: str = "digits", state: str = "verified") -> None:
        """An earlier rollout whose devices took so long."""
        async with self.store.write() as connection:
            row = {
                "id": f"old-{module}", "module": module, "version": 1, "target": "all", "plan": {}, "state": "finished",
                "reason": "", "group_index": 0, "created_at": 0.0, "started_at": 0.0,
            }  # fmt: skip
            await connection.execute(insert(rollouts).values(row))
            for place, length in enumerate(seconds):
                part = {
                    "rollout": f"old-{module}", "device": f"old-{place}", "group_index": 0, "state": state,
                    "director_version": 1, "reason_key": "", "reason": "", "started_at": 5.0, "finished_at": 5 + length,
                }  # fmt: skip
                await connection.execute(insert(executions).values(part))


@pytest.fixture
async def world(store: Store, blobs: FolderBlobs, events: Events, clock: SetClock) -> World:
    world = World(store, blobs, events, clock)
    await world.furnish()
    return world


async def test_it_names_the_devices_of_each_group_and_those_that_take_no_part_with_the_reason(world: World) -> None:
    found = await world.ask()
    assert [(group.size, group.devices) for group in found.groups] == [
        (1, ("cam-100",)),
        (3, ("cam-200", "cam-300", "cam-400")),
        (1, ("cam-500",)),
    ]
    (left_out,) = found.left_out
    assert (left_out.key, left_out.count, left_out.devices) == ("no-module-for-profile", 1, ("pi-100",))
    assert "is not built for raspberry-pi-5" in left_out.reason
    assert found.devices == 5


async def test_creating_it_takes_exactly_these_devices_and_looking_has_changed_nothing(world: World) -> None:
    before = await world.fleet.events.list()
    found = await world.ask()
    assert await world.fleet.events.list() == before
    assert await world.fleet.rollouts.list() == []
    made = await world.fleet.create(target="site=lab", start=False)
    of_group = [[e.device for e in made.executions if e.group_index == index] for index in range(3)]
    assert of_group == [list(group.devices) for group in found.groups]


async def test_bytes_are_counted_from_what_each_device_has(world: World) -> None:
    await world.assign(1, "cam-100", "cam-200")
    await world.assign(2, "cam-300")
    found = await world.ask()
    assert set(found.transfers) == {
        Transfer(PROFILE, 0, 2, 3000, 3000),
        Transfer(PROFILE, 1, 2, 1000, 3000),
        Transfer(PROFILE, 2, 1, 0, 3000),
    }
    assert [group.bytes for group in found.groups] == [1000, 1000 + 0 + 3000, 3000]
    assert found.bytes == 8000


async def test_times_rest_on_what_earlier_executions_of_the_module_took_and_say_so(world: World) -> None:
    await world.took(*(float(second) for second in range(100, 201)))
    await world.took(9999.0, module="other")
    found = await world.ask()
    assert found.durations.basis == "earlier rollouts of digits"
    assert (found.durations.typical_s, found.durations.most_s, found.durations.executions) == (150, 190, 101)
    now = world.clock()
    assert [group.done_at for group in found.groups] == [now + 190, now + 380, now + 570]
    assert found.ends_at == now + 570


async def test_without_any_the_times_of_other_modules_count_and_else_the_manifests_probation(world: World) -> None:
    assert (await world.ask()).durations.most_s == 90
    assert "nothing measured yet" in (await world.ask()).durations.basis
    await world.took(50.0, module="other")
    found = (await world.ask()).durations
    assert (found.most_s, found.basis) == (50, "earlier rollouts of other modules")


async def test_executions_that_failed_or_had_nothing_to_do_tell_nothing(world: World) -> None:
    await world.took(0.0)
    await world.took(3.0, module="other", state="failed")
    assert (await world.ask()).durations.executions == 0


async def test_windows_count_where_each_device_is_and_a_zone_that_is_none_is_named(world: World) -> None:
    await world.tag("cam-100", timezone="Asia/Tokyo")
    await world.tag("cam-200", timezone="Moon/Base")
    world.clock.now = datetime.fromisoformat("2026-11-21T12:00Z").timestamp()
    window = MaintenanceWindow.parse("02:00-05:00 Europe/Berlin")
    found = await world.ask(windows=(window,), groups=("1", "rest"))
    assert found.groups[0].begins_at == datetime.fromisoformat("2026-11-22T02:00+09:00").timestamp()
    assert found.groups[1].begins_at == datetime.fromisoformat("2026-11-22T02:00+01:00").timestamp()
    assert any("'Moon/Base'" in note for note in found.notes)
    slowly = await world.ask(windows=(window,), groups=("rest",), rate=Rate(1.0))
    assert slowly.groups[0].assigned_at == found.groups[1].begins_at + 4 * 60, "one in Tokyo, four here"


async def test_a_rate_and_a_soak_are_part_of_the_time(world: World) -> None:
    found = await world.ask(rate=Rate(1.0), soak_s=1000.0)
    now = world.clock()
    first, second, _ = found.groups
    assert (first.assigned_at, first.done_at) == (now + 60, now + 150)
    assert second.begins_at == now + 1150


async def test_what_a_person_should_know_is_said(world: World) -> None:
    await world.took(5000.0)
    plan = {"deadline_s": 6000.0, "approval": Approval(Role.PUBLISHER, 2, ("start", "group:2"))}
    found = await world.ask(**plan)
    said = "\n".join(found.notes)
    assert "would not end within its deadline of 6000 s" in said
    assert "1 device of 10 took longer than 5000 s, and here has 3600 s" in said
    assert "approvals and gates" in said
    assert [group.approval != "" for group in found.groups] == [True, True, False]


async def test_devices_that_would_refuse_an_older_release_are_said_with_what_helps(world: World) -> None:
    await world.assign(1, "cam-100", "cam-200")
    assert not any("signed later" in note for note in (await world.ask()).notes)
    async with world.store.write() as connection:  # what a fleet rollback does to the version it goes back to
        await connection.execute(update(module_table).where(module_table.c.version == 1).values(release_counter=9))
    (note,) = (note for note in (await world.ask()).notes if "signed later" in note)
    assert note.startswith("2 devices would refuse it")
    assert "mooring module sign digits:2" in note


@pytest.mark.parametrize(
    ("conflict", "size", "words"),
    [("refuse", 5, "would be refused"), ("skip", 4, "are left out"), ("supersede", 5, "takes them over")],
)
async def test_devices_of_other_rollouts_are_counted_and_the_rule_is_said(
    world: World, conflict: str, size: int, words: str
) -> None:
    await world.fleet.create(target="id=cam-100")
    found = await world.ask(conflict=conflict)
    assert (found.devices, found.elsewhere) == (size, 1)
    assert any("(r1)" in note and words in note for note in found.notes)


async def test_of_a_large_group_the_first_ids_stand_for_the_rest(world: World) -> None:
    async with world.store.write() as connection:
        rows = [device_row(f"more-{number:04}", PROFILE, "lab") for number in range(1200)]
        await connection.execute(insert(devices), rows)
    found = await world.ask(groups=("rest",))
    assert (found.groups[0].size, len(found.groups[0].devices)) == (1205, SHOWN)
    assert found.bytes == 1205 * 3000


async def test_devices_out_of_scope_are_as_if_they_were_not_there(world: World) -> None:
    found = await world.ask_within(Scope.parse("id=cam-1*"))
    assert [group.devices for group in found.groups] == [("cam-100",)]
    assert found.left_out == ()


async def test_a_configuration_alone_loads_nothing(world: World) -> None:
    await world.assign(1, "cam-100")
    async with world.store.write() as connection:
        await book.add(connection, "digits", Document(fleet={"threshold": 0.5}), 0, "", "ann", 0.0)
    found = await world.ask(version=0, config=1)
    assert (found.devices, found.bytes, found.transfers) == (1, 0, ())


@pytest.mark.parametrize(
    ("changes", "kind", "key"),
    [
        ({"target": "site=nowhere"}, Unprocessable, "no-device-matches"),
        ({"target": "site="}, BadRequest, "query-invalid"),
        ({"module": "nothing"}, NotFound, "module-not-found"),
        ({"target": "id=pi-100"}, Conflict, "no-device-eligible"),
        ({"groups": ("few",)}, BadRequest, "plan-invalid"),
        ({"version": 0}, BadRequest, "plan-invalid"),
    ],
)
async def test_what_could_not_be_created_is_refused_in_the_same_words(
    world: World, changes: dict[str, object], kind: type[HubError], key: str
) -> None:
    with pytest.raises(kind) as looked:
        await world.ask(**changes)
    with pytest.raises(kind) as made:
        await world.fleet.create(**{"target": "site=lab"} | changes)
    assert looked.value.key == made.value.key == key
    assert looked.value.message == made.value.message


async def test_of_many_devices_a_status_shows_those_that_need_attention(world: World) -> None:
    async with world.store.write() as connection:
        await connection.execute(insert(devices), [device_row(f"a-{n:04}", PROFILE, "lab") for n in range(400)])
        others = [device_row(f"b-{n:04}", "raspberry-pi-5", "lab") for n in range(400)]
        await connection.execute(insert(devices), others)
    rollout = (await world.fleet.create(target="site=lab", groups=("rest",), error_threshold=100)).rollout.id
    await world.fleet.failed("cam-500", rollout)
    status = await world.fleet.rollouts.get(rollout)
    assert len(status.executions) == MAX_SHOWN
    assert {(str(part.state), part.group_index) for part in status.executions} == {("failed", 0), ("assigned", 0)}
    assert sum(group.size for group in status.groups) == 405
