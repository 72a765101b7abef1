"""One meaning in three places: the query in memory, the query in the database, and the same said in plain Python."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import Connection, create_engine, select

from cloud_hub.query import DeviceFacts, parse
from cloud_hub.store.tables import devices, metadata
from support.queries import MOMENT, Fleet, Says, every_condition, fleet, texts

FLEET = fleet(120)
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy


@pytest.fixture(scope="module")
def database() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        metadata.create_all(connection)
        FLEET.store(connection)
        yield connection
    engine.dispose()


def means(connection: Connection, text: str) -> list[str]:
    query = select(devices.c.id).where(parse(text).where(MOMENT)).order_by(devices.c.id)
    return list(connection.execute(query).scalars())


def expected(of: Fleet, says: Says) -> list[str]:
    return sorted(device.id for device in of.facts if says(device))


def test_every_condition_means_the_same_devices_in_memory_and_in_the_database(database: Connection) -> None:
    for text, says in every_condition():
        wanted = expected(FLEET, says)
        assert expected(FLEET, parse(text).matches) == wanted, text
        assert means(database, text) == wanted, text


@settings(CALM, max_examples=200)
@given(texts())
def test_a_query_means_the_same_devices_in_memory_and_in_the_database(
    database: Connection, drawn: tuple[str, Says]
) -> None:
    text, says = drawn
    wanted = expected(FLEET, says)
    assert expected(FLEET, parse(text).matches) == wanted
    assert means(database, text) == wanted


@settings(CALM, max_examples=100)
@given(texts())
def test_needs_names_every_fact_that_a_query_looks_at(drawn: tuple[str, Says]) -> None:
    query = parse(drawn[0])
    for device in FLEET.facts[:20]:
        known = {name: getattr(device, name) for name in query.needs()}
        bare = DeviceFacts(**{"id": "", "profile": "", "tags": {}, **known})
        assert query.matches(bare) == query.matches(device)


def test_a_hostile_pattern_takes_no_time_in_the_database_either(database: Connection) -> None:
    began = time.process_time()
    assert means(database, "site=" + "*a" * 90) == []
    assert means(database, " or ".join("id=*" + "*a" * 20 for _ in range(40))) == []
    assert time.process_time() - began < 5.0
