"""Lists that are ordered by several columns: behind a row are all the rows that come after it, and no others."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, insert, select

from cloud_hub.store.behind import behind

things = Table("things", MetaData(), Column("a", String), Column("b", Integer), Column("c", String))
ROWS = st.lists(
    st.tuples(st.sampled_from("xyz"), st.integers(1, 3), st.sampled_from("pq")), min_size=1, max_size=12, unique=True
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])  # makes a database each time
@given(ROWS, st.tuples(st.booleans(), st.booleans(), st.booleans()), st.integers(1, 4))
def test_following_the_pages_gives_every_row_once_and_in_order(
    rows: list[tuple[str, int, str]], down: tuple[bool, bool, bool], size: int
) -> None:
    order = tuple(zip(things.columns, down, strict=True))
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        things.create(connection)
        connection.execute(insert(things), [dict(zip("abc", row, strict=True)) for row in rows])
        query = select(things).order_by(*(column.desc() if downwards else column for column, downwards in order))
        whole = [tuple(row) for row in connection.execute(query)]
        found, page = list[tuple[object, ...]](), [tuple(row) for row in connection.execute(query.limit(size))]
        while page:
            found += page
            rest = query.where(behind(order, page[-1])).limit(size)
            page = [tuple(row) for row in connection.execute(rest)]
    engine.dispose()
    assert found == whole
