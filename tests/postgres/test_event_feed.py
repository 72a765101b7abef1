"""Cursors over the events, and what metrics look up, on PostgreSQL."""

from sqlalchemy import insert

from cloud_hub.metrics import snapshot
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices
from hub.test_event_feed import (  # noqa: F401
    record,
    test_a_cursor_never_goes_back,
    test_a_feed_gives_events_in_order_from_where_it_was_opened,
    test_a_feed_that_was_never_opened_begins_with_the_first_event,
)


async def test_devices_are_counted_and_the_database_has_a_size(store: Store) -> None:
    now = 1_700_000_000.0
    values = {
        "id": "edge-1", "profile": "p", "tags": {}, "certificate": "", "created_at": now, "report_counter": 0,
        "director_version": 0, "report_at": now - 10,
    }  # fmt: skip
    async with store.write() as connection:
        await connection.execute(insert(devices).values(values))
    async with store.read() as connection:
        found = await snapshot.read(connection, now, 60.0)
    assert found.devices == {("reporting",): 1, ("silent",): 0, ("never",): 0, ("retired",): 0}
    assert found.database_bytes > 100_000
