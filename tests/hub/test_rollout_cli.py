"""`mooring rollout` against a hub that runs: plans from files and options, dry runs, steering, approval, watching."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import update
from typer.testing import CliRunner, Result

from cloud_hub.clock import system_clock
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.desired import Assignment
from cloud_hub.events import Events
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.operator.cli import app
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms
from cloud_hub.service import open_hub
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from modules.manifest import Lineage, Manifest, encode_manifest
from modules.messages import ModuleReport
from support.clock import SetClock
from support.hubs import serving
from support.monitoring import model_file
from support.reporting import PROFILE, Fleet
from support.waiting import until

pytestmark = pytest.mark.timeout(120)
PLAN = """
groups: ["1", "50%", rest]
rate: {per_minute: 600, factor: 2, after: 10}
windows: ["00:00-24:00 Europe/Berlin", {start: "02:00", end: "05:00", days: [sat]}]
on_failure: roll_back
thresholds:
  - {kind: reverted, percent: 5, min_count: 20}
"""


class Devices(Fleet):
    """Devices whose modules have manifests."""

    def __init__(self, store: Store, events: Events, clock: SetClock, digests: Mapping[int, str]) -> None:
        super().__init__(store, events, clock)
        self._digests = digests

    async def verified(self, device: str, deployment: str, version: int = 2) -> None:
        module = ModuleReport("digits", version, self._digests[version], version, deployment, "serving", True)
        await self.say(self.report(device, modules=(module,)))


class Hub:
    """The command, as a person calls it, and the devices, as they report."""

    def __init__(self, context: Path, fleet: Fleet) -> None:
        self.context, self.fleet = context, fleet

    async def __call__(self, *arguments: object, status: int = 0, context: Path | None = None) -> str:
        words = ["--context", str(context or self.context), *map(str, arguments)]
        result: Result = await asyncio.to_thread(CliRunner().invoke, app, words, env={"COLUMNS": "200"})
        assert result.exit_code == status, f"{arguments}: {result.output}\n{result.exception!r}"
        return result.stdout if status == 0 else result.output

    async def said(self, *arguments: object) -> str:
        """What is on standard error of a command that does what it should."""
        words = ["--context", str(self.context), *map(str, arguments)]
        result: Result = await asyncio.to_thread(CliRunner().invoke, app, words, env={"COLUMNS": "200"})
        assert result.exit_code == 0, result.output
        return result.stderr

    async def json(self, *arguments: object, context: Path | None = None) -> Any:
        return json.loads(await self(*arguments, "-o", "json", context=context))

    async def create(self, *arguments: object) -> str:
        """The id of a rollout of version 2 to the lab."""
        made = await self.json("rollout", "create", "digits:2", "--target", "site=lab", *arguments)
        return str(made["rollout"]["id"])

    async def somebody_else(self, role: Role) -> Path:
        """The context of another person."""
        async with HubClient(HubContext.load(self.context)) as client:
            session = await client.create_api_token(f"another-{role}", role)
        path = self.context.with_name(f"{role}.toml")
        known = HubContext.load(self.context)
        msgspec.structs.replace(known, token=session.token, image_root="", director_root="").write(path)
        return path


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    api, mqtt = free_ports(2)
    config = HubConfig(dev=True, api_host="127.0.0.1", api_port=api, mqtt_host="127.0.0.1", mqtt_port=mqtt)
    paths: HubPaths = await initialise(tmp_path / "hub", config)
    clock = SetClock(system_clock())
    async with open_hub(paths) as rooms:
        await Fleet(rooms.store, rooms.events, clock).furnish()
        digests = {version: await _built(rooms, version) for version in (1, 2)}
    async with serving(paths):
        store = await Store.open(paths.database_url, migrate=False)
        yield Hub(paths.context, Devices(store, Events(store, clock), clock, digests))
        await store.close()


async def _built(rooms: Rooms, version: int) -> str:
    """Gives the version a manifest; its digest."""
    manifest = Manifest("digits", version, PROFILE, Lineage("digits", version), (), (), (model_file(),))
    digest = await rooms.blobs.put(encode_manifest(manifest))
    async with rooms.store.write() as connection:
        change = update(modules).where(modules.c.version == version)
        await connection.execute(change.values(manifest_sha256=digest))
    return digest


async def test_a_dry_run_shows_devices_bytes_and_times_and_creates_nothing(hub: Hub) -> None:
    arguments = ("rollout", "create", "digits:2", "--target", "site=lab", "--group", "2", "--group", "rest")
    shown = await hub(*arguments, "--rate", "1", "--dry-run", "--start")
    for words in ("dry run digits:2 to site=lab: 5 devices, 500 B in all", "cam-100, cam-200", "no-module-for-profile"):
        assert words in shown
    found = await hub.json(*arguments, "--dry-run")
    assert [group["size"] for group in found["groups"]] == [2, 3]
    assert await hub.json("rollout", "list") == []
    assert "no device matches" in await hub(
        "rollout", "create", "digits:2", "--target", "id=nobody", "--dry-run", status=1
    )


async def test_a_plan_comes_from_a_file_with_options_over_it(hub: Hub, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    arguments = ("--rate", "20", "--soak", "2h", "--threshold", "failed=2%/20", "--alerts", "--alert-kind", "drift")
    rollout = await hub.create("--plan", file, *arguments)
    plan = (await hub.json("rollout", "status", rollout))["rollout"]["plan"]
    assert [group["count"] for group in plan["groups"]] == [1, None, None]
    assert (plan["rate"]["per_minute"], plan["rate"]["factor"], plan["rate"]["after"]) == (20, 2, 10)
    assert [window["days"] for window in plan["windows"]] == [[], ["sat"]]
    assert plan["thresholds"] == [{"kind": "failed", "percent": 2, "min_count": 20}]
    assert (plan["on_failure"], plan["soak_s"], plan["alert_gate"]["kinds"]) == ("roll_back", 7200, ["drift"])
    assert plan["approval"] is None
    assert plan["gate"] is None


async def test_creating_says_that_devices_would_refuse_it_as_the_dry_run_does(hub: Hub) -> None:
    create = ("rollout", "create", "digits:2", "--target", "site=lab")
    assert await hub.said(*create) == ""
    async with hub.fleet.store.write() as connection:  # what a fleet rollback does to the version it goes back to
        for device in ("cam-100", "cam-200"):
            await hub.fleet.desired.assign(connection, device, Assignment("digits", 1, PROFILE, "r0"))
        await connection.execute(update(modules).where(modules.c.version == 1).values(release_counter=9))
    looked_at = await hub(*create, "--dry-run")
    said = await hub.said(*create, "--start")
    assert said.startswith("note: 2 devices would refuse it, because what they run was signed later")
    assert said.removeprefix("note: ").strip() in looked_at
    rollout = (await hub.json("rollout", "list"))[0]["id"]
    assert await hub.said("rollout", "status", rollout) == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name the devices"),
        (("--target", "all", "--window", "at night"), "window: expected days"),
        (("--target", "all", "--threshold", "failed"), "--threshold: expected KIND=PERCENT/MIN"),
        (("--target", "all", "--threshold", "eaten=2%"), "eaten"),
        (("--target", "all", "--rate", "5", "--rate-growth", "2"), "--rate-growth: expected"),
        (("--target", "all", "--rate-max", "2"), "per_minute"),
        (("--target", "all", "--margin", "beauty=1"), "--margin: expected NAME=NUMBER"),
        (("--target", "all", "--soak", "soon"), "a time such as 30m"),
        (("--target", "all", "--approval", "king"), "king"),
        (("--target", "all", "--approve-before", "group:0"), "expected start or group:N"),
        (("--target", "all", "--plan", "/no/such/file.yaml"), "cannot be read"),
    ],
)
def test_what_makes_no_plan_is_refused_before_a_hub_is_asked(arguments: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app, ["rollout", "create", "digits:2", *arguments], env={"COLUMNS": "300"})
    assert result.exit_code != 0
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_file_for_another_module_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text('{"module": "faces", "target": "all"}')
    result = CliRunner().invoke(app, ["rollout", "create", "digits:2", "--plan", str(file)], env={"COLUMNS": "300"})
    assert result.exit_code == 1
    assert "its module is faces, and digits was asked for" in " ".join(result.output.split())


async def test_another_person_approves_and_the_words_say_what_is_missing(hub: Hub) -> None:
    rollout = await hub.create("--approval", "publisher", "--approve-before", "start", "--start")
    assert "waiting: the start waits for 1 more approval by the role publisher" in await hub(
        "rollout", "status", rollout
    )
    assert "who created the rollout" in await hub("rollout", "approve", rollout, status=1)
    other = await hub.somebody_else(Role.PUBLISHER)
    refused = await hub("rollout", "approve", rollout, "--before", "group:9", status=1, context=other)
    assert "asks for no approval" in refused
    shown = await hub("rollout", "approve", rollout, "-m", "looks well", context=other)
    assert "waiting" not in shown
    assert (await hub.json("rollout", "status", rollout))["groups"][0]["states"] == {"assigned": 5}
    viewer = await hub.somebody_else(Role.VIEWER)
    assert "expected the role operator" in await hub("rollout", "pause", rollout, status=1, context=viewer)


async def test_devices_are_listed_in_pages_and_failed_ones_begin_again(hub: Hub) -> None:
    rollout = await hub.create("--start", "--max-errors", "100", "--success", "10")
    for device in ("cam-100", "cam-300"):
        await hub.fleet.failed(device, rollout)
    failed = await hub("rollout", "devices", rollout, "--state", "failed")
    assert "cam-300" in failed
    assert "golden-mismatch: case 3 differs" in failed
    assert "cam-200" not in failed
    assert len(await hub.json("rollout", "devices", rollout, "--group", "1")) == 5
    assert [one["device"] for one in await hub.json("rollout", "devices", rollout, "--limit", "2")] == [
        "cam-100",
        "cam-200",
    ]
    await hub("rollout", "retry", rollout)
    (again,) = [one for one in await hub.json("rollout", "devices", rollout) if one["device"] == "cam-100"]
    assert (again["state"], again["attempt"]) == ("assigned", 1)
    assert "no device failed" in await hub("rollout", "retry", rollout, status=1)


async def test_everybody_goes_back_and_a_watch_ends_with_it(hub: Hub) -> None:
    rollout = await hub.create("--start", "--group", "1", "--group", "rest")
    await hub.fleet.verified("cam-100", rollout)
    shown = await hub("rollout", "rollback", rollout, "--reason", "too slow")
    assert "rolling back (too slow)" in shown
    assert "rolling back" in await hub("rollout", "list", "--state", "rolling back")
    assert [one["state"] for one in await hub.json("rollout", "list", "--state", "rolling_back")] == ["rolling_back"]
    # One command at a time: a runner takes the standard output of the whole process.
    watching = asyncio.create_task(hub("rollout", "status", rollout, "--watch", "-o", "json", status=1))
    # What it had before was nothing.
    await hub.fleet.say(hub.fleet.report("cam-100", director_version=3))
    await until(lambda: watching.done(), "the watch to end", 60)
    ended = json.loads(await watching)["rollout"]
    assert (ended["state"], ended["reason"]) == ("rolled_back", "too slow")


async def test_one_that_devices_go_on_to_join_is_finished_by_hand(hub: Hub) -> None:
    rollout = await hub.create("--joining", "--start", "--group", "rest")
    for number in range(1, 6):
        await hub.fleet.verified(f"cam-{number}00", rollout)
    shown = await hub("rollout", "status", rollout)
    assert "waiting: waits for more devices to join" in shown
    assert "5/5 verified" in shown
    assert "finished" in await hub("rollout", "finish", rollout)
    assert [one["id"] for one in await hub.json("rollout", "list", "--state", "finished", "--module", "digits")] == [
        rollout
    ]
    assert await hub.json("rollout", "list", "--module", "faces") == []


async def test_a_candidate_that_has_been_compared_with_nothing_is_promoted_with_a_word(hub: Hub) -> None:
    async with hub.fleet.store.write() as connection:
        for number in range(1, 6):
            await hub.fleet.desired.assign(connection, f"cam-{number}00", Assignment("digits", 1, PROFILE, "r0"))
    await hub("candidate", "start", "digits:2", "--target", "site=lab")
    said = await hub.said("candidate", "promote", "digits:2")
    assert said.strip() == "note: nothing was compared: no prediction of digits:2 beside another version was counted"
    (one,) = await hub.json("candidate", "list")
    assert one["state"] == "promoted"
