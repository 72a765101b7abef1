"""Queries on PostgreSQL: what tests/hub/test_query_meaning.py asks of SQLite."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, create_engine

from hub.test_query_meaning import (  # noqa: F401
    FLEET,
    test_a_hostile_pattern_takes_no_time_in_the_database_either,
    test_a_query_means_the_same_devices_in_memory_and_in_the_database,
    test_every_condition_means_the_same_devices_in_memory_and_in_the_database,
)
from postgres.conftest import as_sqlalchemy
from support.postgres import Postgres


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Iterator[Connection]:
    server = create_engine(as_sqlalchemy(postgres.url("hub")))
    with server.connect() as connection:  # what is stored goes with the connection: nobody commits it
        FLEET.store(connection)
        yield connection
    server.dispose()
