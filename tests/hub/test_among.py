"""Rows by many values in one parameter: what is found, for any text. PostgreSQL runs these as well."""

import pytest
from sqlalchemy import ColumnElement, select

from cloud_hub.store.among import among, pairs_among
from cloud_hub.store.bulk import insert_many
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import look_scopes

OTHERS = ("p", "1")
NAMES = ("a", "it's", 'say "b"', "ü, [c]", "1", "null")


@pytest.fixture
async def filled(store: Store) -> Store:
    """Every name with each of two others."""
    rows = [
        {"manifest_sha256": name, "device": other, "module": "m", "rows": 1, "first": 0.0, "last": 0.0}
        for name in NAMES
        for other in OTHERS
    ]
    async with store.write() as connection:
        await insert_many(connection, look_scopes, rows)
    return store


async def found(store: Store, where: ColumnElement[bool]) -> set[tuple[str, str]]:
    async with store.read() as connection:
        rows = await connection.execute(select(look_scopes.c.manifest_sha256, look_scopes.c.device).where(where))
        return {(row.manifest_sha256, row.device) for row in rows}


async def test_rows_of_the_values_are_found_and_no_others(filled: Store) -> None:
    name = look_scopes.c.manifest_sha256
    assert await found(filled, among(name, NAMES)) == {(one, path) for one in NAMES for path in OTHERS}
    assert await found(filled, among(name, ["it's", "absent"])) == {("it's", "p"), ("it's", "1")}
    assert await found(filled, among(name, [])) == set()
    assert {one for one, _ in await found(filled, ~among(name, NAMES[1:]))} == {"a"}
    assert {one for one, _ in await found(filled, among(name, ["a"]) | among(name, ["1"]))} == {"a", "1"}


async def test_rows_of_the_pairs_are_found_and_no_others(filled: Store) -> None:
    left, right = look_scopes.c.manifest_sha256, look_scopes.c.device
    wanted = {("it's", "1"), ('say "b"', "p"), ("1", "1"), ("null", "p")}
    assert await found(filled, pairs_among(left, right, wanted | {("a", "absent"), ("p", "a")})) == wanted
    assert await found(filled, pairs_among(left, right, [])) == set()
    assert await found(filled, ~pairs_among(left, right, wanted) & among(left, ["1"])) == {("1", "p")}
