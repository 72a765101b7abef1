"""Approval: who may say yes to what, and what still waits for a yes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.roles import Role
from cloud_hub.rollouts.approval import START, Approval, Given, before_group, missing, refusal

BOTH = Approval(Role.PUBLISHER, 2, (START, "group:2"))


def yes(principal: str, stage: str = START) -> Given:
    return Given(principal, Role.PUBLISHER, stage, 1.0)


def test_a_stage_waits_until_as_many_people_as_asked_for_have_said_yes_to_it() -> None:
    assert missing(BOTH, [], START) == (
        "the start waits for 2 more approvals by the role publisher, other than the creator"
    )
    assert missing(BOTH, [yes("ann")], START).startswith("the start waits for 1 more approval by")
    assert missing(BOTH, [yes("ann"), yes("bob")], START) == ""


def test_a_yes_counts_for_its_own_stage_and_once_per_person() -> None:
    given_ = [yes("ann"), yes("bob"), yes("ann", "group:2"), yes("ann", "group:2")]
    assert missing(BOTH, given_, before_group(1)).startswith("group 2 waits for 1 more approval")
    assert missing(BOTH, given_, before_group(2)) == ""


def test_a_plan_without_approval_waits_for_nobody() -> None:
    assert missing(None, [], START) == ""


@pytest.mark.parametrize(
    ("principal", "role", "stage", "words"),
    [
        ("ann", Role.PUBLISHER, "group:3", "group 3 asks for no approval (stages that do: start, group:2)"),
        ("ann", Role.OPERATOR, START, "the start is approved by the role publisher; ann is operator"),
        ("eve", Role.PUBLISHER, START, "somebody else than eve"),
        ("bob", Role.PUBLISHER, START, "bob has approved the start before"),
    ],
)
def test_a_yes_that_would_not_count_is_refused_with_the_reason(
    principal: str, role: Role, stage: str, words: str
) -> None:
    assert words in refusal(BOTH, [yes("bob")], stage, principal, role, "eve")


def test_an_admin_may_approve_what_any_role_may_and_where_it_is_allowed_the_creator_too() -> None:
    assert refusal(BOTH, [yes("bob")], START, "ann", Role.ADMIN, "eve") == ""
    alone = msgspec.structs.replace(BOTH, others=False)
    assert refusal(alone, [], START, "eve", Role.PUBLISHER, "eve") == ""
    assert missing(alone, [], START) == "the start waits for 2 more approvals by the role publisher"


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["start", "group:2", "group:9"]))))
def test_taken_in_only_where_nothing_speaks_against_it_nobody_is_missing_exactly_when_enough_have_said_yes(
    asked: list[tuple[str, str]],
) -> None:
    given_: list[Given] = []
    for principal, stage in asked:
        if not refusal(BOTH, given_, stage, principal, Role.PUBLISHER, "a"):
            given_.append(yes(principal, stage))
    for stage in BOTH.stages:
        people = {principal for principal, wanted in asked if wanted == stage} - {"a"}
        assert (missing(BOTH, given_, stage) == "") == (len(people) >= 2)
    assert len({(one.principal, one.stage) for one in given_}) == len(given_)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"people": 0}', "people"),
        (b'{"people": 11}', "people"),
        (b'{"stages": []}', "stages"),
        (b'{"stages": ["group:0"]}', "expected start or group:N"),
        (b'{"stages": ["end"]}', "expected start or group:N"),
        (b'{"role": "king"}', "king"),
        (b'{"who": "ann"}', "who"),
    ],
)
def test_an_approval_that_cannot_be_asked_for_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.json.decode(body, type=Approval)
