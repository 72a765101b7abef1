"""Reports in groups on PostgreSQL: the same answers as on SQLite."""

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import insert, select

from cloud_hub.clone_alerts import CloneAlerts
from cloud_hub.errors import HubError
from cloud_hub.events import Events
from cloud_hub.intake.storing import ReportStore
from cloud_hub.store.bulk import insert_many, update_many
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices
from modules.messages import DeviceReport, SignedReport, encode_report
from support.certificates import Pair, make_ca, make_client
from support.clock import SetClock
from support.devices import make_report

NAMES = tuple(f"cam-{number}" for number in range(20))


@pytest.fixture
def pairs() -> dict[str, Pair]:
    authority = make_ca("devices")
    return {name: make_client(authority, name) for name in NAMES}


@pytest.fixture
async def reports(store: Store, events: Events, clock: SetClock, pairs: dict[str, Pair]) -> ReportStore:
    row = {"profile": "edge", "created_at": 0.0, "director_version": 3, "report_counter": 0}
    rows = [{"id": name, "certificate": pairs[name].pem, "tags": {"site": [1]}, **row} for name in NAMES]
    async with store.write() as connection:
        await connection.execute(insert(devices), rows)
    return ReportStore(store, events, None, CloneAlerts(events, clock), clock)  # type: ignore[arg-type]


def signed(pair: Pair, report: DeviceReport) -> SignedReport:
    body = encode_report(report)
    return SignedReport(body, pair.key.sign(body, ec.ECDSA(hashes.SHA256())))


async def known(store: Store) -> dict[str, tuple[int, list[str], bytes | None]]:
    query = select(devices.c.id, devices.c.known_version, devices.c.boots, devices.c.report)
    async with store.read() as connection:
        return {row.id: (row.known_version, row.boots, row.report) for row in await connection.execute(query)}


async def test_a_group_is_stored_and_one_bad_report_is_not(
    reports: ReportStore, store: Store, pairs: dict[str, Pair]
) -> None:
    said = {name: msgspec.structs.replace(make_report(name, 1, 3), boot="first") for name in NAMES}
    batch = [(name, signed(pairs[name], report)) for name, report in said.items()]
    batch[4] = (NAMES[4], SignedReport(batch[4][1].body, batch[5][1].signature))
    outcomes = await reports.take(batch)
    assert isinstance(outcomes[4], HubError)
    assert [outcome for outcome in outcomes if isinstance(outcome, DeviceReport)] == [
        report for name, report in said.items() if name != NAMES[4]
    ]
    found = await known(store)
    assert found[NAMES[4]] == (0, [], None)
    for name in NAMES[5:]:
        assert found[name] == (3, ["first"], encode_report(said[name]))


async def test_columns_that_hold_lists_and_nothing_are_written_as_they_are(store: Store) -> None:
    row = {"profile": "edge", "certificate": "", "created_at": 0.0, "director_version": 1, "report_counter": 0}
    tags: list[dict[str, object]] = [{}, {"a": [1, [2, "x"]], "b": None}, {"é\u0001": '"'}]
    boots: list[list[str]] = [[], ["one", "two"], ["{}", '"']]
    rows = [{"id": f"d-{n}", "tags": tags[n], "boots": boots[n], "issued_at": 0.0, **row} for n in range(3)]
    async with store.write() as connection:
        await insert_many(connection, devices, rows)
    query = select(devices.c.tags, devices.c.boots, devices.c.report, devices.c.report_at).order_by(devices.c.id)
    async with store.read() as connection:
        assert [tuple(found) for found in await connection.execute(query)] == [
            (tags[n], boots[n], None, None) for n in range(3)
        ]
    changed = [
        {"id": f"d-{n}", "boots": boots[2 - n], "report": b"\x00" if n else None, "report_at": 1.5} for n in (0, 2)
    ]
    async with store.write() as connection:
        await update_many(connection, devices, [*changed, {**changed[0], "id": "ghost"}])
    async with store.read() as connection:
        assert [tuple(found) for found in await connection.execute(query)] == [
            (tags[0], boots[2], None, 1.5), (tags[1], boots[1], None, None), (tags[2], boots[0], b"\x00", 1.5),
        ]  # fmt: skip
