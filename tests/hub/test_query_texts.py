"""What may be written as a query, what it then says, and what is told of a text that is none."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_hub.errors import BadRequest
from cloud_hub.query import RESERVED, DeviceFacts, check_tags, parse
from cloud_hub.roles import Scope

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
CAM = DeviceFacts(
    "cam-1",
    "jetson",
    {"site": "lyon", "line": "2", "not": "5", "or": "or", "state": "bavaria", "name": "a(b)"},
    agent="0.2.0",
    groups=("pilot",),
    states=("online",),
    modules={"digits": 8},
    numbers={"last_seen": 9000.0, "memory_mib": 512.0},
)


@pytest.mark.parametrize(
    "text",
    [
        "site=lyon or site=paris",
        "site=paris or line=2 and site=lyon",
        "(site=paris or site=lyon) and line=2",
        "not site=paris",
        "not(site=paris)and(line=2)",
        "site in (paris, lyon)",
        "site not in (paris,rome)",
        "line >= 2, line < 2.5",
        "agent = 0.2 and agent >= 0.2.0 and agent < 0.10 and agent=0.2.*",
        "module.digits >= 8 and module.digits = 8 and module.digits in (7, 8)",
        "last_seen > 2h and last_seen < 1d",
        "online and group = pilot",
        "memory_mib >= 512",
        "not memory_mib < 512",
        "not disk_mib > 0",
        "not=5 and or=or",
        "tag.state = bavaria and tag.site=lyon",
        'site="lyon"',
        "name=a(b)",
        "(name=a(b))",
        "((((((((((((((((((((site=lyon))))))))))))))))))))",
        "not not not not site=lyon",
        "all and site=lyon",
        "not (not all)",
        "profile = jet* and not id in (cam-2, cam-3)",
    ],
)
def test_a_text_means_the_device(text: str) -> None:
    assert parse(text).matches(CAM)


@pytest.mark.parametrize(
    "text", ["not all", "disk_mib >= 0", "state = offline", "agent > 0.2", "module.other >= 0", "floor < 3", "site > 1"]
)
def test_a_text_does_not_mean_the_device(text: str) -> None:
    assert not parse(text).matches(CAM)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("site=", r"expected a value at character 6, got the end"),
        ("site lyon", r"expected a sign .* at character 6, got 'lyon'"),
        ("(site=lyon", r"expected `\)` at character 11, got the end"),
        ("site=lyon)", r"expected the end at character 10, got '\)'"),
        ("a=b or", r"at character 7, got the end"),
        ("a=b c=d", r"expected .*`and`.* at character 5, got 'c=d'"),
        ("state = on", r"expected one of the states online, .* at character 9, got 'on'"),
        ("memory_mib > many", r"expected a number at character 14, got 'many'"),
        ("last_seen > 2", r"expected a time such as 90s, 15m, 2h or 7d at character 13, got '2'"),
        ("last_seen = 2h", r"expected last_seen with < <= > or >="),
        ("agent > new", r"expected a version such as 0.2 at character 9"),
        ("id < cam-3", r"expected something that has an order \(id takes = and != and `in \(...\)`\)"),
        ("accelerator = cu*", r"expected the whole word for accelerator"),
        ("query = Old Agents", r"at character 13, got 'Agents'"),
        ("site in lyon", r"expected"),
        ("site in ()", r"expected a value at character 10, got '\)'"),
        ("=lyon", r"expected .*a condition such as .* at character 1, got '=lyon'"),
        ("a=b or or", r"expected a sign .* at character 10, got the end"),
        ("x" * 64 + "=1", r"expected a name of 1 to 63 characters"),
        ("a=" + "x" * 201, r"expected a value of 1 to 200 characters"),
        ("a=b" + " or a=b" * 400, r"expected at most 2000 characters, got"),
    ],
)
def test_what_is_no_query_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told) as caught:
        parse(text)
    assert caught.value.key == "query-invalid"


def test_what_nests_too_deep_is_refused() -> None:
    text = "a=b"
    for number in range(20):
        text = f"(({text}) and c=d) or e={number}"
    with pytest.raises(BadRequest, match=r"at most 16 levels of and, or and not, got"):
        parse(text)


@given(st.text(alphabet='ab01=!<>()*,." \\n[]{}\x00é-/_', max_size=60) | st.text(max_size=60))
@settings(CALM, max_examples=400)
def test_any_text_is_a_query_or_is_refused(text: str) -> None:
    try:
        query = parse(text)
    except BadRequest:
        return
    query.matches(CAM)


@settings(CALM)
@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=2))
def test_every_tag_that_is_allowed_can_be_named(tags: dict[str, str]) -> None:
    try:
        check_tags(tags)
    except BadRequest:
        return
    for name, value in tags.items():
        device = DeviceFacts("cam-1", "p", tags)
        if '"' not in value:
            assert parse(f'{name} = "{value}"').matches(device)
            assert parse(f'tag.{name} != "{value}x"').matches(device)


@pytest.mark.parametrize("name", [*sorted(RESERVED), "module.digits", "tag.site"])
def test_a_tag_cannot_be_called_like_what_queries_mean_otherwise(name: str) -> None:
    with pytest.raises(BadRequest, match="queries mean something else by this name"):
        check_tags({name: "x"})


def test_in_a_scope_every_name_but_id_and_profile_is_a_tag() -> None:
    assert Scope.parse("state=bavaria").matches(CAM)
    assert not Scope.parse("group=pilot").matches(CAM), "what a device reports, or is put into, is no tag"
    assert not Scope.parse("agent >= 0.1").matches(CAM)
    assert Scope.parse("site=lyon and not (line=3 or line=4)").matches(CAM)
    with pytest.raises(BadRequest, match="scope: expected conditions on id, profile and tags only"):
        Scope.parse("online")


def test_a_scope_knows_what_it_names_and_what_it_leaves_out() -> None:
    scope = Scope.parse("(site=lyon and not id=cam-9) or not (profile != pi)")
    assert (scope.names("id"), scope.names("profile"), scope.names("site")) == (True, True, False)
    assert (scope.excludes("id"), scope.excludes("profile")) == (True, False)
    assert Scope.parse("site=lyon or all").everything
