"""What an operator wants of a rollout: who comes when, how fast, and what must hold. Pure values.

A rollout is an ordered list of groups. A group opens when the one before has its success threshold of devices verified
healthy after probation and its gates let it through; failures above a threshold stop it, pause it or take everybody
back; every execution and the rollout itself has a deadline, so that silence ends as well. `decide` says what follows.
Sources: hawkBit rollout groups (success opens the next), AWS IoT Jobs abort criteria (share of the executions that
ended, after a minimum, by class of failure).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import msgspec

from cloud_hub.errors import HubError
from cloud_hub.query import parse
from cloud_hub.rollouts.approval import Approval
from cloud_hub.rollouts.beside import Beside
from cloud_hub.rollouts.gate import AlertGate, CompareGate
from cloud_hub.rollouts.maintenance import MaintenanceWindow
from cloud_hub.rollouts.rate import Rate
from modules.manifest import SamplingPolicy

MAX_GROUPS = 100
MAX_THRESHOLDS = 20
MAX_WINDOWS = 50
MAX_RETRIES = 10
YEAR_S = 366 * 86_400.0
FailureClass = Literal["any", "failed", "reverted", "rejected", "timed_out", "silent"]
OnFailure = Literal["stop", "pause", "roll_back"]
OnConflict = Literal["refuse", "skip", "supersede"]


class Group(msgspec.Struct, frozen=True):
    """Whom a group takes: a number, a percentage of all, those of a query, or the rest (all null)."""

    count: int | None = None
    percent: float | None = None
    query: str | None = None

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.count, self.percent, self.query)) > 1:
            raise ValueError("group: expected one of a count, a percentage and a query")
        if self.count is not None and self.count < 1:
            raise ValueError(f"group: expected a count of at least 1 or a percentage, got {self.count}")
        if self.percent is not None and not 0 < self.percent <= 100:
            raise ValueError(f"group: expected more than 0 and at most 100 percent, got {self.percent}")

    def __str__(self) -> str:
        if self.query is not None:
            return self.query
        if self.percent is not None:
            return f"{self.percent:g}%"
        return "rest" if self.count is None else str(self.count)

    @classmethod
    def parse(cls, text: str) -> Group:
        """`5`, `20%`, `rest`, or a query such as `site=lyon`. Raises ValueError on anything else."""
        words = text.strip()
        if words == "rest":
            return cls()
        if re.search(r"[=<>]", words):
            try:
                parse(words)
            except HubError as error:
                raise ValueError(f"group: {error.message}") from error
            return cls(query=words)
        match = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,4})?)(%?)", words)
        if match is None or ("." in match[1] and not match[2]):
            raise ValueError(
                f"group: expected a number such as 5, a share such as 20%, a query such as site=lyon, or rest, "
                f"got {text[:40]!r}"
            )
        return cls(percent=float(match[1])) if match[2] else cls(count=int(match[1]))

    def size(self, total: int) -> int:
        """Devices of `total` that this group takes; a percentage is rounded up, so that it never takes nobody."""
        if self.percent is not None:
            return math.ceil(total * self.percent / 100)
        return total if self.count is None else self.count

    def take(self, left: Sequence[str], total: int, members: Mapping[str, Collection[str]]) -> list[str]:
        """Of the devices that are left, in their order, those of this group; `members` are those of each query."""
        if self.query is None:
            return list(left[: self.size(total)])
        return [device for device in left if device in members[self.query]]


class FailureThreshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """More than `percent` of the executions that ended are failures of this class, `min_count` having ended."""

    kind: FailureClass = "any"
    percent: float = 0.0
    min_count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 100:
            raise ValueError(f"threshold {self.kind}: expected 0 to 100 percent, got {self.percent}")
        if self.min_count < 1:
            raise ValueError(f"threshold {self.kind}: min_count: expected at least 1, got {self.min_count}")

    def passed(self, failures: int, ended: int) -> bool:
        return ended >= self.min_count and 100 * failures > self.percent * ended


class Plan(msgspec.Struct, frozen=True):
    """Who comes when, and what must hold. Thresholds are percentages, deadlines seconds.

    `success_threshold` of a group's devices must be verified to open the next group. Once at least `min_count`
    executions have ended and more than `error_threshold` of those that ended did not succeed, or one of `thresholds`
    is passed, the rollout does what `on_failure` says. A device has `device_deadline_s` from its assignment, the
    rollout `deadline_s` from its start; one that failed or timed out is tried again `retries` times, after
    `retry_after_s`. `sampling` takes the place of the policy that counts on these devices; without it each keeps its
    own, if it has one.

    A group that has its threshold waits `soak_s`; with a `gate` it is compared with the version before, with an
    `alert_gate` alerts about it count, and the next one opens when nothing speaks against it. Devices begin only
    inside `windows`, where there are any. With `joining` devices that come to match the target later take part too,
    until somebody finishes the rollout or its deadline passes. `conflict` says what happens with devices that another
    rollout of the module is under way on. With a `candidate` the version does not take everybody's place, see `beside`.
    """

    groups: tuple[Group, ...] = (Group(),)
    success_threshold: float = 100.0
    error_threshold: float = 0.0
    min_count: int = 1
    device_deadline_s: float = 3600.0
    deadline_s: float = 7 * 86_400.0
    sampling: SamplingPolicy | None = None
    gate: CompareGate | None = None
    rate: Rate | None = None
    thresholds: tuple[FailureThreshold, ...] = ()
    on_failure: OnFailure = "stop"
    conflict: OnConflict = "refuse"
    retries: int = 0
    retry_after_s: float = 600.0
    joining: bool = False
    windows: tuple[MaintenanceWindow, ...] = ()
    approval: Approval | None = None
    alert_gate: AlertGate | None = None
    soak_s: float = 0.0
    candidate: Beside | None = None

    def __post_init__(self) -> None:
        _between("groups", len(self.groups), 1, MAX_GROUPS)
        _between("thresholds", len(self.thresholds), 0, MAX_THRESHOLDS)
        _between("windows", len(self.windows), 0, MAX_WINDOWS)
        _between("retries", self.retries, 0, MAX_RETRIES)
        for name, share in (("success_threshold", self.success_threshold), ("error_threshold", self.error_threshold)):
            if not 0 <= share <= 100:
                raise ValueError(f"{name}: expected 0 to 100 percent, got {share}")
        if self.min_count < 1:
            raise ValueError(f"min_count: expected at least 1, got {self.min_count}")
        for name, seconds in (("device_deadline_s", self.device_deadline_s), ("deadline_s", self.deadline_s)):
            if not 0 < seconds <= YEAR_S:
                raise ValueError(f"{name}: expected more than 0 seconds and at most a year, got {seconds}")
        for name, seconds in (("retry_after_s", self.retry_after_s), ("soak_s", self.soak_s)):
            if not 0 <= seconds <= YEAR_S:
                raise ValueError(f"{name}: expected 0 seconds to a year, got {seconds}")

    @property
    def gated(self) -> bool:
        """Whether a gate has something to say behind a group; one that only soaks has not."""
        return self.gate is not None or self.alert_gate is not None

    @property
    def beside(self) -> bool:
        """Whether devices are to run the version beside their main one."""
        return self.candidate is not None and self.candidate.on_device

    @property
    def every_threshold(self) -> tuple[FailureThreshold, ...]:
        return (FailureThreshold("any", self.error_threshold, self.min_count), *self.thresholds)


def split(
    devices: Sequence[str], plan: Plan, members: Mapping[str, Collection[str]] | None = None
) -> tuple[tuple[str, ...], ...]:
    """The devices, in their order, as the plan's groups; those left over are one more. No group is empty.

    `members` are the devices of each query that is a group.
    """
    groups: list[tuple[str, ...]] = []
    left = list(devices)
    for group in (*plan.groups, Group()):
        taken = group.take(left, len(devices), members or {})
        if taken:
            groups.append(tuple(taken))
            gone = set(taken)
            left = [device for device in left if device not in gone]
    return tuple(groups)


def _between(name: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {count}")
