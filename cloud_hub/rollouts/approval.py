"""Approval: other people say yes before a rollout starts, or before some of its groups open. Pure.

`refusal` says why somebody's yes would not count, `missing` what a stage still waits for. Called by the rollout
engine, which keeps what was given in `Rollout.approvals`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from cloud_hub.roles import Role
from cloud_hub.words import counted

START: Final = "start"
MAX_PEOPLE: Final = 10
MAX_STAGES: Final = 101
_STAGE: Final = re.compile(r"start|group:[1-9][0-9]{0,2}")


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`people` of them, each with `role`, must say yes before each of `stages`: `start`, or `group:2` (from 1 on).

    With `others` whoever created the rollout cannot be one of them.
    """

    role: Role = Role.OPERATOR
    people: Annotated[int, msgspec.Meta(ge=1, le=MAX_PEOPLE)] = 1
    stages: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=MAX_STAGES)] = (START,)
    others: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.people <= MAX_PEOPLE:
            raise ValueError(f"approval people: expected 1 to {MAX_PEOPLE}, got {self.people}")
        if wrong := [stage for stage in self.stages if _STAGE.fullmatch(stage) is None]:
            raise ValueError(f"approval stages: expected start or group:N such as group:2, got {wrong[0]!r:.40}")


class Given(msgspec.Struct, frozen=True):
    """Somebody's yes to one stage: who, with which role at that time, and when (epoch seconds)."""

    principal: str
    role: Role
    stage: str
    at: float
    comment: str = ""


def before_group(index: int) -> str:
    """The stage before the group of that index (from 0 on, as in the API) opens; people count groups from 1."""
    return f"group:{index + 1}"


def refusal(
    approval: Approval | None, given: Sequence[Given], stage: str, principal: str, role: Role, creator: str
) -> str:
    """Why the yes of `principal` to `stage` would not count; empty where it would."""
    if approval is None or stage not in approval.stages:
        asked = "none" if approval is None else ", ".join(approval.stages)
        return f"{_named(stage)} asks for no approval (stages that do: {asked})"
    if not role.allows(approval.role):
        return f"{_named(stage)} is approved by the role {approval.role}; {principal} is {role}"
    if approval.others and principal == creator:
        return f"{_named(stage)} is approved by somebody else than {creator}, who created the rollout"
    if principal in {one.principal for one in given if one.stage == stage}:
        return f"{principal} has approved {_named(stage)} before"
    return ""


def missing(approval: Approval | None, given: Sequence[Given], stage: str) -> str:
    """What `stage` still waits for, as people read it; empty when it may go ahead."""
    if approval is None or stage not in approval.stages:
        return ""
    left = approval.people - len({one.principal for one in given if one.stage == stage})
    if left <= 0:
        return ""
    by = f"the role {approval.role}" + (", other than the creator" if approval.others else "")
    return f"{_named(stage)} waits for {counted(left, 'more approval')} by {by}"


def _named(stage: str) -> str:
    return "the start" if stage == START else f"group {stage.partition(':')[2]}"
