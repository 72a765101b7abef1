"""The tag query: a small language whose every word can be read aloud."""

import pytest

from cloud_hub.errors import BadRequest
from cloud_hub.query import DeviceFacts, check_tags, parse

LYON = DeviceFacts("cam-1", "jetson-orin-nano", {"site": "lyon", "line": "2"})


@pytest.mark.parametrize(
    "text",
    [
        "all",
        "site=lyon",
        "site=lyon and line=2",
        "site=lyon,line!=3",
        "site = ly* , profile=jetson-*",
        "id=cam-1",
        "id=c*m-*1",
        "id=*",
        "id!=cam-2",
        "floor!=3",
        "profile!=raspberry-pi-5 and id=cam*",
    ],
)
def test_a_query_finds_the_device(text: str) -> None:
    assert parse(text).matches(LYON)


@pytest.mark.parametrize(
    "text", ["site=paris", "site!=lyon", "site=lyon,line=3", "id=cam", "id=*-2", "floor=*", "id=cam-1*1", "profile=jet"]
)
def test_a_query_leaves_the_device_out(text: str) -> None:
    assert not parse(text).matches(LYON)


@pytest.mark.parametrize("text", ["", "lyon", "site=", "=lyon", "site=a=b", "a=b or", "a=b,,c=d", "x" * 3000])
def test_what_is_no_query_is_refused_with_the_term(text: str) -> None:
    with pytest.raises(BadRequest, match="query: expected") as caught:
        parse(text)
    assert caught.value.key == "query-invalid"


def test_a_tag_cannot_shadow_what_a_device_is() -> None:
    assert not parse("id=other").matches(DeviceFacts("cam-1", "p", {"id": "other"}))


def test_a_hostile_pattern_takes_no_time() -> None:
    assert not parse("site=" + "*a" * 99).matches(DeviceFacts("cam-1", "p", {"site": "a" * 98 + "b"}))


@pytest.mark.parametrize(
    "tags", [{"id": "x"}, {"profile": "x"}, {"a b": "x"}, {"a": ""}, {"a": "x y"}, {"a": "x,y"}, {"a": "*"}, {"": "x"}]
)
def test_tags_that_no_query_could_name_are_refused(tags: dict[str, str]) -> None:
    with pytest.raises(BadRequest, match="tag"):
        check_tags(tags)
    check_tags({"site": "lyon", "a/b.c": "2-x"})
