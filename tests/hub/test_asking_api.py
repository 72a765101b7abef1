"""The routes of what is asked of devices: whoever has a scope asks, sees and changes nothing outside it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sqlalchemy import delete, update

from cloud_hub.monitoring.samples import SampleQuery
from cloud_hub.roles import Role
from cloud_hub.store.tables import executions, rollouts
from modules.messages import Batch, encode
from modules.pieces import Withheld, cut
from support.fleets import OURS, THEIRS, World, open_world, settle_two_fleets
from support.monitoring import make_sample

BLOB = b"a picture" * 100
SHA256 = hashlib.sha256(BLOB).hexdigest()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Both fleets hold digits, with a ring, and no rollout is under way; each has sent a sample with a blob."""
    async with open_world(tmp_path) as world:
        await settle_two_fleets(world)
        assert world.built is not None
        async with world.rooms.store.write() as connection:
            await connection.execute(delete(executions))
            await connection.execute(update(rollouts).values(state="finished"))
        set_all = {"module": "digits", "set": {"ring_rows": 10}}
        assert len((await world.ask(world.admin, "POST", "/sampling", set_all)).json) == 2
        apart = Withheld("picture", "input", "UINT8", (1, len(BLOB)), "blob", SHA256, len(BLOB))
        for device in (OURS, THEIRS):
            sample = make_sample(world.built, f"{device}-large", world.clock(), np.array([1.0, 2.0]))
            body = encode(msgspec.structs.replace(sample, withheld=(apart,)))
            await world.rooms.ingest.commit(device, Batch("sample", "next", 0, ((1, body),)))
            pieces = tuple(enumerate(cut(SHA256, BLOB), 1))
            await world.rooms.ingest.commit(device, Batch("blob", "life", 0, pieces))
        await world.rooms.asking.blobs.assemble()
        yield world


async def test_policies_are_shown_and_changed_within_the_scope_only(world: World) -> None:
    token = await world.token(Role.OPERATOR, "site=lab")
    assert [one["device"] for one in (await world.ask(token, "GET", "/sampling?module=digits")).json] == [OURS]
    changed = await world.ask(token, "POST", "/sampling", {"module": "digits", "set": {"rate": 0.5}})
    assert [one["device"] for one in changed.json] == [OURS]
    rates = {
        one["device"]: one["policy"]["rate"]
        for one in (await world.ask(world.admin, "GET", "/sampling?module=digits")).json
    }
    assert rates == {OURS: 0.5, THEIRS: 0.01}
    outside = {"module": "digits", "target": f"id={THEIRS}", "set": {"rate": 1}}
    other = await world.ask(token, "POST", "/sampling", outside)
    assert (other.status, other.key) == (422, "no-device-matches")
    viewer = await world.token(Role.VIEWER)
    assert (await world.ask(viewer, "POST", "/sampling", {"module": "digits", "set": {"rate": 1}})).status == 403


async def test_devices_are_asked_within_the_scope_only_and_what_was_asked_is_seen_there(world: World) -> None:
    def question(device: str) -> dict[str, object]:
        return {"device": device, "asked": {"module": "digits", "limit": 5}}

    token = await world.token(Role.OPERATOR, "site=lab")
    refused = await world.ask(token, "POST", "/samples/requests", question(THEIRS))
    assert (refused.status, refused.key) == (404, "device-not-found")
    ours = await world.ask(token, "POST", "/samples/requests", question(OURS))
    assert (ours.status, ours.json["state"], ours.json["asked"]) == (201, "pending", {"limit": 5})
    theirs = await world.ask(world.admin, "POST", "/samples/requests", question(THEIRS))
    assert [one["id"] for one in (await world.ask(token, "GET", "/commands")).json] == [ours.json["id"]]
    assert (await world.ask(token, "GET", f"/commands/{ours.json['id']}")).json["device"] == OURS
    assert (await world.ask(token, "GET", f"/commands/{theirs.json['id']}")).status == 404
    assert (await world.ask(token, "GET", "/commands/c-0")).status == 404
    assert len((await world.ask(world.admin, "GET", "/commands?state=pending&module=digits")).json) == 2
    wrong = question(OURS) | {"asked": {"module": "digits", "limit": 5000}}
    assert (await world.ask(token, "POST", "/samples/requests", wrong)).status == 400


async def test_a_blob_is_had_through_a_sample_of_the_scope_only(world: World) -> None:
    token = await world.token(Role.VIEWER, "site=lab")
    found = await world.rooms.samples.list(SampleQuery(limit=500))
    numbers = {row.device: row.id for row in found if row.withheld}
    mine = await world.ask(token, "GET", f"/samples/{numbers[OURS]}/blobs/{SHA256}")
    assert (mine.status, mine.text.encode()) == (200, BLOB)
    assert (await world.ask(token, "GET", f"/samples/{numbers[THEIRS]}/blobs/{SHA256}")).status == 404
    assert (await world.ask(token, "GET", f"/samples/{numbers[OURS]}/blobs/{'0' * 64}")).status == 404
    assert (await world.ask(token, "GET", f"/samples/{numbers[OURS]}/blobs/..%2f..%2fhub.toml")).status in (400, 404)
    plain = next(row.id for row in found if row.device == OURS and not row.withheld)
    assert (await world.ask(token, "GET", f"/samples/{plain}/blobs/{SHA256}")).status == 404
    assert (await world.ask(token, "GET", "/samples/999999/blobs/x")).status == 404
