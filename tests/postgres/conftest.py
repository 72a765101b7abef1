"""Tests of tests/hub once more, with a store in PostgreSQL: one server and one database, emptied after each test."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cloud_hub.blobs import FolderBlobs
from cloud_hub.config import HubPaths
from cloud_hub.events import Events
from cloud_hub.store.engine import Store, upgrade
from support.clock import SetClock
from support.postgres import Postgres, running_postgres

# Emptied and not made anew: a new database takes a third of a second. The numbering begins anew as well.
_EMPTY = """
SET session_replication_role = replica;
DO $$ DECLARE name text; BEGIN
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version' LOOP
    EXECUTE format('DELETE FROM %I', name);
  END LOOP;
  FOR name IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' LOOP
    EXECUTE format('ALTER SEQUENCE %I RESTART', name);
  END LOOP;
END $$
"""


def as_sqlalchemy(url: str) -> str:
    return url.replace("postgresql:", "postgresql+psycopg:", 1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        upgrade(as_sqlalchemy(server.create("hub")))
        yield server


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The address of a database with all tables and no rows."""
    yield as_sqlalchemy(postgres.url("hub"))
    postgres.execute(_EMPTY, "hub")


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    store = await Store.open(database, migrate=False)
    yield store
    await store.close()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def hub_paths(tmp_path: Path) -> HubPaths:
    root = tmp_path / "hub"
    root.mkdir(mode=0o700)
    return HubPaths(root)


@pytest.fixture
def blobs(hub_paths: HubPaths) -> FolderBlobs:
    return FolderBlobs(hub_paths.blobs)


@pytest.fixture
def events(store: Store, clock: SetClock) -> Events:
    return Events(store, clock)
