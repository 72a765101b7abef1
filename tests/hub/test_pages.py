"""Pages of lists: every row once while rows come and go, and cursors that are none are refused."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from cloud_hub.api.pages import (
    Page,
    PageQuery,
    cut,
    link,
    make_cursor,
    page_of_all,
    read_cursor,
    row_cursor,
)
from cloud_hub.errors import BadRequest

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
_TOO_MUCH = [make_cursor("a", 2**63), make_cursor("a\0", 1)]


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def name_key(name: str) -> tuple[str]:
    return (name,)


def follow(names: list[str], limit: int, between: list[str]) -> list[str]:
    """Reads all pages; before each further page one of `between` comes into the list."""
    there, after = list(names), ""
    seen: list[str] = []
    while True:
        page = page_of_all(there, PageQuery(limit=limit, after=after), name_key)
        seen += page.rows
        if not page.next:
            return seen
        after = page.next["after"]
        if between:
            there.append(between.pop())


@CALM
@given(st.sets(TEXTS, max_size=20), st.integers(1, 7), st.sets(TEXTS, max_size=10))
def test_what_was_there_at_the_first_page_comes_exactly_once_while_rows_are_added(
    names: set[str], limit: int, others: set[str]
) -> None:
    seen = follow(sorted(names), limit, sorted(others - names))
    assert [name for name in seen if name in names] == sorted(names)
    assert len(seen) == len(set(seen))


@CALM
@given(st.lists(st.one_of(st.integers(-(2**53), 2**53), TEXTS), min_size=1, max_size=4))
def test_a_cursor_is_read_as_it_was_made(parts: list[int | str]) -> None:
    text = make_cursor(*parts)
    assert read_cursor(text, *(type(part) for part in parts)) == tuple(parts)
    assert URL("/x").update_query(after=text).query["after"] == text


@pytest.mark.parametrize(
    "text", ["", "x", "%%%", "ä", "A" * 512, make_cursor(1, "b"), make_cursor("a"), "bnVsbA", *_TOO_MUCH]
)
def test_a_cursor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="after: expected the cursor of a page before"):
        read_cursor(text, str, int)


@pytest.mark.parametrize("text", ["-1", "1.5", "९", "9" * 16, "9" * 5000, "one"])
def test_a_row_cursor_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        row_cursor(text)
    assert refused.value.key == "cursor-invalid"
    assert len(refused.value.message) < 200


def test_a_page_of_rows_that_may_not_be_seen_still_leads_on() -> None:
    nothing: list[int] = []
    page = cut([1, 2, 3], 2, lambda row: row).showing(nothing)
    assert (page.rows, page.next) == ([], {"after": "2"})


def test_the_link_keeps_the_filters_and_leads_behind_the_last_row() -> None:
    url = URL("/api/v1/models?name=a%20b&tag=x=1&tag=y=2&limit=2&after=old")
    text = link(url, Page([1, 2], {"after": "new"}))
    assert text.endswith('>; rel="next"')
    query = URL(text[1 : text.index(">")]).query
    assert (query.getall("tag"), query["name"], query.getall("after")) == (["x=1", "y=2"], "a b", ["new"])
    assert link(url, Page([])) == ""
