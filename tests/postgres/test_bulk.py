"""Rows changed by arrays: the columns' own names must not stand in the way."""

from sqlalchemy import insert, select

from cloud_hub.store.bulk import update_many
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices
from support.reporting import device_row


async def test_rows_are_changed_by_their_keys_and_others_stay(store: Store) -> None:
    async with store.write() as connection:
        for name in ("cam-1", "cam-2", "cam-3"):
            await connection.execute(insert(devices).values(**device_row(name, "generic-x86_64", "lab")))
        rows = [{"id": f"cam-{n}", "report": b"body", "report_counter": n, "boots": ["one", str(n)]} for n in (1, 2, 9)]
        await update_many(connection, devices, rows)
    async with store.read() as connection:
        columns = (devices.c.id, devices.c.report, devices.c.report_counter, devices.c.boots)
        found = (await connection.execute(select(*columns).order_by(devices.c.id))).all()
    assert [tuple(row) for row in found[:2]] == [(f"cam-{n}", b"body", n, ["one", str(n)]) for n in (1, 2)]
    assert (found[2].report, found[2].report_counter) == (None, 0)
