"""The parts of a hub that most of its tests need: a real database, real blobs, and a clock that the test sets."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud_hub.blobs import FolderBlobs
from cloud_hub.config import HubPaths
from cloud_hub.events import Events
from cloud_hub.store.engine import Store, upgrade
from support.clock import SetClock


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def hub_paths(tmp_path: Path) -> HubPaths:
    """The paths of a hub directory in which there is nothing yet but the folder itself."""
    root = tmp_path / "hub"
    root.mkdir(mode=0o700)
    return HubPaths(root)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty database with all tables, made once by the real migrations."""
    path = tmp_path_factory.mktemp("migrated") / "hub.sqlite3"
    upgrade(f"sqlite+aiosqlite:///{path}")
    return path.read_bytes()


@pytest.fixture
async def store(hub_paths: HubPaths, migrated_database: bytes) -> AsyncIterator[Store]:
    hub_paths.database.write_bytes(migrated_database)
    store = await Store.open(hub_paths.database_url, migrate=False)
    yield store
    await store.close()


@pytest.fixture
def blobs(hub_paths: HubPaths) -> FolderBlobs:
    return FolderBlobs(hub_paths.blobs)


@pytest.fixture
def events(store: Store, clock: SetClock) -> Events:
    return Events(store, clock)
