"""Several hubs that start at once on an empty database: one makes the tables, the others wait and find them there."""

import subprocess
import sys
import uuid
from contextlib import ExitStack

import pytest
from sqlalchemy import create_engine, inspect, text

from cloud_hub.store.tables import metadata
from postgres.conftest import as_sqlalchemy
from support.postgres import Postgres

HUBS = 3
DEADLINE_S = 120
# Each says that it is there, and begins when it is told so: at once with the others.
_OPEN = """
import asyncio, sys
from cloud_hub.store.engine import Store
print("there", flush=True)
sys.stdin.readline()
asyncio.run(Store.open(sys.argv[1]))
"""


@pytest.mark.timeout(240)
def test_hubs_that_start_at_once_on_an_empty_database_all_come_up_and_migrate_it_once(postgres: Postgres) -> None:
    name = f"empty-{uuid.uuid4().hex[:8]}"
    url = as_sqlalchemy(postgres.create(name))
    pipe = subprocess.PIPE
    try:
        with ExitStack() as running:
            hubs = [
                running.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", _OPEN, url], stdin=pipe, stdout=pipe, stderr=pipe, text=True
                    )
                )
                for _ in range(HUBS)
            ]
            for hub in hubs:
                assert hub.stdout is not None
                assert hub.stdout.readline() == "there\n"
            for hub in hubs:
                assert hub.stdin is not None
                hub.stdin.write("go\n")
                hub.stdin.flush()
            for hub in hubs:
                _, words = hub.communicate(timeout=DEADLINE_S)
                assert hub.returncode == 0, words
        engine = create_engine(url)
        with engine.connect() as connection:
            assert set(metadata.tables) <= set(inspect(connection).get_table_names())
            assert len(connection.execute(text("SELECT version_num FROM alembic_version")).all()) == 1
        engine.dispose()
    finally:
        postgres.drop(name)
