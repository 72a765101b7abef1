"""Devices are asked for logs, restarts and diagnostics, one or many at once; what they bring is kept and can be had."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import event, insert, update

from cloud_hub.asking.book import MAX_PENDING, AskedCommand
from cloud_hub.asking.commands import CommandBatch, Commands
from cloud_hub.asking.pieces import SampleBlobs
from cloud_hub.asking.results import brought
from cloud_hub.asking.wanted import MAX_BATCH, MAX_BROUGHT_BYTES, NewCommand
from cloud_hub.blobs import FolderBlobs
from cloud_hub.errors import Conflict, HubError, NotFound, Unprocessable
from cloud_hub.events import Events
from cloud_hub.roles import Role, Scope
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import assignments, devices
from modules.commands import MAX_INLINE_BYTES, AskLogs, AskRestart, Command, CommandResult, decode_body
from modules.messages import AgentEvent, Batch, encode
from modules.packed import pack
from modules.pieces import cut
from support.clock import SetClock
from support.fleets import OURS, THEIRS, World, open_world, settle_two_fleets
from support.monitoring import Monitored
from support.reporting import PROFILE, device_row

DAY_S = 86_400.0


class Bench:
    """Three devices in two sites, of which one runs an old agent; what the hub says to them is written down."""

    def __init__(self, store: Store, clock: SetClock, monitored: Monitored, folder: Path) -> None:
        self.store, self.clock, self.events = store, clock, monitored.events
        self.said: list[tuple[str, Command]] = []
        self.monitored = monitored
        self.commands = self.begun()
        self.blobs = SampleBlobs(store, FolderBlobs(folder), monitored.events, monitored.clock, DAY_S)

    def begun(self) -> Commands:
        """Another process on the same database."""
        return Commands(self.store, self.monitored.blobs, self.events, self.clock, self._send)

    async def furnish(self) -> None:
        async with self.store.write() as connection:
            for name, site, agent in (("cam-1", "lab", "0.2.0"), ("cam-2", "lab", "0.1.0"), ("cam-3", "yard", "")):
                row = device_row(name, PROFILE, site) | {"agent_version": agent}
                await connection.execute(insert(devices).values(**row))
            held = {"module": "digits", "role": "main", "version": 1, "profile": PROFILE, "mode": "serve"}
            held |= {"config": {}, "deployment": "r", "assigned_at": 0.0, "share": 1.0, "salt": ""}
            await connection.execute(insert(assignments).values(device="cam-3", **held))

    async def ask(self, scope: str = "", **fields: Any) -> CommandBatch:
        new = msgspec.convert({"kind": "logs", **fields}, NewCommand)
        return await self.commands.ask(new, "ann", Scope.parse(scope))

    async def one(self, **fields: Any) -> AskedCommand:
        (made,) = (await self.ask(**{"device": "cam-1", **fields})).commands
        return made

    async def answers(self, device: str, result: CommandResult, brings: bytes = b"", inline: bool = True) -> bytes:
        """As a device does; what it has packed."""
        packed = pack(brings) if brings else b""
        if packed:
            digest = hashlib.sha256(packed).hexdigest()
            result = msgspec.structs.replace(result, sha256=digest, size=len(packed), data=packed if inline else b"")
            if not inline:
                await self.monitored.send(device, *cut(digest, packed), stream="blob")
        await self.event(device, result)
        return packed

    async def event(self, device: str, result: CommandResult) -> None:
        body = encode(AgentEvent(self.clock(), "info", "command", "words", command=result))
        await self.monitored.send(device, body, stream="event")

    async def result(self, id_: str) -> bytes:
        await self.blobs.assemble()
        return await brought(await self.commands.get(id_), self.blobs)

    async def _send(self, device: str, command: Command) -> None:
        self.said.append((device, command))


@pytest.fixture
async def bench(store: Store, blobs: FolderBlobs, clock: SetClock, events: Events, tmp_path: Path) -> Bench:
    bench = Bench(store, clock, Monitored(store, blobs, events, clock), tmp_path / "tensors")
    await bench.furnish()
    return bench


async def test_one_device_is_asked_and_gets_what_was_asked_for(bench: Bench) -> None:
    made = await bench.one(module="digits", last_s=3600, level="warning", lines=50)
    ((device, command),) = bench.said
    assert (device, command.id, command.kind, command.expires_at) == ("cam-1", made.id, "logs", bench.clock() + 3600)
    assert decode_body(command.body, AskLogs) == AskLogs("digits", 3600.0, level="warning", limit=50)
    assert (made.state, made.batch) == ("pending", "")
    (recorded,) = await bench.events.list(kind="command.created")
    assert (recorded.subject, recorded.details["command"], recorded.details["module"]) == ("cam-1", "logs", "digits")
    await bench.one(kind="restart", module="digits")
    assert decode_body(bench.said[-1][1].body, AskRestart) == AskRestart("digits")


async def test_many_are_asked_at_once_one_command_each_under_one_name(bench: Bench) -> None:
    made = await bench.ask(target="site in (lab, yard)")
    assert [one.device for one in made.commands] == ["cam-1", "cam-3"]
    assert made.outdated == ("cam-2",)
    assert {one.batch for one in made.commands} == {made.batch}
    listed = await bench.commands.listed("", "", "", 10, batch=made.batch)
    assert {one.id for one in listed} == {one.id for one in made.commands}
    assert [one.device for one in (await bench.ask(target="all", module="digits")).commands] == ["cam-3"]
    assert [one.device for one in (await bench.ask("site=yard", target="all")).commands] == ["cam-3"]


@pytest.mark.parametrize(
    ("fields", "kind", "key"),
    [
        ({"device": "cam-9"}, NotFound, "device-not-found"),
        ({"device": "cam-2"}, Conflict, "agent-outdated"),
        ({"target": "id=cam-2"}, Conflict, "agent-outdated"),
        ({"target": "site=moon"}, Unprocessable, "no-device-matches"),
        ({"target": "site=lab", "module": "digits"}, Unprocessable, "no-device-matches"),
        ({"target": "group = nobody"}, HubError, "group-unknown"),
    ],
)
async def test_what_reaches_nobody_is_refused_and_nothing_is_asked(
    bench: Bench, fields: dict[str, str], kind: type[HubError], key: str
) -> None:
    with pytest.raises(kind) as refused:
        await bench.ask(**fields)
    assert refused.value.key == key
    assert bench.said == []
    assert await bench.commands.listed("", "", "", 10) == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"device": "cam-1", "target": "all"},
        {"device": "cam-1", "lines": 0},
        {"device": "cam-1", "max_bytes": 10**9},
        {"device": "cam-1", "last_s": -1},
        {"device": "cam-1", "expires_s": 0.5},
        {"device": "cam-1", "level": "loud"},
        {"device": "cam-1", "kind": "reboot"},
        {"device": "cam-1", "kind": "diagnostics", "module": "digits"},
    ],
)
def test_what_makes_no_sense_cannot_be_said(fields: dict[str, Any]) -> None:
    with pytest.raises((msgspec.ValidationError, ValueError)):
        msgspec.convert({"kind": "logs", **fields}, NewCommand)


async def test_more_devices_than_one_question_may_have_are_refused_by_their_number(bench: Bench) -> None:
    async with bench.store.write() as connection:
        rows = [device_row(f"dev-{number:04d}", PROFILE, "field") for number in range(MAX_BATCH + 1)]
        await connection.execute(insert(devices), rows)
    with pytest.raises(Unprocessable, match="at most 1000 devices"):
        await bench.ask(target="site=field")
    made = await bench.ask(target="site=field and id != dev-0000")
    assert len(made.commands) == MAX_BATCH
    assert len(await bench.events.list(kind="command.created", limit=1000)) == MAX_BATCH


async def test_a_device_for_which_too_much_waits_refuses_the_whole_question(bench: Bench) -> None:
    for _ in range(MAX_PENDING):
        await bench.one()
    with pytest.raises(Conflict, match="100 commands wait for it"):
        await bench.ask(target="all")
    assert [one.device for one in await bench.commands.listed("cam-3", "", "", 10)] == []


@pytest.mark.parametrize("inline", [True, False])
async def test_what_a_device_brings_is_kept_by_its_digest_and_had_unpacked(bench: Bench, inline: bool) -> None:
    some = random.Random(7)
    text = some.randbytes(MAX_INLINE_BYTES - 64 if inline else 300_000)  # which packing makes no smaller
    made = await bench.one()
    packed = await bench.answers("cam-1", CommandResult(made.id, "done", count=5, found=9), text, inline)
    found = await bench.commands.get(made.id)
    assert (found.state, found.count, found.found) == ("done", 5, 9)
    assert (found.result_sha256, found.result_size) == (hashlib.sha256(packed).hexdigest(), len(packed))
    assert await bench.result(made.id) == text
    bench.clock.advance(2 * DAY_S)
    await bench.blobs.sweep()
    with pytest.raises(NotFound, match="blob"):
        await bench.result(made.id)


async def test_only_the_first_word_counts_and_only_of_the_device_that_was_asked(bench: Bench) -> None:
    made = await bench.one()
    await bench.answers("cam-3", CommandResult(made.id, "done"), b"of another")
    assert (await bench.commands.get(made.id)).state == "pending"
    await bench.answers("cam-1", CommandResult(made.id, "done"), b"the first")
    await bench.answers("cam-1", CommandResult(made.id, "failed", "interrupted"), b"the second")
    assert ((await bench.commands.get(made.id)).state, await bench.result(made.id)) == ("done", b"the first")


async def test_bytes_that_are_not_what_they_say_bring_nothing_and_hold_up_nothing(bench: Bench) -> None:
    digest = hashlib.sha256(b"x").hexdigest()
    bomb = pack(bytes(MAX_BROUGHT_BYTES + 10_000))
    wrong = [
        (CommandResult("", "done", sha256=digest, size=3, data=b"abc"), "blob-not-found"),
        (CommandResult("", "done", sha256="../../etc/passwd", size=3, data=b"abc"), "command-without-result"),
        (CommandResult("", "done", sha256=digest, size=10**12, data=b"abc"), "command-without-result"),
        (CommandResult("", "done", sha256=digest, size=-1), "command-without-result"),
        (CommandResult("", "done", sha256=hashlib.sha256(b"no gzip").hexdigest(), size=7, data=b"no gzip"),
         "result-invalid"),
        (CommandResult("", "done", sha256=hashlib.sha256(bomb).hexdigest(), size=len(bomb), data=bomb),
         "result-invalid"),
    ]  # fmt: skip
    for result, key in wrong:
        made = await bench.one()
        await bench.event("cam-1", msgspec.structs.replace(result, id=made.id))
        with pytest.raises(HubError) as refused:
            await bench.result(made.id)
        assert refused.value.key == key
    made = await bench.one()
    await bench.answers("cam-1", CommandResult(made.id, "done"), b"sound")
    assert await bench.result(made.id) == b"sound"


async def test_what_is_cancelled_is_not_sent_again_and_a_device_that_did_it_has_the_last_word(bench: Bench) -> None:
    made = await bench.one()
    cancelled = await bench.commands.cancel(made.id, "ann")
    assert (cancelled.state, cancelled.key) == ("cancelled", "cancelled")
    bench.said.clear()
    bench.clock.advance(60.0)
    await bench.commands.tick()
    await bench.commands.heard_many(["cam-1"])
    assert bench.said == []
    with pytest.raises(Conflict, match="has ended"):
        await bench.commands.cancel(made.id, "ann")
    await bench.answers("cam-1", CommandResult(made.id, "done"), b"lines")
    assert ((await bench.commands.get(made.id)).state, await bench.result(made.id)) == ("done", b"lines")
    assert [one.kind for one in await bench.events.list(subject="cam-1")][-1:] == ["command.created"]
    with pytest.raises(NotFound, match="no command c-0"):
        await bench.commands.cancel("c-0", "ann")


async def test_a_report_costs_nothing_where_nothing_waits_and_brings_what_does_also_after_a_restart(
    bench: Bench,
) -> None:
    statements: list[str] = []
    engine = bench.store._readers.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *said: statements.append(said[2]))
    await bench.commands.heard_many([f"cam-{number}" for number in range(1, 4)])
    assert statements == []
    made = await bench.one()
    bench.said.clear()
    again = bench.begun()
    await again.tick()  # which learns for whom something waits
    bench.clock.advance(5.0)
    await again.heard_many(["cam-1", "cam-3"])
    assert [(device, command.id) for device, command in bench.said] == [("cam-1", made.id)]
    await bench.answers("cam-1", CommandResult(made.id, "done"))
    await again.heard_many(["cam-1"])  # which learns that nothing waits any more
    statements.clear()
    await again.heard_many(["cam-1"])
    assert (len(bench.said), statements) == (1, [])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        await settle_two_fleets(world)
        async with world.rooms.store.write() as connection:
            await connection.execute(update(devices).values(agent_version="0.2.0"))
        yield world


async def test_commands_are_asked_and_their_results_had_within_the_scope_only(world: World) -> None:
    token = await world.token(Role.OPERATOR, "site=lab")
    other = await world.ask(token, "POST", "/commands", {"kind": "logs", "device": THEIRS})
    assert (other.status, other.key) == (404, "device-not-found")
    both = await world.ask(world.admin, "POST", "/commands", {"kind": "logs", "target": "all", "module": "digits"})
    assert (both.status, sorted(one["device"] for one in both.json["commands"])) == (201, sorted([OURS, THEIRS]))
    ids = {one["device"]: one["id"] for one in both.json["commands"]}
    mine = await world.ask(token, "POST", "/commands", {"kind": "diagnostics", "target": "all"})
    assert [one["device"] for one in mine.json["commands"]] == [OURS]
    for device, id_ in ids.items():
        packed = pack(f"2026-01-01T00:00:00Z of {device}\n".encode())
        digest = hashlib.sha256(packed).hexdigest()
        result = CommandResult(id_, "done", count=1, found=1, sha256=digest, size=len(packed), data=packed)
        body = encode(AgentEvent(0.0, "info", "command", "done", command=result))
        await world.rooms.ingest.commit(device, Batch("event", "life", 0, ((1, body),)))
    await world.rooms.asking.blobs.assemble()
    had = await world.ask(token, "GET", f"/commands/{ids[OURS]}/result")
    assert (had.status, had.text) == (200, f"2026-01-01T00:00:00Z of {OURS}\n")
    assert (await world.ask(token, "GET", f"/commands/{ids[THEIRS]}/result")).status == 404
    assert (await world.ask(token, "POST", f"/commands/{ids[THEIRS]}/cancel")).status == 404
    viewer = await world.token(Role.VIEWER)
    assert (await world.ask(viewer, "GET", f"/commands/{ids[OURS]}")).status == 200
    assert (await world.ask(viewer, "GET", f"/commands/{ids[OURS]}/result")).status == 403
    assert (await world.ask(viewer, "POST", "/commands", {"kind": "logs", "device": OURS})).status == 403
    assert len((await world.ask(world.admin, "GET", f"/commands?batch={both.json['batch']}")).json) == 2
    assert [one["kind"] for one in (await world.ask(token, "GET", "/commands?kind=diagnostics")).json] == [
        "diagnostics"
    ]
    wrong = await world.ask(token, "POST", "/commands", {"kind": "reboot", "device": OURS})
    assert wrong.status == 400


async def test_configurations_are_seen_and_changed_by_whoever_sees_the_whole_fleet(world: World) -> None:
    path = "/configurations/digits"
    change = {"layer": {"set": {"threshold": 0.5}}, "draft": True, "comment": "try"}
    some = await world.token(Role.OPERATOR, "site=lab")
    assert (await world.ask(some, "POST", path, change)).key == "scope-exceeded"
    assert (await world.ask(some, "GET", path)).key == "scope-exceeded"
    viewer = await world.token(Role.VIEWER)
    assert (await world.ask(viewer, "POST", path, change)).status == 403
    made = await world.ask(world.admin, "POST", path, change)
    assert (made.status, made.json["revision"], made.json["devices"]) == (200, 1, 2)
    assert made.json["differences"] == [{"layer": "fleet", "path": "$.threshold", "after": 0.5}]
    shown = (await world.ask(viewer, "GET", path)).json
    assert (shown["stands"], shown["newest"]["revision"], shown["newest"]["comment"]) == (None, 1, "try")
    assert [one["revision"] for one in (await world.ask(viewer, "GET", f"{path}/revisions")).json] == [1]
    assert (await world.ask(viewer, "GET", f"{path}/revisions/1")).json["document"]["fleet"] == {"threshold": 0.5}
    assert (await world.ask(viewer, "GET", f"{path}/revisions/2")).key == "configuration-not-found"
    differences = (await world.ask(viewer, "GET", f"{path}/differences?before=0&after=1")).json
    assert [one["path"] for one in differences] == ["$.threshold"]
    of_device = await world.ask(some, "GET", f"/devices/{OURS}/configurations/digits")
    assert (of_device.status, of_device.json["assigned"]) == (200, {})
    assert (await world.ask(some, "GET", f"/devices/{THEIRS}/configurations/digits")).status == 404
    assert (await world.ask(world.admin, "POST", path, {"layer": {"set": {}}, "revision": 1})).status == 400
    assert (await world.ask(world.admin, "GET", "/configurations/nothing")).key == "module-not-found"
