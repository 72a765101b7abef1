"""The store on PostgreSQL: what tests/hub/test_store.py asks of SQLite, and what is PostgreSQL's own."""

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from cloud_hub.errors import Unavailable
from cloud_hub.store import engine
from cloud_hub.store.bulk import upsert
from cloud_hub.store.engine import Store, among, upgrade
from cloud_hub.store.tables import look_scopes, looks, metadata, model_counters, model_files
from hub.test_store import (  # noqa: F401
    counter,
    test_a_failed_write_changes_nothing,
    test_a_reader_sees_one_moment_while_a_writer_goes_on,
    test_events_are_listed_newest_first_and_by_kind_and_subject,
    test_events_stand_or_fall_with_their_change,
    test_writers_wait_for_each_other_and_none_is_lost,
)
from postgres.conftest import as_sqlalchemy
from support.postgres import Postgres


def test_the_migrations_make_exactly_the_tables(database: str) -> None:
    server = create_engine(database)
    with server.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    server.dispose()
    assert differences == []


def test_a_database_of_the_last_release_comes_up_to_date_with_all_that_is_in_it(postgres: Postgres) -> None:
    url = as_sqlalchemy(postgres.create("old"))
    upgrade(url, "0001")
    server = create_engine(url)
    with server.begin() as connection:
        connection.execute(text("insert into model_counters values ('digits', 7)"))
        look = "insert into looks values ('a', 'edge-a', {}, 'digits', 1, 5, 0, 0, '', '', '')"
        connection.execute(text(look.format(60)))
        connection.execute(text(look.format(120)))
    upgrade(url)
    with server.connect() as connection:
        assert connection.execute(select(model_counters.c.version)).scalar_one() == 7
        assert connection.execute(select(looks.c.late, looks.c.joint)).all() == [(0, None)] * 2
        scopes = connection.execute(select(look_scopes)).one()
        assert (scopes.device, scopes.module, scopes.rows, scopes.first, scopes.last) == (
            "edge-a",
            "digits",
            10,
            60,
            120,
        )
    server.dispose()
    postgres.drop("old")


async def test_writers_of_two_processes_wait_for_each_other(store: Store, database: str) -> None:
    other = await Store.open(database, migrate=False)
    async with store.write() as connection:
        await connection.execute(insert(model_counters).values(name="digits", version=0))

    async def count_up(one: Store) -> None:
        async with one.write() as connection:
            version = (await connection.execute(select(model_counters.c.version))).scalar_one()
            await asyncio.sleep(0)
            await connection.execute(model_counters.update().values(version=version + 1))

    await asyncio.gather(*(count_up(one) for one in (store, other) for _ in range(10)))
    assert await counter(store, "digits") == 20
    await other.close()


async def test_a_writer_that_never_ends_does_not_hold_up_the_others_for_ever(
    store: Store, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WRITE_WAIT_S", 0.2)
    impatient = await Store.open(database, migrate=False)
    async with store.write():
        with pytest.raises(Unavailable, match="lock timeout") as caught:
            async with impatient.write():
                pass
    assert caught.value.key == "database-unreachable"
    async with impatient.write() as connection:
        await connection.execute(insert(model_counters).values(name="digits", version=1))
    await impatient.close()


async def test_a_row_without_its_parent_is_refused(store: Store) -> None:
    row = {"name": "digits", "version": 1, "path": "model.onnx", "size": 1, "sha256": "0" * 64}
    with pytest.raises(IntegrityError, match="foreign key"):
        async with store.write() as connection:
            await connection.execute(insert(model_files).values(row))


async def test_a_reading_transaction_cannot_write(store: Store) -> None:
    async with store.read() as connection:
        with pytest.raises(DBAPIError, match="read-only transaction"):
            await connection.execute(insert(model_counters).values(name="digits", version=1))


async def test_values_that_look_like_sql_are_values(store: Store) -> None:
    names = ["it's", "100%", 'a"b', "back\\slash", "%(x)s", ":name"]
    rows = [{"name": name, "version": place} for place, name in enumerate(names)]
    async with store.write() as connection:
        await upsert(connection, model_counters, rows)
        await upsert(connection, model_counters, [{"name": "it's", "version": 9}])
        found = await connection.execute(select(model_counters).where(among(model_counters.c.name, names)))
        assert {row.name: row.version for row in found} == {name: i for i, name in enumerate(names)} | {"it's": 9}


async def test_a_server_that_comes_back_is_used_again(store: Store, postgres: Postgres) -> None:
    async with store.write() as connection:
        await connection.execute(insert(model_counters).values(name="digits", version=1))
    postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mooring%'")
    assert await counter(store, "digits") == 1
    async with store.write() as connection:
        await connection.execute(model_counters.update().values(version=2))
    assert await counter(store, "digits") == 2


async def test_a_server_that_goes_away_in_a_transaction_is_told_as_that(store: Store, postgres: Postgres) -> None:
    kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'mooring%'"

    async def be_cut_off() -> None:
        async with store.write() as connection:
            await connection.execute(insert(model_counters).values(name="digits", version=1))
            await asyncio.to_thread(postgres.execute, kill)
            await connection.execute(select(model_counters))

    with pytest.raises(Unavailable, match="terminating connection") as caught:
        await be_cut_off()
    assert caught.value.key == "database-unreachable"
    assert await counter(store, "digits") is None
