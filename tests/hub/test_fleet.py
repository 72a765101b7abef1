"""The fleet in pages and counts: what the database filters, sorts and sums from what reports have left in columns."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import func, insert, select, update

from cloud_hub.errors import BadRequest
from cloud_hub.fleet import Fleet, FleetQuery, ProfileCount
from cloud_hub.inventory import facts_of, module_rows
from cloud_hub.roles import Scope
from cloud_hub.store.bulk import insert_many, update_many
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import assignments, devices, reported_modules
from firmware_profiles.profile import Accelerator, DeviceProfile, Processor
from modules.messages import DeviceReport, ModuleReport, UpdateReport, encode_report
from modules.vitals import LinkQuality, Vitals
from support.clock import SetClock
from support.devices import make_report
from support.fleets import certificate

CERTIFICATE = certificate("cam")
LIMIT_S = 900.0


def module(name: str = "digits", version: int = 1, state: str = "serving") -> ModuleReport:
    return msgspec.convert(
        {"name": name, "version": version, "manifest_sha256": "0" * 64, "release_counter": 1, "deployment": "r1",
         "state": state, "verified": True}, ModuleReport,
    )  # fmt: skip


class Ground:
    """A store with devices, written as enrolment, intake and rollouts do."""

    def __init__(self, store: Store, clock: SetClock) -> None:
        self.store, self.clock = store, clock
        self.fleet = Fleet(store, clock, LIMIT_S)

    async def add(self, *names: str, profile: str = "edge", **tags: str) -> None:
        row = {"profile": profile, "tags": tags, "certificate": CERTIFICATE, "created_at": self.clock(), "boots": []}
        rows = [{"id": name, **row, "director_version": 1, "report_counter": 0} for name in names]
        async with self.store.write() as connection:
            await connection.execute(insert(devices), rows)

    async def hear(self, report: DeviceReport) -> None:
        facts = {"report": encode_report(report), "report_at": self.clock(), **facts_of(report, self.clock())}
        async with self.store.write() as connection:
            await update_many(connection, devices, [{"id": report.device, **facts}])
            await insert_many(connection, reported_modules, module_rows(report))

    async def assign(self, device: str, name: str = "digits", version: int = 1) -> None:
        row = {"device": device, "module": name, "role": "main", "version": version, "profile": "edge", "config": {}}
        row |= {"mode": "serve", "deployment": "r1", "assigned_at": 0.0}
        async with self.store.write() as connection:
            await connection.execute(insert(assignments).values(row))

    async def found(self, query: str, retired: bool = False, scope: str = "") -> list[str]:
        return [one.id for one in await self.fleet.page(FleetQuery(query, retired), scope=Scope.parse(scope))]


@pytest.fixture
def ground(store: Store, clock: SetClock) -> Ground:
    return Ground(store, clock)


async def test_pages_bring_every_device_once_in_the_order_of_their_ids(ground: Ground) -> None:
    names = [f"cam-{number:03}" for number in range(150)]
    await ground.add(*names, site="lab")
    found: list[str] = []
    while page := await ground.fleet.page(FleetQuery("site=lab"), found[-1] if found else "", 70):
        found += [device.id for device in page]
        await ground.add(f"aaa-{len(found)}", site="lab")  # comes meanwhile, before the cursor
    assert found == names


async def test_a_list_says_what_devices_run_and_what_differs_without_their_reports(ground: Ground) -> None:
    await ground.add("cam-1", "cam-2", "cam-3")
    for device in ("cam-1", "cam-2"):
        await ground.hear(make_report(device, modules=(module(), module("beat", 3))))
        await ground.assign(device)
        await ground.assign(device, "beat", 3 if device == "cam-1" else 4)
    page = {device.id: device for device in await ground.fleet.page(FleetQuery(), brief=True)}
    assert [(one.module, one.version) for one in page["cam-1"].runs] == [("beat", 3), ("digits", 1)]
    assert (page["cam-1"].differs, page["cam-2"].differs, page["cam-3"].differs) == (False, True, False)
    assert page["cam-1"].report is None
    whole = (await ground.fleet.page(FleetQuery("id=cam-1")))[0]
    assert whole.report is not None
    assert whole.online
    assert await ground.found("differs") == ["cam-2"]
    assert await ground.found("state=settled and module.beat >= 3") == ["cam-1"]


async def test_retired_devices_are_listed_only_on_request(ground: Ground) -> None:
    await ground.add("cam-1", "cam-2")
    async with ground.store.write() as connection:
        await connection.execute(update(devices).where(devices.c.id == "cam-1").values(retired_at=1.0))
    assert await ground.found("all") == ["cam-2"]
    assert await ground.found("all", retired=True) == ["cam-1", "cam-2"]
    assert await ground.found("state=retired") == ["cam-1"]


async def test_a_scope_hides_devices_from_lists_and_counts(ground: Ground) -> None:
    await ground.add("cam-1", "cam-2", site="lab")
    await ground.add("hq-1", site="hq")
    assert await ground.found("site=hq or id=cam-1", scope="site=lab") == ["cam-1"]
    assert (await ground.fleet.summary(FleetQuery(), Scope.parse("site=lab"))).devices == 2


async def test_what_a_device_says_of_itself_can_be_asked(ground: Ground, clock: SetClock) -> None:
    profile = DeviceProfile(
        "edge", "aarch64", accelerators=(Accelerator("cuda"), Accelerator("edgetpu")), memory_mib=512, disk_mib=9000,
        processor=Processor(cores=4),
    )  # fmt: skip
    vitals = Vitals(3600.0, 8000, 70, 100, 0.5, 71.0, LinkQuality(3, 12.5, 10, 20))
    report = msgspec.structs.replace(
        make_report("cam-1"), profile=profile, vitals=vitals, agent_version="0.2.1", current=UpdateReport("fetching")
    )
    await ground.add("cam-1", "cam-2")
    await ground.hear(report)
    for query in (
        "arch=aarch64", "accelerator=cuda and accelerator=edgetpu", "memory_mib >= 512", "disk_mib = 8000", "cores=4",
        "disk_free_mib < 100", "memory_free_mib <= 100", "load > 0.4", "temperature_c > 70", "rtt_ms > 10",
        "uptime > 59m and uptime < 61m", "agent >= 0.2 and agent < 0.3", "updating", "last_seen < 1m", "online",
    ):  # fmt: skip
        assert await ground.found(query) == ["cam-1"], query
    clock.advance(LIMIT_S + 1)
    assert await ground.found("offline and last_seen > 15m") == ["cam-1"]
    assert await ground.found("state=never") == ["cam-2"]


async def test_what_a_hostile_device_says_is_kept_within_what_a_database_holds(ground: Ground) -> None:
    profile = DeviceProfile("edge", "a\0" * 99, accelerators=(Accelerator("x,y"), Accelerator("z" * 999)))
    profile = msgspec.structs.replace(profile, memory_mib=2**70, disk_mib=-5)
    vitals = Vitals(-1.0, 2**80, 2**80, -7, 1e300, -1e300, LinkQuality(2**90, 1e200))
    many = (module("m1"), module("m1", 2), *(module(f"m{number}\0", 2**60) for number in range(500)))
    report = msgspec.structs.replace(
        make_report("cam-1"), profile=profile, vitals=vitals, modules=many, agent_version="9" * 500
    )
    await ground.add("cam-1")
    await ground.hear(report)
    assert await ground.found("memory_free_mib = 0 and not temperature_c < 0 and not load > 0") == ["cam-1"]
    async with ground.store.read() as connection:
        assert (await connection.execute(select(func.count()).select_from(reported_modules))).scalar_one() == 62, (
            "of the first 64, three are called m1"
        )


async def test_a_summary_counts_by_profile_agent_and_state(ground: Ground, clock: SetClock) -> None:
    await ground.add("cam-1", "cam-2", "cam-3", profile="edge")
    await ground.add("pi-1", profile="pi")
    for device, state in (("cam-1", "serving"), ("cam-2", "failed")):
        await ground.hear(make_report(device, modules=(module(state=state),)))
        await ground.assign(device)
    clock.advance(1)
    found = await ground.fleet.summary(FleetQuery())
    assert (found.devices, found.online, found.offline, found.never) == (4, 2, 2, 2)
    assert (found.differs, found.failed, found.updating) == (1, 1, 0)
    assert found.profiles == (
        ProfileCount("edge", "", 1, 0, 0, 0, 1),
        ProfileCount("edge", "0.1.0", 2, 2, 1, 0, 0),
        ProfileCount("pi", "", 1, 0, 0, 0, 1),
    )
    assert [(one.module, one.state, one.devices) for one in found.modules] == [
        ("digits", "failed", 1),
        ("digits", "serving", 1),
    ]
    assert (await ground.fleet.summary(FleetQuery("profile=pi"))).devices == 1


async def test_what_is_no_query_is_refused(ground: Ground) -> None:
    for query, key in (("site=", "query-invalid"), ("group=none", "group-unknown"), ("query=none", "query-unknown")):
        with pytest.raises(BadRequest) as caught:
            await ground.found(query)
        assert caught.value.key == key
