import asyncio
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import IntegrityError

from cloud_hub.config import HubPaths
from cloud_hub.events import Events
from cloud_hub.store.engine import Store, upgrade
from cloud_hub.store.tables import metadata, model_counters, model_files, modules, patches


async def counter(store: Store, name: str) -> int | None:
    async with store.read() as connection:
        query = select(model_counters.c.version).where(model_counters.c.name == name)
        return (await connection.execute(query)).scalar_one_or_none()


async def test_the_migrations_make_exactly_the_tables(hub_paths: HubPaths) -> None:
    await (await Store.open(hub_paths.database_url)).close()
    engine = create_engine(f"sqlite:///{hub_paths.database}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    assert differences == []


async def test_opening_an_old_database_again_keeps_what_is_in_it(hub_paths: HubPaths) -> None:
    store = await Store.open(hub_paths.database_url)
    async with store.write() as connection:
        await connection.execute(insert(model_counters).values(name="digits", version=7))
    await store.close()
    store = await Store.open(hub_paths.database_url)
    assert await counter(store, "digits") == 7
    await store.close()


def test_a_released_migration_is_as_it_was_released(repository: Path) -> None:
    path = "cloud_hub/store/migrations/versions/0001_initial.py"
    with zipfile.ZipFile(repository / "tests/releases/mooring-0.1.0-py3-none-any.whl") as wheel:
        assert (repository / path).read_bytes() == wheel.read(path)


async def test_a_database_of_the_last_release_comes_up_to_date_with_all_that_is_in_it(hub_paths: HubPaths) -> None:
    upgrade(hub_paths.database_url, "0001")
    with closing(sqlite3.connect(hub_paths.database)) as old:
        old.execute("insert into model_counters values ('digits', 7)")
        old.execute("insert into model_versions values ('digits', 7, '', '', '', '', '[]', '{}', 1.0)")
        old.execute("insert into model_files values ('digits', 7, 'model.onnx', 3, 'abc')")
        old.execute("insert into modules values ('digits', 7, 'p', 'acme', 'def', 9, 3, 4, 1.0, 2.0)")
        old.commit()
        assert old.execute("select name from sqlite_master where name = 'patches'").fetchall() == []
    store = await Store.open(hub_paths.database_url)
    assert await counter(store, "digits") == 7
    async with store.read() as connection:
        assert (await connection.execute(select(model_files.c.sha256))).scalars().all() == ["abc"]
        assert (await connection.execute(select(modules.c.release_counter))).scalars().all() == [4]
        assert (await connection.execute(select(patches))).all() == []
    await store.close()


async def test_a_failed_write_changes_nothing(store: Store) -> None:
    async def fail_after_writing() -> None:
        async with store.write() as connection:
            await connection.execute(insert(model_counters).values(name="digits", version=1))
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await fail_after_writing()
    assert await counter(store, "digits") is None


async def test_writers_wait_for_each_other_and_none_is_lost(store: Store) -> None:
    async with store.write() as connection:
        await connection.execute(insert(model_counters).values(name="digits", version=0))

    async def count_up() -> None:
        async with store.write() as connection:
            version = (await connection.execute(select(model_counters.c.version))).scalar_one()
            await asyncio.sleep(0)
            await connection.execute(model_counters.update().values(version=version + 1))

    await asyncio.gather(*(count_up() for _ in range(20)))
    assert await counter(store, "digits") == 20


async def test_a_reader_sees_one_moment_while_a_writer_goes_on(store: Store) -> None:
    async with store.read() as reading:
        before = (await reading.execute(select(model_counters))).all()
        async with store.write() as writing:
            await writing.execute(insert(model_counters).values(name="digits", version=1))
        assert (await reading.execute(select(model_counters))).all() == before == []
    assert await counter(store, "digits") == 1


async def test_a_row_without_its_parent_is_refused(store: Store) -> None:
    row = {"name": "digits", "version": 1, "path": "model.onnx", "size": 1, "sha256": "0" * 64}
    async with store.write() as connection:
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            await connection.execute(insert(model_files).values(row))


async def test_the_database_is_set_to_survive_a_power_cut(store: Store) -> None:
    async with store.read() as connection:
        assert (await connection.execute(text("PRAGMA journal_mode"))).scalar_one() == "wal"
        assert (await connection.execute(text("PRAGMA synchronous"))).scalar_one() == 2


async def test_events_stand_or_fall_with_their_change(store: Store, events: Events) -> None:
    async with store.write() as connection:
        await events.record(connection, "model.registered", "alice", "digits:1", size=10)

    async def fail_after_recording() -> None:
        async with store.write() as connection:
            await events.record(connection, "model.registered", "alice", "digits:2")
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await fail_after_recording()
    assert [(event.subject, event.details) for event in await events.list()] == [("digits:1", {"size": 10})]


async def test_events_are_listed_newest_first_and_by_kind_and_subject(store: Store, events: Events) -> None:
    async with store.write() as connection:
        for number in range(1, 6):
            await events.record(connection, "odd" if number % 2 else "even", "alice", f"thing:{number}")
    assert [event.subject for event in await events.list(kind="odd")] == ["thing:5", "thing:3", "thing:1"]
    assert [event.id for event in await events.list(after=2, before=5)] == [4, 3]
    assert [event.kind for event in await events.list(subject="thing:2")] == ["even"]
    assert len(await events.list(limit=2)) == 2
